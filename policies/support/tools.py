"""Kinds of tools: who runs a tool, what counts as a call, and which names resemble those that policies check.

Source: https://platform.openai.com/docs/guides/tools and, for items, what was measured to count for `max_tool_calls`.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from policies.support.globs import LONGEST_CACHED_CHARS, AllowList
from policies.support.walk import (
    CONTAINERS,
    PLAIN_TOOL_FIELDS,
    SCHEMAS,
    TOOLS,
    nested_tool_lists,
    plain_name,
)
from proxy.wire.call import PLAIN_FIELDS, Call, unaffected_by
from proxy.wire.errors import PolicyViolation
from proxy.wire.fields import fold_name
from proxy.wire.loggable import in_ascii

CALLER_TYPES = frozenset({
    "function", "custom", "local_shell", "apply_patch", "computer", "computer_use", "computer_use_preview",
})  # fmt: skip
# Types of tools that have no address: for them a fast check is enough.
TYPES_WITHOUT_ADDRESS = (
    "apply_patch", "code_interpreter", "computer", "computer_use", "computer_use_preview", "custom", "file_search",
    "function", "image_generation", "local_shell", "shell", "web_search", "web_search_preview",
)  # fmt: skip
ADDRESS_FIELDS = ("server_url", "connector_id", "tunnel_id")  # what an MCP server may be reached by
CHECKED_FIELDS = frozenset({*ADDRESS_FIELDS, "server_label", "type", "name", "tools", "function", "custom"})
_CHECKED_PLAIN_NAMES = frozenset(map(plain_name, CHECKED_FIELDS))
# Fields of a request that give a backend no tools other than those in `tools` and `input`. Some other fields continue
# something that had tools, and what unknown fields do is unknown.
FIELDS_WITHOUT_TOOLS = frozenset({
    "background", "include", "input", "instructions", "max_output_tokens", "max_tool_calls", "metadata", "model",
    "parallel_tool_calls", "prompt_cache_key", "prompt_cache_retention", "reasoning", "safety_identifier",
    "service_tier", "store", "stream", "stream_options", "temperature", "text", "tool_choice", "tools", "top_logprobs",
    "top_p", "truncation", "user", "seed", "stop", "top_k",
})  # fmt: skip
_HUMPS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|(?<=[A-Za-z])(?=[0-9])")  # where a word begins
_PLAIN = re.compile(r"(?:[a-z]+|[0-9]+)(?:_(?:[a-z]+|[0-9]+))*")
_JOINTS = re.compile(r"[_\s]+")
_INNER_JOINTS = re.compile(r"(?<=[a-z])_(?=[a-z])")
NO_CALLS = frozenset({"message", "reasoning"})  # almost all items
CALLER_CALLS = frozenset({"local_shell_call", "apply_patch_call", "computer_call"})
CALL_KINDS = {
    "function_call": "function",
    "custom_tool_call": "custom",
    "web_search_call": "server",
    "file_search_call": "server",
    "code_interpreter_call": "server",
    "image_generation_call": "server",
    "mcp_call": "server",
    "program": "server",
}


def find_lookalike(tool: object) -> str | None:
    """Return a field of a tool that a lenient upstream may read as one that policies check (`serverUrl`), printable."""
    for holder in tool_parts(tool):
        for name in sorted(holder.keys() - PLAIN_TOOL_FIELDS - CHECKED_FIELDS):
            if plain_name(name) in _CHECKED_PLAIN_NAMES:
                return in_ascii(name, 32)[:48]
    return None


def tool_parts(tool: object) -> Iterator[dict[str, Any]]:
    """Yield a tool and the objects inside it, at any depth, without schemas and the tools inside it."""
    waiting = [tool]
    while waiting:
        value = waiting.pop()
        if type(value) is dict:
            yield value
            waiting += [
                inner
                for name, inner in value.items()
                if type(inner) in CONTAINERS and (plain := plain_name(name)) not in SCHEMAS and plain != TOOLS
            ]
        elif type(value) is list:
            waiting += [inner for inner in value if type(inner) in CONTAINERS]


def plain_type(kind: str) -> str:
    """Return a type in the protocol's spelling: `codeInterpreter`, `Code-Interpreter` are `code_interpreter`."""
    if _PLAIN.fullmatch(kind):
        return kind
    visible = "".join(filter(str.isprintable, unicodedata.normalize("NFKC", kind)))
    return _JOINTS.sub("_", fold_name(_HUMPS.sub("_", visible)))


def type_spellings(kind: str) -> tuple[str, str]:
    """Return the spellings that a deny list matches beside a type itself: plain, and without joints between letters."""
    plain = plain_type(kind)
    return plain, _INNER_JOINTS.sub("", plain)


class TypeList:
    """Types of tools that are allowed, exactly as written, less those that are denied in any spelling."""

    def __init__(self, allow: Iterable[str], deny: Iterable[str] = ()) -> None:
        deny = tuple(deny)
        others = [spelling for glob in deny if "[" not in glob for spelling in type_spellings(glob)]
        self._names = AllowList(allow, (*deny, *others))
        self.allows_all = self._names.allows_all
        self._cached = lru_cache(1024)(self._decide)

    def allows(self, kind: str) -> bool:
        if self.allows_all:
            return True
        return self._cached(kind) if len(kind) <= LONGEST_CACHED_CHARS else self._decide(kind)

    def _decide(self, kind: str) -> bool:
        return self._names.allows(kind) and not any(map(self._names.denies, type_spellings(kind)))


def has_server_tools(body: Mapping[str, Any]) -> bool:
    """Whether a request offers tools that the server runs, anywhere in it; a prompt template may contain some."""
    if body.get("prompt") is not None or _include_server_tool(body.get(TOOLS)):
        return True
    try:
        nested = nested_tool_lists(body)
    except PolicyViolation:  # too many values to look for tools among them
        return True
    return bool(nested) and any(_include_server_tool(found.value) for found in nested if found.param != TOOLS)


@unaffected_by(PLAIN_FIELDS)
def offers_server_tools(call: Call) -> bool:
    """`has_server_tools` as a fact of a call."""
    return has_server_tools(call.body)


def _include_server_tool(tools: Any) -> bool:
    """Whether a list has a tool that the server runs, other than inside a tool."""
    if not isinstance(tools, list):
        return tools is not None
    try:
        for tool in tools:
            if tool["type"] not in CALLER_TYPES and not _has_caller_type(tool):  # the first test decides most of them
                return True
    except (KeyError, TypeError):  # without a type, or with one that is not a string: an unknown tool
        return True
    return False


def _has_caller_type(tool: Any) -> bool:
    kind = plain_type(tool["type"]) if isinstance(tool["type"], str) else None
    if kind == "namespace":
        return isinstance(tool.get("tools"), list)  # which tools, is found when that list is checked
    if kind == "shell":
        environment = tool.get("environment")
        return isinstance(environment, dict) and environment.get("type") == "local"
    if kind == "tool_search":
        return tool.get("execution") == "client"  # type: ignore[no-any-return]
    return kind in CALLER_TYPES


def may_have_hidden_tools(body: Mapping[str, Any]) -> bool:
    """Whether a backend may run tools that a request does not offer: it continues something, or has unknown fields."""
    if FIELDS_WITHOUT_TOOLS.issuperset(body):
        return False
    return any(body[name] is not None for name in body.keys() - FIELDS_WITHOUT_TOOLS)


def kind_of_call(item: Mapping[str, Any]) -> str | None:
    """Return what an output item counts as: "server", "function", "custom", "unknown", or None if it is no such call.

    Other calls that the caller runs (a local shell, a patch, a computer) are None.
    """
    kind = item.get("type")
    if not isinstance(kind, str) or kind in NO_CALLS:
        return None
    kind = plain_type(kind)
    if kind in CALLER_CALLS:
        return None
    if kind == "shell_call":
        environment = item.get("environment")
        if not isinstance(environment, dict):
            return "unknown"  # it does not say where it runs
        return None if environment.get("type") == "local" else "server"
    if kind == "tool_search_call":
        return None if item.get("execution") == "client" else "server"
    return CALL_KINDS.get(kind, "unknown" if kind.endswith("_call") else None)
