"""Decides which tools a model may be given: by type, by name, and by the MCP server behind them.

Request: checks every tool of `tools`, those inside others (`namespace`), those in items of `input` (`additional_tools`,
    `tool_search_output`), in a prompt's variables and in any other field, at any depth, and those that `tool_choice`
    names. Refuses with `type_not_allowed`, `name_not_allowed` and `mcp_not_allowed`, or removes from `tools`; a
    tool_choice that names a removed tool is refused with `removed`. A prompt template can contain tools that the
    gateway never sees: `prompt_not_allowed`. What cannot be checked is refused with `not_an_array`, `not_an_object`,
    `no_type` and `too_many_values`; a name that resembles one that is checked (`serverUrl`, `Tools`) with `lookalike`.
    Where tools are restricted, fields in which other protocols give tools (`functions`, `plugins`, `mcp_servers` ...)
    are refused with `alternative_field`.
Response: passes.
Source: https://platform.openai.com/docs/api-reference/responses/create#responses-create-tools
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import field_validator

from policies import Policy, PolicyState, Repeatable, RequestCheck
from policies.support import alternatives
from policies.support.globs import AllowList
from policies.support.mcp import ServerList, require_servers
from policies.support.tools import (
    ADDRESS_FIELDS,
    TYPES_WITHOUT_ADDRESS,
    TypeList,
    find_lookalike,
    plain_type,
    tool_parts,
)
from policies.support.walk import PLAIN_TOOL_FIELDS, TOOLS, ToolList, has_tools_beside_tools, tool_lists, tool_lists_in
from proxy.context import Context
from proxy.wire.call import INPUT_OPERATIONS, Call, Operation
from proxy.wire.errors import PolicyViolation
from proxy.wire.loggable import clip
from proxy.wire.refusals import wrong_type

Tool = dict[str, Any]
ANY = ("*",)
# The types of tools that each switch denies, with their versions. Some upstreams also run them for an MCP label.
SWITCHES = {
    "code_interpreter": ("code_interpreter", "code_interpreter_*"),
    "computer": ("computer", "computer_*"),
    "shell": ("shell", "shell_*", "local_shell", "local_shell_*", "apply_patch", "apply_patch_*"),
}
MODES = (None, "none", "auto", "required")  # the values of tool_choice that name no tool


class Tools(Policy):
    operations: ClassVar[frozenset[Operation]] = INPUT_OPERATIONS

    allow_types: tuple[str, ...] = ANY
    """Types of tools that are allowed; `*` and `?` are wildcards, "web_search*" matches all versions of it."""
    deny_types: tuple[str, ...] = ()
    """Types that are not, even if `allow_types` has them, in any spelling: "web_search" denies webSearch too."""
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

    _are_servers = field_validator("mcp_servers")(require_servers)

    def request_check(self, state: PolicyState) -> RequestCheck:
        del state
        denies_prompts, rules = self.prompt == "deny", ToolRules(self)
        allowed_types, refuse_alternatives = rules.allowed_types, rules.alternatives_check()

        def check(call: Call, _context: Context) -> Call:
            body = call.body
            refuse_alternatives(body, call.query)
            if denies_prompts and body.get("prompt") is not None:
                message = "prompt names a template, which can contain any tools; only calls without one are allowed."
                raise PolicyViolation("prompt_not_allowed", message, param="prompt")
            has_choice = "tool_choice" in body and body["tool_choice"] not in MODES
            is_allowed = TOOLS not in body or _are_plain(body[TOOLS], allowed_types)
            if is_allowed and not has_choice and not has_tools_beside_tools(body):
                return call
            return rules.apply(call, tool_lists(body))

        return Repeatable(check)


class ToolRules:
    """The settings of a policy, compiled, and the checks by them."""

    def __init__(self, policy: Tools) -> None:
        off = tuple(glob for switch, globs in SWITCHES.items() if not getattr(policy, switch) for glob in globs)
        self._types = TypeList(policy.allow_types, policy.deny_types + off)
        self._names = AllowList(policy.allow_names, policy.deny_names)
        self._labels = AllowList(policy.mcp_labels)
        self._denied_labels = TypeList(ANY, off)
        self._servers = ServerList(policy.mcp_servers)
        any_connector = ANY if self._servers.allows_all else ()
        self._connectors = AllowList(any_connector if policy.mcp_connectors is None else policy.mcp_connectors)
        self._needs_address = not self._servers.allows_all and policy.mcp_labels == ANY
        self._rejects = policy.on_deny == "reject"
        named = () if self._names.allows_all else ("function", "custom")
        self.allowed_types = frozenset(
            kind for kind in TYPES_WITHOUT_ADDRESS if kind not in named and self._types.allows(kind)
        )
        """The types without an address that are allowed whatever the name of a tool."""

    def alternatives_check(self) -> alternatives.AlternativesCheck:
        """Return the function that refuses other fields with tools; it refuses none while every tool is allowed."""
        lists = (self._types, self._names, self._labels, self._connectors, self._servers)
        if all(names.allows_all for names in lists):
            return lambda _body, _query="": None
        return alternatives.alternatives_check(alternatives.TOOLS)

    def apply(self, call: Call, lists: Sequence[ToolList]) -> Call:
        """Return the call without the denied tools. Raises PolicyViolation."""
        body = call.body
        removable = () if self._rejects else {id(tool) for tool in _removable_tools(body.get(TOOLS))}
        denied, allowed = [], self.allowed_types
        for param, tool in _each(lists):
            if tool["type"] in allowed and tool.keys() <= PLAIN_TOOL_FIELDS:
                continue
            try:
                self._check(tool, param)
            except PolicyViolation:
                if id(tool) not in removable:
                    raise
                denied.append(tool)
        if "tool_choice" in body:
            self._check_choice(body["tool_choice"], denied)
        return call.with_fields(tools=_without(denied, body[TOOLS])) if denied else call

    def _check_choice(self, choice: object, denied: list[Tool]) -> None:
        if choice in MODES:
            return
        removed = set(map(_identity, denied))
        named = {"type": choice} if isinstance(choice, str) else choice
        param = "tool_choice"
        _refuse_lookalikes(named, param)
        names_several = isinstance(named, dict) and _is_of_type(named, "allowed_tools")
        itself = [] if names_several else [ToolList(param, TOOLS, [named], is_nested=False)]
        for _, tool in _each([*itself, *tool_lists_in(named, param)]):
            self._check(tool, param, is_defined=False)
            if _identity(tool) in removed:
                message = "tool_choice names a tool that was removed; only one that is left is allowed."
                raise PolicyViolation("removed", message, param=param)

    def _check(self, tool: Tool, param: str, *, is_defined: bool = True) -> None:
        """Raises PolicyViolation. A tool that is only named, not defined, has its address in `tools`."""
        if not self._types.allows(tool["type"]):
            raise _refusal("type_not_allowed", "A tool", "type", tool["type"], param)
        kind = plain_type(tool["type"])
        if kind.startswith(("function", "custom")):
            for name in _names(tool):
                if not self._names.allows(name):
                    raise _refusal("name_not_allowed", "A tool", "name", name, param)
        if tool.keys() <= PLAIN_TOOL_FIELDS and not kind.startswith("mcp"):
            return
        parts = list(tool_parts(tool))
        addresses = [(field, part[field]) for part in parts for field in ADDRESS_FIELDS if part.get(field) is not None]
        if not addresses and not kind.startswith("mcp"):
            return
        self._check_label(tool.get("server_label"), param)
        for field, address in addresses:
            if not (self._servers if field == "server_url" else self._connectors).allows(address):
                raise _refusal("mcp_not_allowed", "An MCP server", field, address, param)
        if is_defined and not addresses and self._needs_address:
            raise _refusal("mcp_not_allowed", "An MCP server", "server_url", None, param)

    def _check_label(self, label: object, param: str) -> None:
        is_denied = isinstance(label, str) and not self._denied_labels.allows(label)
        if is_denied or not self._labels.allows(label):
            raise _refusal("mcp_not_allowed", "An MCP server", "server_label", label, param)


def _are_plain(tools: object, allowed: frozenset[str]) -> bool:
    """Whether tools are of these types and have no field that needs a check: a quarter of the work for most tools."""
    if not isinstance(tools, list):
        return False
    try:
        for tool in tools:
            if tool["type"] not in allowed or not tool.keys() <= PLAIN_TOOL_FIELDS:
                return False
    except (AttributeError, KeyError, TypeError):  # not an object, or its type is missing or not a string
        return False
    return True


def _each(lists: Sequence[ToolList]) -> Iterator[tuple[str, Tool]]:
    """Yield every tool with its param. Raises PolicyViolation for anything but a list of objects that have a type."""
    for found in lists:
        if found.name != TOOLS:
            shown = alternatives.short_name(found.name)[:32]
            message = f"A list of tools is called '{shown}'; only 'tools' is allowed."
            raise PolicyViolation("lookalike", message, param=found.param)
        if found.value is None:
            continue
        if not isinstance(found.value, list):
            message = wrong_type(TOOLS, "an array of objects", found.value)
            raise PolicyViolation("not_an_array", message, param=found.param)
        for index, tool in enumerate(found.value):
            place = f"{TOOLS}[{index}]"
            param = place if found.param == TOOLS else found.param
            if not isinstance(tool, dict):
                raise PolicyViolation("not_an_object", wrong_type(place, "an object", tool), param=param)
            if not isinstance(kind := tool.get("type"), str):
                message = f"A tool has {_describe('type', kind)}; only a string is allowed."
                raise PolicyViolation("no_type", message, param=param)
            if not tool.keys() <= PLAIN_TOOL_FIELDS:
                _refuse_lookalikes(tool, param)
            yield param, tool


def _removable_tools(tools: object) -> Iterator[Tool]:
    """Yield the tools that can be removed from a list: its own, and those directly inside them."""
    waiting = [tools]
    while waiting:
        listed = waiting.pop()
        for tool in listed if isinstance(listed, list) else ():
            if isinstance(tool, dict):
                yield tool
                waiting.append(tool.get(TOOLS))


def _names(tool: Tool) -> list[object]:
    """The names of a tool: Chat Completions has the name one level deeper. None stands for a tool without one."""
    holders = (tool, tool.get("function"), tool.get("custom"))
    return [holder["name"] for holder in holders if isinstance(holder, dict) and "name" in holder] or [None]


def _is_of_type(tool: Tool, kind: str) -> bool:
    return isinstance(tool.get("type"), str) and plain_type(tool["type"]) == kind


def _identity(tool: Mapping[str, Any]) -> tuple[str, str | None]:
    """What a tool_choice identifies a tool by."""
    name = tool.get("server_label", tool.get("name"))
    return tool["type"], name if isinstance(name, str) else None


def _without(denied: list[Tool], tools: list[Tool]) -> list[Tool]:
    """The tools that are left; one that contained only denied tools is removed with them."""
    removed = {id(tool) for tool in denied}
    kept = []
    for tool in tools:
        inner = tool.get(TOOLS) or []
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
        return f"the {field} '{clip(value, 48)}'"
    return f"no {field}" if value is None else f"a {field} that is not a string"
