"""Decides which tools a model may be given: by type, by name, and by the MCP server behind them.

Request: checks every tool of `tools`, those inside others (`namespace`), those in items of `input` (`additional_tools`,
    `tool_search_output`), and those that `tool_choice` names. Refuses with `type_not_allowed`, `name_not_allowed` and
    `mcp_not_allowed`, or removes from `tools`; a tool_choice that names a removed tool is refused with `removed`. A
    prompt template can contain tools that the gateway never sees: `prompt_not_allowed`. What cannot be checked is
    refused with `not_an_array`, `not_an_object`, `no_type` and `too_many_values`; a field of a tool or a tool_choice
    that resembles one that is checked (`serverUrl`, `Tools`) with `lookalike`.
Response: passes.
Source: https://platform.openai.com/docs/api-reference/responses/create#responses-create-tools
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

from pydantic import field_validator

from policies import Policy, PolicyState, RequestCheck
from policies.support.globs import AllowList
from policies.support.tools import ADDRESS_FIELDS, HARMLESS_FIELDS, TYPES_WITHOUT_ADDRESS, find_lookalike
from policies.support.walk import walk
from proxy.context import Context
from proxy.wire.call import Call
from proxy.wire.errors import PolicyViolation
from proxy.wire.fields import normalize

Tool = dict[str, Any]
ANY = ("*",)
# The types of tools that each switch denies, with their versions. Some upstreams also run them for an MCP label.
SWITCHES = {
    "code_interpreter": ("code_interpreter", "code_interpreter_*"),
    "computer": ("computer", "computer_*"),
    "shell": ("shell", "shell_*", "local_shell", "local_shell_*", "apply_patch", "apply_patch_*"),
}
MODES = (None, "none", "auto", "required")  # the values of tool_choice that name no tool
# No user:password@, blank or backslash, and only a path after the host: no two readers find different hosts in it.
HOST = r"(?P<host>[a-z0-9_-]+(?:\.[a-z0-9_-]+)*\.?|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?"
URL = re.compile(rf"(?P<scheme>https?)://{HOST}(?:/[!-\[\]-~]*)?", re.ASCII | re.IGNORECASE)
SERVER = re.compile(rf"(?:(?P<scheme>https?)://)?(?P<below>\*\.)?{HOST}", re.ASCII | re.IGNORECASE)


class Tools(Policy):
    allow_types: tuple[str, ...] = ANY
    """Types of tools that are allowed; `*` and `?` are wildcards, "web_search*" matches all versions of it."""
    deny_types: tuple[str, ...] = ()
    """Types that are not, even if `allow_types` has them; matched after Unicode normalisation and case folding."""
    code_interpreter: bool = True
    """Whether code_interpreter is allowed."""
    computer: bool = True
    """Whether computer, computer_use and computer_use_preview are allowed."""
    shell: bool = True
    """Whether shell, local_shell and apply_patch are allowed."""
    allow_names: tuple[str, ...] = ANY
    """Names that tools of the types function and custom may have."""
    deny_names: tuple[str, ...] = ()
    """Names that they may not have, even if `allow_names` has them."""
    mcp_servers: tuple[str, ...] = ANY
    """What `server_url` may name: "host" or "*.domain" by https, "host:port", "http://host"; "*" is any URL."""
    mcp_connectors: tuple[str, ...] | None = None
    """What `connector_id` and `tunnel_id` may be. Default: anything while `mcp_servers` has "*", otherwise nothing."""
    mcp_labels: tuple[str, ...] = ANY
    """What `server_label` may be. The caller chooses it: it restricts servers, and does not confirm an address."""
    prompt: Literal["allow", "deny"] = "deny"
    """Whether a call may name a prompt template, whose tools cannot be checked here."""
    on_deny: Literal["reject", "remove"] = "reject"
    """What happens to a denied tool of `tools`: its call is refused, or the tool is removed."""

    text_keys: ClassVar[frozenset[str]] = frozenset({"allow_names", "deny_names", "mcp_connectors", "mcp_labels"})

    @field_validator("mcp_servers")
    @classmethod
    def _are_hosts(cls, servers: tuple[str, ...]) -> tuple[str, ...]:
        for server in servers:
            if server != "*" and not SERVER.fullmatch(server):
                raise ValueError(f"'{server}' is not like mcp.example.com, *.example.com, host:8443 or http://host")
        return servers

    def request_check(self, state: PolicyState) -> RequestCheck:
        del state
        denies_prompts, rules = self.prompt == "deny", ToolRules(self)
        allowed_types = rules.types_allowed_at_sight()

        def check(call: Call, _context: Context) -> Call:
            body = call.body
            if denies_prompts and body.get("prompt") is not None:
                message = "prompt names a template, which can contain any tools; only calls without one are allowed."
                raise PolicyViolation("prompt_not_allowed", message, param="prompt")
            has_tools = "tools" in body
            # Searching for the name costs a tenth of walking through a long input, which rarely has tools.
            in_items = call.encoded.count(b'"tools":') > has_tools
            in_choice = "tool_choice" in body and body["tool_choice"] not in MODES
            if in_items or in_choice or (has_tools and not _have_types(body["tools"], allowed_types)):
                return rules.apply(call, in_items=in_items)
            return call

        return check


class ToolRules:
    """The settings of a policy, compiled, and the checks by them."""

    def __init__(self, policy: Tools) -> None:
        off = tuple(glob for switch, globs in SWITCHES.items() if not getattr(policy, switch) for glob in globs)
        self._types = AllowList(policy.allow_types, policy.deny_types + off)
        self._names = AllowList(policy.allow_names, policy.deny_names)
        self._labels = AllowList(policy.mcp_labels, off)
        self._any_server = "*" in policy.mcp_servers
        connectors = (ANY if self._any_server else ()) if policy.mcp_connectors is None else policy.mcp_connectors
        self._connectors = AllowList(connectors)
        self._servers = [match for match in map(SERVER.fullmatch, policy.mcp_servers) if match]
        self._needs_address = not self._any_server and policy.mcp_labels == ANY
        self._rejects = policy.on_deny == "reject"

    def types_allowed_at_sight(self) -> frozenset[str]:
        """Return the types without an address that are allowed whatever the name of a tool."""
        named = () if self._names.allows_all else ("function", "custom")
        return frozenset(kind for kind in TYPES_WITHOUT_ADDRESS if kind not in named and self._types.allows(kind))

    def apply(self, call: Call, *, in_items: bool) -> Call:
        """Return the call without the denied tools. Raises PolicyViolation."""
        body = call.body
        if in_items:
            self._check_items("input", body.get("input"))
            self._check_items("items", body.get("items"))
        denied = list(self._denied(body.get("tools")))
        if "tool_choice" in body:
            self._check_choice(body["tool_choice"], denied)
        return call.with_fields(tools=_without(denied, body["tools"])) if denied else call

    def _check_items(self, field: str, items: object) -> None:
        for index, tools in _tools_in(items if isinstance(items, list) else [items], field):
            for param, tool in _each(tools, f"{field}[{index}]"):
                self._check(tool, param)

    def _denied(self, tools: object) -> Iterator[Tool]:
        """Yield the tools to remove. Raises PolicyViolation."""
        for param, tool in _each(tools, "tools[{}]"):
            try:
                self._check(tool, param)
            except PolicyViolation:
                if self._rejects:
                    raise
                yield tool

    def _check_choice(self, choice: object, denied: list[Tool]) -> None:
        if choice in MODES:
            return
        removed = set(map(_identity, denied))
        named = {"type": choice} if isinstance(choice, str) else choice
        _refuse_lookalikes(named, "tool_choice")
        names_several = isinstance(named, dict) and named.get("type") == "allowed_tools"
        for _, tools in _tools_in([named], "tool_choice") if names_several else [(0, [named])]:
            for param, tool in _each(tools, "tool_choice"):
                self._check(tool, param, is_defined=False)
                if _identity(tool) in removed:
                    message = "tool_choice names a tool that was removed; only one that is left is allowed."
                    raise PolicyViolation("removed", message, param=param)

    def _check(self, tool: Tool, param: str, *, is_defined: bool = True) -> None:
        """Raises PolicyViolation. A tool that is only named, not defined, has its address in `tools`."""
        if not self._types.allows(tool["type"]):
            raise _refusal("type_not_allowed", "A tool", "type", tool["type"], param)
        kind = normalize(tool["type"])
        if kind.startswith(("function", "custom")):
            for name in _names(tool):
                if not self._names.allows(name):
                    raise _refusal("name_not_allowed", "A tool", "name", name, param)
        addresses = {field: tool[field] for field in ADDRESS_FIELDS if tool.get(field) is not None}
        if not addresses and not kind.startswith("mcp"):
            return
        if not self._labels.allows(tool.get("server_label")):
            raise _refusal("mcp_not_allowed", "An MCP server", "server_label", tool.get("server_label"), param)
        for field, address in addresses.items():
            if not (self._allows_url(address) if field == "server_url" else self._connectors.allows(address)):
                raise _refusal("mcp_not_allowed", "An MCP server", field, address, param)
        if is_defined and not addresses and self._needs_address:
            raise _refusal("mcp_not_allowed", "An MCP server", "server_url", None, param)

    def _allows_url(self, url: object) -> bool:
        if self._any_server:
            return True
        match = URL.fullmatch(url) if isinstance(url, str) else None
        return match is not None and any(_covers(server, _endpoint(match)) for server in self._servers)


def _have_types(tools: object, allowed: frozenset[str]) -> bool:
    """Whether tools are of these types and have no unusual field: a quarter of the work for most tools."""
    if not isinstance(tools, list):
        return False
    try:
        for tool in tools:
            if tool["type"] not in allowed or not tool.keys() <= HARMLESS_FIELDS:
                return False
    except (AttributeError, KeyError, TypeError):  # not an object, or its type is missing or not a string
        return False
    return True


def _each(tools: object, where: str) -> Iterator[tuple[str, Tool]]:
    """Yield every tool of a list and those inside it, with its param: `where`, with an index in place of {}.

    Raises PolicyViolation for anything but a list of objects that have a type.
    """
    waiting = [(tools, where)]
    while waiting:
        listed, where = waiting.pop()
        if listed is None:
            continue
        if not isinstance(listed, list):
            found = "A list of tools is of another type; only an array is allowed."
            raise PolicyViolation("not_an_array", found, param=where.removesuffix("[{}]"))
        for index, tool in enumerate(listed):
            param = where.format(index)
            if not isinstance(tool, dict):
                found = "A tool is not an object; only objects are allowed."
                raise PolicyViolation("not_an_object", found, param=param)
            if not isinstance(kind := tool.get("type"), str):
                found = f"A tool has {_describe('type', kind)}; only a string is allowed."
                raise PolicyViolation("no_type", found, param=param)
            _refuse_lookalikes(tool, param)
            yield param, tool
            if "tools" in tool:
                waiting.append((tool["tools"], param))


def _tools_in(items: list[Any], param: str) -> Iterator[tuple[int, object]]:
    """Yield what is under `tools` in items, at any depth, with the index of the item.

    The tools that a server reports (`mcp_list_tools`) and what a model wrote (`arguments`) are not given to the model.
    """
    for index, value, waiting in walk(items, param):
        if isinstance(value, dict) and value.get("type") != "mcp_list_tools":
            for name, inner in value.items():
                if name == "tools":
                    yield index, inner
                elif isinstance(inner, (list, dict)) and name != "arguments":
                    waiting.append(inner)


def _names(tool: Tool) -> list[object]:
    """The names of a tool: Chat Completions has the name one level deeper. None stands for a tool without one."""
    holders = (tool, tool.get("function"), tool.get("custom"))
    return [holder["name"] for holder in holders if isinstance(holder, dict) and "name" in holder] or [None]


def _covers(server: re.Match[str], endpoint: tuple[str, str, int]) -> bool:
    """Whether an entry of `mcp_servers` allows an endpoint."""
    scheme, host, port = _endpoint(server)
    if server["below"]:
        return endpoint[1].endswith(f".{host}") and endpoint[::2] == (scheme, port)
    return endpoint == (scheme, host, port)


def _endpoint(match: re.Match[str]) -> tuple[str, str, int]:
    """The scheme, host and port in a URL or an entry of `mcp_servers`."""
    scheme = (match["scheme"] or "https").lower()
    return scheme, match["host"].lower().removesuffix("."), int(match["port"] or (443 if scheme == "https" else 80))


def _identity(tool: Mapping[str, Any]) -> tuple[str, str | None]:
    """What a tool_choice identifies a tool by."""
    name = tool.get("server_label", tool.get("name"))
    return tool["type"], name if isinstance(name, str) else None


def _without(denied: list[Tool], tools: list[Tool]) -> list[Tool]:
    """The tools that are left; one that contained only denied tools is removed with them."""
    removed = {id(tool) for tool in denied}
    kept = []
    for tool in tools:
        inner = tool.get("tools") or []
        left = _without(denied, inner)
        if id(tool) not in removed and (left or not inner):
            kept.append({**tool, "tools": left} if inner else tool)
    return kept


def _refuse_lookalikes(tool: object, param: str) -> None:
    if (name := find_lookalike(tool)) is not None:
        found = f"A tool has a field '{name}' that resembles one that is checked; only that one is allowed."
        raise PolicyViolation("lookalike", found, param=param)


def _refusal(reason: str, holder: str, field: str, value: object, param: str) -> PolicyViolation:
    return PolicyViolation(reason, f"{holder} has {_describe(field, value)}; it is not allowed.", param=param)


def _describe(field: str, value: object) -> str:
    """What was found in a field: the caller's own text, shortened."""
    if isinstance(value, str):
        return f"the {field} '{value[:48]}'"
    return f"no {field}" if value is None else f"a {field} that is not a string"
