"""Says which tools a model may be given: by type, by name, and by the MCP server behind them.

Request: judges every tool of `tools`, those inside others (`namespace`), those that items of `input` bring along
    (`additional_tools`, `tool_search_output`), and those that `tool_choice` names. Refuses with `type_not_allowed`,
    `name_not_allowed` and `mcp_not_allowed`, or removes from `tools`; a tool_choice that names a removed tool is
    refused with `removed`. A prompt template can carry tools that the gate never sees: `prompt_not_allowed`. What
    cannot be judged is refused with `not_an_array`, `not_an_object` and `no_type`, a name in a tool or a tool_choice
    that only looks like one that is judged (`serverUrl`, `Tools`) with `lookalike`.
Response: passes.
Source: https://platform.openai.com/docs/api-reference/responses/create#responses-create-tools
"""

import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, ClassVar, Literal

from pydantic import field_validator

from policies import Policy, PolicyState, RequestCheck
from proxy.wire.call import Call
from proxy.wire.errors import PolicyViolation
from proxy.wire.names import Globs, plain
from policies.support.tools import ADDRESSES, ORDINARY_TOOLS, USUAL_NAMES, lookalike_in

ANY = ("*",)
# What each switch turns off: types of tools with their versions. Some upstreams run them for an MCP label, too.
SWITCHES = {
    "code_interpreter": ("code_interpreter", "code_interpreter_*"),
    "computer": ("computer", "computer_*"),
    "shell": ("shell", "shell_*", "local_shell", "local_shell_*", "apply_patch", "apply_patch_*"),
}
MODES = (None, "none", "auto", "required")  # a tool_choice that names no tool
# No user:password@, blank or backslash, and only a path after the host: no two readers find two hosts in it.
HOST = r"(?P<host>[a-z0-9_-]+(?:\.[a-z0-9_-]+)*\.?|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?"
URL = re.compile(rf"(?P<scheme>https?)://{HOST}(?:/[!-\[\]-~]*)?", re.ASCII | re.IGNORECASE)
SERVER = re.compile(rf"(?:(?P<scheme>https?)://)?(?P<below>\*\.)?{HOST}", re.ASCII | re.IGNORECASE)


class Tools(Policy):
    allow_types: tuple[str, ...] = ANY
    """Types of tools that may be given; `*` and `?` stand for any characters, "web_search*" for all its versions."""
    deny_types: tuple[str, ...] = ()
    """Types that may not, even if `allow_types` has them; other case, width and unseen characters do not help."""
    code_interpreter: bool = True
    """Whether code_interpreter may be given."""
    computer: bool = True
    """Whether computer, computer_use and computer_use_preview may be given."""
    shell: bool = True
    """Whether shell, local_shell and apply_patch may be given."""
    allow_names: tuple[str, ...] = ANY
    """Names that tools of the types function and custom may have."""
    deny_names: tuple[str, ...] = ()
    """Names that they may not, even if `allow_names` has them."""
    mcp_servers: tuple[str, ...] = ANY
    """What `server_url` may name: "host" or "*.domain" by https, "host:port", "http://host"; "*" is any URL."""
    mcp_connectors: tuple[str, ...] | None = None
    """What `connector_id` and `tunnel_id` may be; left out: anything while `mcp_servers` has "*", otherwise nothing."""
    mcp_labels: tuple[str, ...] = ANY
    """What `server_label` may be. It is the caller's own word: it narrows the choice, and vouches for no address."""
    prompt: Literal["allow", "deny"] = "deny"
    """Whether a call may name a prompt template, whose tools nobody can judge here."""
    on_deny: Literal["reject", "remove"] = "reject"
    """What happens to a denied tool of `tools`: its call is refused, or it is left out."""

    judges_text: ClassVar[frozenset[str]] = frozenset({"allow_names", "deny_names", "mcp_connectors", "mcp_labels"})

    @field_validator("mcp_servers")
    @classmethod
    def _are_hosts(cls, servers: tuple[str, ...]) -> tuple[str, ...]:
        for server in servers:
            if server != "*" and not SERVER.fullmatch(server):
                raise ValueError(f"'{server}' is not like mcp.example.com, *.example.com, host:8443 or http://host")
        return servers

    def judging(self) -> Judge:
        denies_prompts, harmless = self.prompt == "deny", self._harmless

        def judge(call: Call) -> Call:
            body = call.body
            if denies_prompts and body.get("prompt") is not None:
                message = "prompt names a template, which can carry any tools; only calls without one are allowed."
                raise PolicyViolation("prompt_not_allowed", message, param="prompt")
            given = "tools" in body
            # To look for the name costs a tenth of walking through a long input, which hardly ever brings tools.
            elsewhere = call.encoded.count(b'"tools":') > given
            named = "tool_choice" in body and body["tool_choice"] not in MODES
            if elsewhere or named or (given and not _are_all(harmless, body["tools"])):
                return self._judged(call, elsewhere=elsewhere)
            return call

        return judge

    def _judged(self, call: Call, *, elsewhere: bool) -> Call:
        body = call.body
        if elsewhere:
            self._judge_items("input", body.get("input"))
            self._judge_items("items", body.get("items"))
        denied = list(self._denied(body.get("tools")))
        if "tool_choice" in body:
            self._judge_choice(body["tool_choice"], denied)
        return call.with_fields(tools=_without(denied, body["tools"])) if denied else call

    def _judge_items(self, field: str, items: object) -> None:
        for index, item in enumerate(items if isinstance(items, list) else [items]):
            for tools in _brought(item):
                for param, tool in _each(tools, f"{field}[{index}]"):
                    self._judge(tool, param)

    def _denied(self, tools: object) -> Iterator[Mapping[str, Any]]:
        """The tools to remove. Raises PolicyViolation."""
        for param, tool in _each(tools, "tools[{}]"):
            try:
                self._judge(tool, param)
            except PolicyViolation:
                if self.on_deny == "reject":
                    raise
                yield tool

    def _judge_choice(self, choice: object, denied: list[Mapping[str, Any]]) -> None:
        if choice in MODES:
            return
        removed = set(map(_identity, denied))
        named = {"type": choice} if isinstance(choice, str) else choice
        _refuse_lookalikes(named, "tool_choice")
        several = isinstance(named, dict) and named.get("type") == "allowed_tools"
        for tools in _brought(named) if several else [[named]]:
            for param, tool in _each(tools, "tool_choice"):
                self._judge(tool, param, defined=False)
                if _identity(tool) in removed:
                    message = "tool_choice names a tool that was removed; only one that is left is allowed."
                    raise PolicyViolation("removed", message, param=param)

    def _judge(self, tool: Mapping[str, Any], param: str, *, defined: bool = True) -> None:
        """Raises PolicyViolation. A tool that is not `defined` here is only named; its address stands in `tools`."""
        if not self._types.allows(tool["type"]):
            raise _refused("type_not_allowed", "A tool", "type", tool["type"], param)
        kind = plain(tool["type"])
        if kind.startswith(("function", "custom")):
            for name in _names(tool):
                if not self._names.allows(name):
                    raise _refused("name_not_allowed", "A tool", "name", name, param)
        addresses = {key: tool[key] for key in ADDRESSES if tool.get(key) is not None}
        if not addresses and not kind.startswith("mcp"):
            return
        if not self._labels.allows(tool.get("server_label")):
            raise _refused("mcp_not_allowed", "An MCP server", "server_label", tool.get("server_label"), param)
        for key, address in addresses.items():
            if not (self._serves(address) if key == "server_url" else self._connectors.allows(address)):
                raise _refused("mcp_not_allowed", "An MCP server", key, address, param)
        if defined and not addresses and "*" not in self.mcp_servers and self.mcp_labels == ANY:
            raise _refused("mcp_not_allowed", "An MCP server", "server_url", None, param)

    def _serves(self, url: object) -> bool:
        if "*" in self.mcp_servers:
            return True
        asked = URL.fullmatch(url) if isinstance(url, str) else None
        return asked is not None and any(_covers(server, _place(asked)) for server in self._servers)

    @cached_property
    def _servers(self) -> list[re.Match[str]]:
        return [match for match in map(SERVER.fullmatch, self.mcp_servers) if match]

    @cached_property
    def _types(self) -> Globs:
        return Globs(self.allow_types, self.deny_types + self._off())

    @cached_property
    def _harmless(self) -> frozenset[str]:
        """The ordinary types that are allowed whatever the name of a tool."""
        named = () if self._names.open else ("function", "custom")
        return frozenset(kind for kind in ORDINARY_TOOLS if kind not in named and self._types.allows(kind))

    @cached_property
    def _names(self) -> Globs:
        return Globs(self.allow_names, self.deny_names)

    @cached_property
    def _labels(self) -> Globs:
        return Globs(self.mcp_labels, self._off())

    @cached_property
    def _connectors(self) -> Globs:
        everywhere = ANY if "*" in self.mcp_servers else ()
        return Globs(everywhere if self.mcp_connectors is None else self.mcp_connectors)

    def _off(self) -> tuple[str, ...]:
        return tuple(glob for switch, globs in SWITCHES.items() if not getattr(self, switch) for glob in globs)


def _are_all(harmless: frozenset[str], tools: object) -> bool:
    """Whether all are allowed at first sight: a quarter of the work for what most tools are."""
    if not isinstance(tools, list):
        return False
    try:
        for tool in tools:
            if tool["type"] not in harmless or not tool.keys() <= USUAL_NAMES:
                return False
    except (AttributeError, KeyError, TypeError):  # what has no type that is a string
        return False
    return True


def _each(tools: object, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every tool of a list and those inside it, with the place to blame: `where`, its {} filled with an index.

    Raises PolicyViolation for what is no list of objects that have a type.
    """
    waiting = [(tools, where)]
    while waiting:
        listed, where = waiting.pop()
        if listed is None:
            continue
        if not isinstance(listed, list):
            found = "A list of tools is something else; only an array is allowed."
            raise PolicyViolation("not_an_array", found, param=where.removesuffix("[{}]"))
        for index, tool in enumerate(listed):
            param = where.format(index)
            if not isinstance(tool, dict):
                found = "A tool is something else than an object; only objects are allowed."
                raise PolicyViolation("not_an_object", found, param=param)
            if not isinstance(tool.get("type"), str):
                found = "A tool has no type, or one that is no string; only strings are allowed."
                raise PolicyViolation("no_type", found, param=param)
            _refuse_lookalikes(tool, param)
            yield param, tool
            if "tools" in tool:
                waiting.append((tool["tools"], param))


def _brought(item: object) -> Iterator[object]:
    """What stands under `tools` in an item, however deep.

    What a server told of itself (`mcp_list_tools`) and what a model made up (`arguments`) gives no tools.
    """
    waiting = [item]
    while waiting:
        found = waiting.pop()
        if isinstance(found, list):
            waiting += found
        elif isinstance(found, dict) and found.get("type") != "mcp_list_tools":
            for name, inner in found.items():
                if name == "tools":
                    yield inner
                elif isinstance(inner, (list, dict)) and name != "arguments":
                    waiting.append(inner)


def _names(tool: Mapping[str, Any]) -> list[object]:
    """A tool's name wherever a dialect has it: Chat Completions puts it one level deeper. None stands for none."""
    holders = (tool, tool.get("function"), tool.get("custom"))
    return [holder["name"] for holder in holders if isinstance(holder, dict) and "name" in holder] or [None]


def _covers(server: re.Match[str], asked: tuple[str, str, int]) -> bool:
    """Whether an entry of `mcp_servers` stands for a place."""
    scheme, host, port = _place(server)
    if server["below"]:
        return asked[1].endswith(f".{host}") and asked[::2] == (scheme, port)
    return asked == (scheme, host, port)


def _place(match: re.Match[str]) -> tuple[str, str, int]:
    """The scheme, host and port that a URL or an entry of `mcp_servers` means."""
    scheme = (match["scheme"] or "https").lower()
    return scheme, match["host"].lower().removesuffix("."), int(match["port"] or (443 if scheme == "https" else 80))


def _identity(tool: Mapping[str, Any]) -> tuple[str, str | None]:
    """What a tool_choice tells a tool from others by."""
    name = tool.get("server_label", tool.get("name"))
    return tool["type"], name if isinstance(name, str) else None


def _without(denied: list[Mapping[str, Any]], tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The tools that are left; one that only held denied ones goes with them."""
    gone = {id(tool) for tool in denied}
    kept = []
    for tool in tools:
        inner = tool.get("tools") or []
        left = _without(denied, inner)
        if id(tool) not in gone and (left or not inner):
            kept.append({**tool, "tools": left} if inner else tool)
    return kept


def _refuse_lookalikes(tool: object, param: str) -> None:
    if (name := lookalike_in(tool)) is not None:
        found = f"A tool has a field '{name}' that only looks like one that is judged; only that one is allowed."
        raise PolicyViolation("lookalike", found, param=param)


def _refused(reason: str, whose: str, key: str, value: object, param: str) -> PolicyViolation:
    """A refusal that shows the caller its own text, shortened."""
    found = f"no {key}" if value is None else f"a {key} that is no string"
    if isinstance(value, str):
        found = f"the {key} '{value[:48]}'"
    return PolicyViolation(reason, f"{whose} has {found}; it is not allowed.", param=param)
