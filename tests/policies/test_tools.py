"""Which tools a call may give a model."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from policies.support.walk import MAX_VALUES
from policies.tools import Tools
from proxy.wire.errors import PolicyViolation
from tests.examples import apply_policy, make_call, shuffled

ASK = {"type": "function", "name": "ask"}
SHELL, SEARCH = {"type": "shell"}, {"type": "web_search"}


def mcp(url: object = None, **fields: Any) -> dict[str, Any]:
    return {"type": "mcp", "server_label": "docs"} | ({} if url is None else {"server_url": url}) | fields


def namespace(*tools: Any) -> dict[str, Any]:
    return {"type": "namespace", "name": "crm", "description": "", "tools": list(tools)}


async def outcome(policy: Tools, **body: Any) -> Any:
    """Return the body that passes, without its model, or the reason and the param of the refusal."""
    try:
        passed = (await apply_policy(policy, make_call(**body))).body
    except PolicyViolation as violation:
        refusal = violation
    else:
        return {name: value for name, value in passed.items() if name != "model"}
    assert len(refusal.message) <= 120
    return refusal.reason, refusal.param


async def message(policy: Tools, **body: Any) -> str:
    """Return the message of a refusal."""
    with pytest.raises(PolicyViolation) as caught:
        await apply_policy(policy, make_call(**body))
    return caught.value.message


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"tools": None, "tool_choice": None, "prompt": None, "input": None},
        {"tools": [], "tool_choice": "auto", "input": "tools"},
        {"tools": [ASK, SHELL, mcp("odd url"), mcp(7), {"type": "new", "tools": None}], "tool_choice": SHELL},
        {"input": [{"type": "additional_tools", "tools": [SHELL, namespace(ASK)]}], "tool_choice": "shell"},
    ],
)
async def test_every_tool_passes_by_default(body: dict[str, Any]):
    """A policy without keys restricts no tools and changes nothing."""
    call = make_call(**body)

    assert await apply_policy(Tools(), call) is call


@pytest.mark.parametrize(
    ("policy", "refused", "passing"),
    [
        (Tools(code_interpreter=False), ["code_interpreter", "code_interpreter_2027"], ["shell", "code"]),
        (Tools(computer=False), ["computer", "computer_use", "computer_use_preview", "computer_2027"], ["shell"]),
        (Tools(shell=False), ["shell", "local_shell", "apply_patch", "shell_2027"], ["computer", "shellac"]),
        (Tools(deny_types=("web_search*",)), ["web_search", "web_search_2025_08_26", "web_search_preview"], ["mcp"]),
        (Tools(deny_types=("Shell",)), ["shell", "SHELL", "\uff53hell", " shell", "she\u200bll"], ["local_shell"]),
        (Tools(allow_types=("function", "web_search*")), ["shell", "Function", ""], ["web_search_preview", "function"]),
        (Tools(allow_types=("shell",), shell=False), ["shell"], []),
        (Tools(allow_types=()), ["function"], []),
    ],
)
async def test_types_are_allowed_denied_and_switched_off(policy: Tools, refused: list[str], passing: list[str]):
    """A glob matches all versions of a type; deny wins, in any spelling."""
    for kind in refused:
        found = await outcome(policy, tools=[{"type": kind, "name": "x"}])
        assert found == ("type_not_allowed", "tools[0]"), kind
    tools = [{"type": kind, "name": "x"} for kind in passing]

    assert await outcome(policy, tools=tools) == {"tools": tools}


@pytest.mark.parametrize("kind", ["function", "custom", "Function"])
async def test_names_of_functions_and_custom_tools_are_checked(kind: str):
    """Deny wins; the names of other tools are not checked."""
    policy = Tools(allow_names=("crm_*",), deny_names=("*_delete",))
    passing = [{"type": kind, "name": "crm_find"}, {"type": "namespace", "name": "x"}, SEARCH]

    assert await outcome(policy, tools=passing) == {"tools": passing}
    for name in ["find", "crm_delete", "crm_DELETE", 7, None, ["crm_find"]]:
        found = await outcome(policy, tools=[SEARCH, {"type": kind, "name": name}])
        assert found == ("name_not_allowed", "tools[1]"), name
    assert await outcome(policy, tools=[{"type": kind}]) == ("name_not_allowed", "tools[0]")


async def test_a_name_one_level_deeper_is_checked_too():
    """Chat Completions has it there, and lenient upstreams read it."""
    policy = Tools(deny_names=("rm",))
    plain = {"type": "function", "function": {"name": "ls"}}
    hidden = {"type": "function", "name": "ls", "function": {"name": "rm"}}
    choice = {"type": "custom", "custom": {"name": "rm"}}

    assert await outcome(policy, tools=[plain]) == {"tools": [plain]}
    assert await outcome(policy, tools=[hidden]) == ("name_not_allowed", "tools[0]")
    assert await outcome(policy, tool_choice=choice) == ("name_not_allowed", "tool_choice")


async def test_a_schema_is_no_list_of_tools():
    """The names of a function's parameters are its own."""
    tool = ASK | {"parameters": {"properties": {"tools": {"type": "shell"}}}}

    assert await outcome(Tools(shell=False), tools=[tool]) == {"tools": [tool]}


SERVERS = ("good.example", "bank.example", "*.acme.com", "Port.example:8443", "http://plain.example", "[::1]:80")


@pytest.mark.parametrize(
    "url",
    [
        "https://good.example",
        "https://good.example/",
        "HTTPS://GOOD.Example:443/mcp?x=1#y",
        "https://good.example./mcp",
        "https://good.example/@scope/name?u=https://evil.example",
        "https://mcp.acme.com/sse",
        "https://a.b.ACME.com",
        "https://port.example:8443/",
        "http://plain.example:80/mcp",
        "https://[::1]:80/",
    ],
)
async def test_servers_of_the_list_pass(url: str):
    """Hosts are compared without case, default port and final dot."""
    tools = [mcp(url)]

    assert await outcome(Tools(mcp_servers=SERVERS), tools=tools) == {"tools": tools}


@pytest.mark.parametrize(
    "url",
    [
        "https://good.example.evil.com/",
        "https://evil.com/good.example",
        "https://notgood.example",
        "https://sub.good.example",
        "https://good.example@evil.com/",
        "https://good.example:443@evil.com/",
        "https://user:word@good.example/",
        "https://good.example#@evil.com/",
        "https://good.example?@evil.com/",
        "https://good.example\\@evil.com/",
        "https://good.example/\\evil.com",
        "https:\\\\good.example",
        "https://evil.com\\.good.example",
        "https://good.example\t",
        " https://good.example",
        "https://good.example/a b",
        "https://good.example\n.evil.com",
        "https://good.example/\u00e9",
        "https://\uff47ood.example",
        "https://ban\u212a.example",
        "https://good%2eexample",
        "https://good.example..",
        "https://.acme.com",
        "https://acme.com",
        "https://evilacme.com",
        "https://acme.com.",
        "http://mcp.acme.com",
        "https://mcp.acme.com:8443",
        "https://mcp.acme.com.evil.com",
        "http://good.example",
        "https://good.example:8443",
        "https://good.example:",
        "https://good.example:99999999",
        "https://port.example",
        "https://plain.example",
        "http://[::1]",
        "file://good.example/etc/passwd",
        "good.example",
        "//good.example",
        "https:good.example",
        "https://",
        "",
        7,
        True,
        ["https://good.example"],
        {"url": "https://good.example"},
    ],
)
async def test_servers_that_resemble_those_of_the_list_are_refused(url: object):
    """A URL that two readers may read in two ways is not on the list."""
    assert await outcome(Tools(mcp_servers=SERVERS), tools=[mcp(url)]) == ("mcp_not_allowed", "tools[0]")


@pytest.mark.parametrize("kind", ["function", "web_search", "mcp", "new"])
async def test_an_address_is_checked_in_a_tool_of_any_type(kind: str):
    """Some upstream may use it, even if the type needs none."""
    policy, tool = Tools(mcp_servers=("good.example",)), {"type": kind, "name": "n", "server_label": "docs"}
    good, bad = [tool | {"server_url": f"https://{host}.example"} for host in ("good", "bad")]

    assert await outcome(policy, tools=[bad]) == ("mcp_not_allowed", "tools[0]")
    assert await outcome(policy, tools=[good]) == {"tools": [good]}


@pytest.mark.parametrize(
    "name", ["serverUrl", "Server_Url", "server-url", "\uff53erver_url", "Tools", "Type", "connectorId"]
)
@pytest.mark.parametrize("kind", ["function", "mcp", "namespace"])
async def test_a_field_that_resembles_a_checked_one_is_refused(name: str, kind: str):
    """Some upstreams read both, and use the other one."""
    tool = {"type": kind, "name": "n", "server_label": "docs", "server_url": "https://good.example", name: "x"}

    assert await outcome(Tools(mcp_servers=("good.example",)), tools=[tool]) == ("lookalike", "tools[0]")
    assert await outcome(Tools(), input=[{"type": "additional_tools", "tools": [tool]}]) == ("lookalike", "input[0]")
    assert await outcome(Tools(), tool_choice=tool) == ("lookalike", "tool_choice")
    assert await outcome(Tools(), tools=[{"type": kind, "function": {name: "x"}}]) == ("lookalike", "tools[0]")


async def test_a_star_among_the_servers_is_any_url():
    """Even one that cannot be parsed: nothing is restricted."""
    assert await outcome(Tools(mcp_servers=("good.example", "*")), tools=[mcp("?")]) == {"tools": [mcp("?")]}


@pytest.mark.parametrize(
    "server", ["", "*.*", "good.*", "*good.example", "https://a.b/path", "a@b", "a b", "ftp://a", "."]
)
def test_an_entry_that_is_no_server_is_an_error(server: str):
    """A star inside a name would match hosts that were not meant."""
    with pytest.raises(ValidationError, match="is not like"):
        Tools(mcp_servers=(server,))


async def test_a_list_of_servers_denies_connectors_and_tunnels():
    """Otherwise they would be a way around the list."""
    for address in [{"connector_id": "connector_gmail"}, {"tunnel_id": "tunnel_1"}, {"connector_id": 7}]:
        assert await outcome(Tools(), tools=[mcp(**address)]) == {"tools": [mcp(**address)]}
        found = await outcome(Tools(mcp_servers=("good.example",)), tools=[mcp(**address)])
        assert found == ("mcp_not_allowed", "tools[0]")


async def test_connectors_have_a_list_of_their_own():
    """Every address in a tool must be allowed."""
    policy = Tools(mcp_servers=("good.example",), mcp_connectors=("connector_google*",))
    drive = mcp(connector_id="connector_googledrive")

    assert await outcome(policy, tools=[drive]) == {"tools": [drive]}
    for tool in [
        mcp(connector_id="connector_gmail"),
        mcp("https://good.example", connector_id="connector_gmail"),
        mcp("https://evil.example", connector_id="connector_googledrive"),
        mcp(connector_id=["connector_googledrive"]),
        {"type": "tool_2027", "tunnel_id": "tunnel_1"},
    ]:
        assert await outcome(policy, tools=[tool]) == ("mcp_not_allowed", "tools[0]")


async def test_a_label_restricts_and_confirms_nothing():
    """The caller chooses it, so it says nothing about an address."""
    policy = Tools(mcp_servers=("good.example",), mcp_labels=("docs",))
    good = mcp("https://good.example")

    assert await outcome(policy, tools=[good]) == {"tools": [good]}
    for tool in [mcp("https://evil.example"), good | {"server_label": "x"}, good | {"server_label": ["docs"]}]:
        assert await outcome(policy, tools=[tool]) == ("mcp_not_allowed", "tools[0]")
    assert await outcome(policy, tools=[{"type": "mcp", "server_url": "https://good.example"}]) == (
        "mcp_not_allowed",
        "tools[0]",
    )


async def test_a_server_without_an_address_is_identified_by_its_label():
    """Some upstreams have servers of their own: they pass where labels are listed, or nothing is."""
    for policy in [Tools(), Tools(mcp_servers=(), mcp_labels=("docs",))]:
        assert await outcome(policy, tools=[mcp()]) == {"tools": [mcp()]}
    assert await outcome(Tools(mcp_servers=()), tools=[mcp()]) == ("mcp_not_allowed", "tools[0]")


async def test_a_switch_denies_the_mcp_label_too():
    """vLLM runs its own code interpreter for a server with that label."""
    found = await outcome(Tools(code_interpreter=False), tools=[mcp(server_label="Code_Interpreter")])

    assert found == ("mcp_not_allowed", "tools[0]")


NESTED = [
    ({"tools": [ASK, namespace(ASK, SHELL)]}, "tools[1]"),
    ({"tools": [namespace(namespace(namespace(SHELL)))]}, "tools[0]"),
    ({"tools": [{"type": "unheard_of", "tools": [SHELL]}]}, "tools[0]"),
    ({"tool_choice": "shell"}, "tool_choice"),
    ({"tool_choice": SHELL}, "tool_choice"),
    ({"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [ASK, SHELL]}}, "tool_choice"),
    ({"tool_choice": {"type": "allowed_tools", "allowed_tools": {"tools": [SHELL]}}}, "tool_choice"),
    ({"tool_choice": {"type": "any", "tools": [SHELL]}}, "tool_choice"),
    ({"input": ["x", {"type": "additional_tools", "tools": [ASK, SHELL]}]}, "input[1]"),
    ({"input": [{"type": "tool_search_output", "tools": [namespace(SHELL)]}]}, "input[0]"),
    ({"input": {"type": "additional_tools", "tools": [SHELL]}}, "input[0]"),
    ({"input": [[{"type": "message", "content": [{"type": "additional_tools", "tools": [SHELL]}]}]]}, "input[0]"),
    ({"input": [{"type": "unheard_of", "tools": [SHELL]}]}, "input[0]"),
    ({"items": [{"type": "additional_tools", "tools": [SHELL]}]}, "items[0]"),
    ({"input": [ASK, {"role": "user", "content": [{"type": "input_text", "tools": [SHELL]}]}]}, "input[1]"),
    ({"input": [{"role": "user", "content": {"tools": [SHELL]}}]}, "input[0]"),
    ({"input": [{"role": {"tools": [SHELL]}, "content": []}]}, "input[0]"),
    ({"input": [{"type": "mcp_list_tools", "content": [{"tools": [SHELL]}]}]}, "input[0]"),
    ({"input": [{"type": "mcpListTools", "tools": [SHELL]}]}, "input[0]"),
    ({"input": [{"type": "mcp_list_tools", "Type": "additional_tools", "tools": [SHELL]}]}, "input[0]"),
    ({"input": [{"type": "additional_tools", "parameters": {"tools": [SHELL]}}]}, "input[0]"),
    ({"tools": [{"type": "namespace", "group": {"tools": [SHELL]}}]}, "tools[0]"),
    ({"tools": [ASK, {"type": "web_search", "filters": [{"tools": [SHELL]}]}]}, "tools[1]"),
    ({"tool_choice": {"type": "AllowedTools", "tools": [SHELL]}}, "tool_choice"),
    ({"tool_choice": {"type": "any", "of": [{"tools": [SHELL]}]}}, "tool_choice"),
    ({"instructions": [{"role": "developer", "tools": [SHELL]}]}, "instructions"),
    ({"chat_template_kwargs": {"tools": [SHELL]}}, "chat_template_kwargs"),
    ({"multi_agent": {"agents": [{"tools": [SHELL]}]}}, "multi_agent"),
    ({"\u00e4": {"tools": [SHELL]}}, "\\xe4"),
]


@pytest.mark.parametrize("on_deny", ["reject", "remove"])
@pytest.mark.parametrize(("body", "param"), NESTED)
async def test_a_tool_is_found_wherever_it_is_hidden(body: dict[str, Any], param: str, on_deny: Any):
    """Inside others, in a choice, anywhere in the input. Tools are only removed from `tools`."""
    found = await outcome(Tools(shell=False, on_deny=on_deny), **body)

    is_removable = "tools" in body and "group" not in str(body) and "filters" not in str(body)
    if on_deny == "reject" or not is_removable:
        assert found == ("type_not_allowed", param)
    else:
        assert "shell" not in str(found)


@pytest.mark.parametrize(
    "name", ["Tools", "TOOLS", "too_ls", "t-ools", " tools", "tool\u017f", "\uff54ools", "to\u200bols", "to\x00ols", "t\u043eols"]
)  # fmt: skip
async def test_a_list_of_tools_with_another_name_is_refused_at_any_depth(name: str):
    """Some upstreams read such a name as `tools`; nothing would have checked its tools."""
    for body in [
        {"input": [{"type": "additional_tools", name: [SHELL]}]},
        {"input": [{"role": "user", "content": [{"type": "input_text", "text": "Hi", name: [SHELL]}]}]},
        {"input": {name: [SHELL]}},
        {"chat_template_kwargs": {name: [SHELL]}},
    ]:
        for policy in (Tools(), Tools(shell=False), Tools(shell=False, on_deny="remove")):
            found = await outcome(policy, **body)
            assert found == ("lookalike", "input[0]" if "input" in body else "chat_template_kwargs")
    assert await outcome(Tools(), tools=[namespace(ASK) | {"group": {name: [ASK]}}]) == ("lookalike", "tools[0]")


async def test_variables_of_a_prompt_may_contain_tools():
    """Their names are the caller's own: a text called tools is a text, a list is a list of tools."""
    policy = Tools(prompt="allow", shell=False)
    text, item = ({"id": "p", "variables": {name: "saw"}} for name in ("tools", "Tools"))

    assert await outcome(policy, prompt=text) == {"prompt": text}
    assert await outcome(policy, prompt=item) == {"prompt": item}
    for variables in [{"tools": [SHELL]}, {"x": {"tools": [SHELL]}}, {"x": [{"y": {"tools": [SHELL]}}]}]:
        found = await outcome(policy, prompt={"id": "p", "variables": variables})
        assert found == ("type_not_allowed", "prompt")


CODE_INTERPRETER = [
    "code_interpreter", "codeInterpreter", "CodeInterpreter", "code-interpreter", "CODE_INTERPRETER", "Code Interpreter",
    "codeinterpreter", "code__interpreter", " code_interpreter", "\uff43ode_interpreter", "co\u200bde_interpreter",
    "c\u043ede_interpreter", "codeInterpreter2027", "codeInterpreter_2027", "CODE-INTERPRETER-2027", "codeinterpreter_2027",
]  # fmt: skip


@pytest.mark.parametrize("kind", CODE_INTERPRETER)
async def test_a_type_is_denied_in_any_spelling(kind: str):
    """Case, hyphens, camelCase, width and invisible characters make no difference to a lenient upstream."""
    policies = [
        Tools(code_interpreter=False),
        Tools(deny_types=("code_interpreter*",)),
        Tools(deny_types=("CodeInterpreter*",)),
    ]
    for policy in policies:
        for tools in [[{"type": kind}], [namespace({"type": kind})]]:
            assert await outcome(policy, tools=tools) == ("type_not_allowed", "tools[0]")
        assert await outcome(policy, tool_choice=kind) == ("type_not_allowed", "tool_choice")
    assert await outcome(Tools(code_interpreter=False), tools=[mcp(server_label=kind)]) == (
        "mcp_not_allowed",
        "tools[0]",
    )
    if kind != "code_interpreter":
        allowing = Tools(allow_types=("code_interpreter",))
        assert await outcome(allowing, tools=[{"type": kind}]) == ("type_not_allowed", "tools[0]")


@pytest.mark.parametrize(("glob", "denied", "passing"), [
    ("web_search*", ["web-search", "WEB_SEARCH", "webSearchPreview", "websearch"], ["search", "web"]),
    ("[!a-f]*", ["shell", "Shell"], ["custom-tool", "apply_patch"]),
    ("mcp", ["MCP", "Mcp"], ["mcpx"]),
])  # fmt: skip
async def test_a_glob_denies_the_spellings_of_what_it_matches(glob: str, denied: list[str], passing: list[str]):
    """A set of characters is matched as it is written."""
    for kind in denied:
        assert await outcome(Tools(deny_types=(glob,)), tools=[{"type": kind}]) == ("type_not_allowed", "tools[0]")
    tools = [{"type": kind} for kind in passing]
    assert await outcome(Tools(deny_types=(glob,)), tools=tools) == {"tools": tools}


@pytest.mark.parametrize("kind", ["MCP", "Mcp", "mcp-2027", "\uff4dcp"])
async def test_an_mcp_server_is_checked_in_any_spelling_of_its_type(kind: str):
    """Otherwise one without a server_url would be no MCP server."""
    policy = Tools(mcp_servers=("good.example",))

    assert await outcome(policy, tools=[{"type": kind, "server_label": "docs"}]) == ("mcp_not_allowed", "tools[0]")


async def test_names_and_addresses_are_checked_inside_a_tool():
    """Wherever in its objects they stand, without its schemas; a function is one in any spelling."""
    policy = Tools(mcp_servers=("good.example",), deny_names=("rm",))
    for tool in [
        {"type": "mcp", "server_label": "x", "mcp": {"server_url": "https://evil.example"}},
        {"type": "new", "servers": [{"connector_id": "c"}]},
        {"type": "shell", "environment": {"type": "remote", "server_url": "https://evil.example"}},
    ]:
        assert await outcome(policy, tools=[tool]) == ("mcp_not_allowed", "tools[0]")
    assert await outcome(policy, tools=[{"type": "FUNCTION", "name": "rm"}]) == ("name_not_allowed", "tools[0]")
    assert await outcome(policy, tools=[{"type": "new", "x": [{"serverUrl": 1}]}]) == ("lookalike", "tools[0]")
    good = [
        ASK | {"parameters": {"properties": {"server_url": {"serverUrl": 1}}}},
        mcp("https://good.example", headers={"serverUrl": "x"}),
    ]
    assert await outcome(policy, tools=good) == {"tools": good}


@pytest.mark.parametrize("name", ["functions", "Functions", "plugins", "mcp_servers", "mcpServers", "tool_config", "toolConfig", "extra_body", "function_call", "web_search_options"])  # fmt: skip
async def test_other_fields_with_tools_are_refused(name: str):
    """Where tools are restricted: an upstream of another protocol reads them."""
    for policy in [Tools(shell=False), Tools(deny_names=("rm",)), Tools(mcp_servers=()), Tools(mcp_labels=("x",))]:
        assert await outcome(policy, **{name: [ASK]}) == ("alternative_field", name)
    assert await outcome(Tools(shell=False), **{name: None}) == {name: None}
    assert await outcome(Tools(), **{name: [ASK]}) == {name: [ASK]}


@pytest.mark.parametrize(
    "item",
    [
        {"type": "mcp_list_tools", "server_label": "docs", "tools": [{"name": "shell", "input_schema": {}}]},
        {"type": "tool_search_call", "arguments": {"tools": ["shell"]}},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "tools: shell"}]},
        {"type": "shell_call", "call_id": "call_1", "action": {"commands": ["ls"]}},
    ],
)
async def test_items_that_give_no_tools_pass(item: dict[str, Any]):
    """The tools that a server reports, a model's arguments and a finished call give the model nothing."""
    policy = Tools(allow_types=("function",), allow_names=("ask",), mcp_servers=(), shell=False)

    assert await outcome(policy, input=[item]) == {"input": [item]}


@pytest.mark.parametrize("on_deny", ["reject", "remove"])
@pytest.mark.parametrize(
    ("body", "found"),
    [
        ({"tools": "x"}, ("not_an_array", "tools")),
        ({"tools": {}}, ("not_an_array", "tools")),
        ({"tools": False}, ("not_an_array", "tools")),
        ({"tools": [ASK, 1]}, ("not_an_object", "tools[1]")),
        ({"tools": [None]}, ("not_an_object", "tools[0]")),
        ({"tools": ["shell"]}, ("not_an_object", "tools[0]")),
        ({"tools": [[SHELL]]}, ("not_an_object", "tools[0]")),
        ({"tools": [{}]}, ("no_type", "tools[0]")),
        ({"tools": [{"type": ["shell"]}]}, ("no_type", "tools[0]")),
        ({"tools": [{"type": None}]}, ("no_type", "tools[0]")),
        ({"tools": [ASK, namespace("shell")]}, ("not_an_object", "tools[1]")),
        ({"tools": [namespace() | {"tools": "shell"}]}, ("not_an_array", "tools[0]")),
        ({"tool_choice": 7}, ("not_an_object", "tool_choice")),
        ({"tool_choice": True}, ("not_an_object", "tool_choice")),
        ({"tool_choice": []}, ("not_an_object", "tool_choice")),
        ({"tool_choice": {}}, ("no_type", "tool_choice")),
        ({"tool_choice": {"type": 1}}, ("no_type", "tool_choice")),
        ({"tool_choice": {"type": "allowed_tools", "tools": "x"}}, ("not_an_array", "tool_choice")),
        ({"tool_choice": {"type": "allowed_tools", "tools": ["x"]}}, ("not_an_object", "tool_choice")),
        ({"input": [{"type": "additional_tools", "tools": "x"}]}, ("not_an_array", "input[0]")),
        ({"input": [{"type": "additional_tools", "tools": [1]}]}, ("not_an_object", "input[0]")),
        ({"prompt": {"id": "pmpt_1"}}, ("prompt_not_allowed", "prompt")),
        ({"prompt": 7}, ("prompt_not_allowed", "prompt")),
        ({"prompt": {}}, ("prompt_not_allowed", "prompt")),
    ],
)
async def test_what_cannot_be_checked_is_refused(body: dict[str, Any], found: tuple[str, str], on_deny: Any):
    """A value of an unexpected type is refused with a code, also where denied tools are removed."""
    assert await outcome(Tools(on_deny=on_deny), **body) == found


@pytest.mark.parametrize("prompt", [{"id": "pmpt_1"}, 7])
async def test_templates_pass_if_the_config_allows_them(prompt: object):
    """Then the authors of templates are trusted with their tools."""
    assert await outcome(Tools(prompt="allow", allow_types=()), prompt=prompt) == {"prompt": prompt}


async def test_denied_tools_are_removed_if_the_config_says_so():
    """The others stay unchanged; a namespace that contained only denied tools is removed with them."""
    tools = [SHELL, ASK, namespace(SHELL), namespace(), namespace(namespace(ASK, SHELL), SHELL), SEARCH]
    passed = await outcome(Tools(shell=False, on_deny="remove"), input="Hi", tools=tools, tool_choice="required")

    assert passed == {
        "input": "Hi",
        "tools": [ASK, namespace(), namespace(namespace(ASK)), SEARCH],
        "tool_choice": "required",
    }
    assert tools[0] is SHELL


async def test_a_call_from_which_nothing_is_removed_passes_unchanged():
    """It is the same call, not a copy."""
    call = make_call(tools=[ASK, namespace(ASK)], tool_choice={"type": "function", "name": "ask"})

    assert await apply_policy(Tools(shell=False, on_deny="remove"), call) is call


@pytest.mark.parametrize(
    ("choice", "found"),
    [
        ({"type": "mcp", "server_label": "docs"}, ("removed", "tool_choice")),
        ({"type": "mcp", "server_label": "docs", "name": "find"}, ("removed", "tool_choice")),
        (
            {"type": "allowed_tools", "tools": [ASK, {"type": "mcp", "server_label": "docs"}]},
            ("removed", "tool_choice"),
        ),
        (SHELL, ("type_not_allowed", "tool_choice")),
        ({"type": "mcp", "server_label": "wiki"}, None),
        ({"type": "function", "name": "docs"}, None),
        ({"type": "allowed_tools", "tools": [ASK]}, None),
        ({"type": "allowed_tools"}, None),
    ],
)
async def test_a_choice_of_a_removed_tool_is_refused(choice: dict[str, Any], found: Any):
    """A choice names an MCP server only by its label; the server was removed because of its address."""
    policy = Tools(shell=False, mcp_servers=("good.example",), on_deny="remove")
    wiki = mcp("https://good.example", server_label="wiki")
    passed = await outcome(policy, tools=[SHELL, mcp("https://evil.example"), wiki, ASK], tool_choice=choice)

    assert passed == (found or {"tools": [wiki, ASK], "tool_choice": choice})


LONG, SHORT = "x" * 10_000, "x" * 48


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"tools": 7}, "Invalid type for 'tools': expected an array of objects, but got an integer instead."),
        ({"tools": [7]}, "Invalid type for 'tools[0]': expected an object, but got an integer instead."),
        ({"tools": [{"name": "ask"}]}, "A tool has no type; only a string is allowed."),
        ({"tools": [{"type": None}]}, "A tool has no type; only a string is allowed."),
        ({"tools": [{"type": ["function"]}]}, "A tool has a type that is not a string; only a string is allowed."),
        ({"tools": [{"type": LONG}]}, f"A tool has the type '{SHORT}'; it is not allowed."),
        ({"tool_choice": LONG}, f"A tool has the type '{SHORT}'; it is not allowed."),
        ({"tools": [{"type": "function"}]}, "A tool has no name; it is not allowed."),
        ({"tools": [{"type": "function", "name": 7}]}, "A tool has a name that is not a string; it is not allowed."),
        ({"tools": [{"type": "custom", "name": LONG}]}, f"A tool has the name '{SHORT}'; it is not allowed."),
        ({"tools": [mcp()]}, "An MCP server has no server_url; it is not allowed."),
        ({"tools": [mcp(7)]}, "An MCP server has a server_url that is not a string; it is not allowed."),
        ({"tools": [mcp(LONG)]}, f"An MCP server has the server_url '{SHORT}'; it is not allowed."),
        ({"tools": [mcp(connector_id="c")]}, "An MCP server has the connector_id 'c'; it is not allowed."),
        ({"tools": [mcp(tunnel_id=["t"])]}, "An MCP server has a tunnel_id that is not a string; it is not allowed."),
        ({"tools": [mcp(server_label="shell")]}, "An MCP server has the server_label 'shell'; it is not allowed."),
        ({"tools": [ASK | {"serverUrl": ""}]}, "A tool has a field 'serverUrl' that resembles one that is checked; only that one is allowed."),
        ({"prompt": {}}, "prompt names a template, which can contain any tools; only calls without one are allowed."),
        ({"input": [[0] * MAX_VALUES, {"tools": []}]}, f"The input has too many values to be checked; the limit is {MAX_VALUES}."),
    ],
    ids=lambda value: str(value)[:60],
)  # fmt: skip
async def test_a_refusal_says_what_was_found(body: dict[str, Any], text: str):
    """A missing value, one of the wrong type, or the caller's own text, shortened."""
    policy = Tools(deny_types=("xx*",), allow_names=("ask",), mcp_servers=(), shell=False)

    assert await message(policy, **body) == text


async def test_a_choice_of_a_removed_tool_is_named_in_the_refusal():
    """It says which tools may be chosen."""
    policy, tools = Tools(mcp_servers=(), on_deny="remove"), [mcp("https://bad.example")]

    assert await message(policy, tools=tools, tool_choice={"type": "mcp", "server_label": "docs"}) == (
        "tool_choice names a tool that was removed; only one that is left is allowed."
    )


async def test_a_tool_is_found_at_the_deepest_level_of_a_body():
    """parse_call accepts 254 levels."""
    deep: dict[str, Any] = SHELL
    for _ in range(125):
        deep = namespace(deep, ASK)
    item: Any = {"type": "additional_tools", "tools": [SHELL]}
    for _ in range(249):
        item = [item]

    assert await outcome(Tools(shell=False), tools=[deep]) == ("type_not_allowed", "tools[0]")
    assert await outcome(Tools(shell=False), input=item) == ("type_not_allowed", "input[0]")
    assert "shell" not in str(await outcome(Tools(shell=False, on_deny="remove"), tools=[deep]))


SCALARS = st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(max_size=4)
WORDS = st.sampled_from(["function", "custom", "mcp", "shell", "Shell", "namespace", "allowed_tools", "additional_tools",
                         "mcp_list_tools", "local_shell_2027", "ls", "rm", "RM", "rm_all", "docs", "wiki", "auto", "none"])  # fmt: skip
URLS = st.sampled_from(["https://good.example/mcp", "https://a.acme.com", "https://good.example@evil.com",
                        "https://acme.com", "https://GOOD.example.", "http://good.example", "https://good.example.x"])  # fmt: skip
KEYS = st.sampled_from(["type", "type", "name", "tools", "tools", "Tools", "server_url", "server_label", "connector_id",
                        "function", "arguments", "content"])  # fmt: skip
JSON = st.recursive(
    SCALARS | WORDS | URLS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(max_size=2), inner, max_size=4),
    max_leaves=12,
)
TOOL = st.deferred(
    lambda: st.fixed_dictionaries(
        {"type": WORDS},
        optional={
            "name": WORDS,
            "server_label": WORDS,
            "server_url": URLS | JSON,
            "connector_id": WORDS,
            "tools": st.lists(TOOL, max_size=3),
        },
    )
)
LISTS = st.lists(TOOL, max_size=4)
ITEMS = st.lists(st.fixed_dictionaries({"type": WORDS}, optional={"tools": LISTS, "content": JSON}), max_size=3)
CHOICES = WORDS | TOOL | st.fixed_dictionaries({"type": st.just("allowed_tools"), "tools": LISTS})
BODIES = st.fixed_dictionaries(
    {}, optional={"tools": LISTS | JSON, "input": ITEMS | JSON, "tool_choice": CHOICES | JSON, "other": JSON}
)
STRICT = Tools(
    allow_types=("*", "ls"),
    shell=False,
    deny_names=("rm*",),
    mcp_servers=("good.example", "*.acme.com"),
    prompt="allow",
)


def tools_of(value: Any, *, inside: bool = False, nested: bool = False) -> Iterator[dict[str, Any]]:
    """Yield every tool in a value: the objects of every list called `tools`, in any case."""
    if isinstance(value, list):
        for one in value:
            yield from tools_of(one, inside=inside, nested=nested)
    elif isinstance(value, dict):
        if inside:
            yield value
        is_report = value.get("type") == "mcp_list_tools" and not nested
        for name in set(value) - ({"arguments", "tools"} if is_report else {"arguments"}):
            is_list = name.lower() == "tools"
            yield from tools_of(value[name], inside=is_list, nested=nested or is_list)


def is_allowed(tool: dict[str, Any]) -> bool:
    """Whether STRICT allows a tool, written in another way."""
    kind, name = tool["type"], tool.get("name")
    if not isinstance(kind, str) or "shell" in kind.lower():
        return False
    if kind in ("function", "custom") and (not isinstance(name, str) or name[:2].lower() == "rm"):
        return False
    if tool.get("connector_id") is not None:
        return False
    if tool.get("server_url") is None:
        return kind[:3] != "mcp"
    if not isinstance(tool["server_url"], str):
        return False
    url = urlsplit(tool["server_url"])
    host = (url.hostname or "").rstrip(".")
    return url.scheme == "https" and "@" not in url.netloc and (host == "good.example" or host.endswith(".acme.com"))


@settings(deadline=None)
@given(BODIES, st.sampled_from(["reject", "remove"]))
async def test_what_passes_is_allowed_and_nothing_else_changes(body: dict[str, Any], on_deny: Any):
    """For any JSON."""
    passed = await outcome(STRICT.model_copy(update={"on_deny": on_deny}), **body)

    if not isinstance(passed, tuple):
        left = [*tools_of(passed.get("tools"), inside=True, nested=True), *tools_of(passed.get("input"))]
        left += tools_of(passed.get("other"), nested=True)
        assert [tool for tool in left if not is_allowed(tool)] == []
        assert on_deny == "remove" or passed == body
        assert {**passed, "tools": None} == {**body, "tools": None}


@settings(deadline=None)
@given(LISTS)
async def test_allowed_tools_pass(tools: list[dict[str, Any]]):
    """The policy refuses no more than it says."""
    passed = await outcome(STRICT, tools=tools)

    if all(is_allowed(tool) and "server_label" in tool for tool in tools_of(tools, inside=True, nested=True)):
        labels = {str(tool["server_label"]).lower() for tool in tools_of(tools, inside=True, nested=True)}
        assert passed == {"tools": tools} or any("shell" in label for label in labels)


@settings(deadline=None)
@given(BODIES, st.booleans(), st.randoms())
async def test_the_decision_depends_on_neither_order_nor_streaming(body: dict[str, Any], stream: bool, random: Any):
    """The decision on the same objects, with their names in another order, is the same."""
    one = await outcome(STRICT, **body)
    two = await outcome(STRICT, **shuffled(body | {"stream": stream}, random))

    assert isinstance(one, tuple) == isinstance(two, tuple)
    assert isinstance(one, tuple) or two == one | {"stream": stream}
