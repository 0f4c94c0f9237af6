"""Walks the JSON values of a request at any depth: without recursion, and within a bound."""

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from proxy.wire.errors import PolicyViolation
from proxy.wire.fields import fold_name
from proxy.wire.loggable import in_ascii

MAX_VALUES = 1_000_000  # about half a second of work
TOOLS = "tools"
ITEM_FIELDS = ("input", "items")
CONTAINERS = frozenset({dict, list})
# Fields of a request that give a model no tools: the names in `metadata` are the caller's own, and `tool_choice` only
# names tools.
FIELDS_WITHOUT_LISTS = frozenset({"metadata", "tool_choice"})
# What a model wrote. It is given no tools there.
WRITTEN = frozenset({"arguments"})
# Plain names of free-form objects in tools and settings: a property called `tools` is no list of tools.
SCHEMAS = frozenset({"arguments", "headers", "inputschema", "outputschema", "parameters", "schema"})
# Texts, numbers, switches and schemas of tools: a tool with only these fields has no address and contains no others.
PLAIN_TOOL_FIELDS = frozenset({
    "type", "name", "description", "parameters", "strict", "defer_loading", "output_schema", "allowed_callers",
    "search_context_size", "vector_store_ids", "max_num_results", "display_width", "display_height", "size", "quality",
    "output_format", "model", "execution",
})  # fmt: skip
LONGEST_CACHED_CHARS = 64  # a longer text is not a name, and would only fill the cache


def walk(roots: Iterable[object], param: str) -> Iterator[tuple[int, dict[str, Any] | str, list[Any]]]:
    """Yield each object and each string in JSON values: the index of its root, itself, and the values to walk next.

    Arrays are entered, objects are not: the consumer appends what it needs of an object to the values to walk next.
    Raises PolicyViolation for `param` when there are too many values to be walked without delaying other requests.
    """
    left = MAX_VALUES
    for index, root in enumerate(roots):
        waiting: list[Any] = [root]
        while waiting:
            value = waiting.pop()
            kind = type(value)  # parsed JSON has no subclasses; this is a third faster than isinstance
            if kind is str:
                yield index, value, waiting
            elif kind is dict or kind is list:
                left -= len(value)
                if left < 0:
                    raise _too_many_values(param)
                if kind is list:
                    waiting += value
                else:
                    yield index, value, waiting


def plain_name(name: str) -> str:
    """Return a name as the most lenient reader compares it: folded (see `fold_name`), and without underscores."""
    return _cached_plain_name(name) if len(name) <= LONGEST_CACHED_CHARS else _cached_plain_name.__wrapped__(name)


@lru_cache(4096)
def _cached_plain_name(name: str) -> str:
    return fold_name(name).replace("_", "")


class ToolList(NamedTuple):
    """What stands under a name that reads as `tools`."""

    param: str
    """Where: `tools`, or the value that contains it (`tools[2]`, `input[3]`, `prompt`)."""
    name: str
    """The name as the caller wrote it."""
    value: Any
    """An array of tools, if the request is correct."""
    is_nested: bool
    """Whether it is inside another list of tools."""


def tool_lists(body: Mapping[str, Any]) -> list[ToolList]:
    """Return every list of tools that a request gives a model, in any spelling of the name and at any depth.

    Those are `tools`, the lists inside their tools, in items of the input, in variables of a prompt, and in every other
    field, because an upstream may read it. No tools are what an MCP server reports (`mcp_list_tools`), what a model
    wrote (`arguments`), schemas, and `metadata`. Raises PolicyViolation for too many values.
    """
    itself = [ToolList(TOOLS, TOOLS, body[TOOLS], is_nested=False)] if TOOLS in body else []
    return itself + nested_tool_lists(body)


def nested_tool_lists(body: Mapping[str, Any]) -> list[ToolList]:
    """Return the lists of tools of a request other than `tools` itself: nearly all requests have none.

    Raises PolicyViolation for too many values.
    """
    waiting: list[Search] = []
    for field, value in body.items():
        kind = type(value)
        if (kind is not list and kind is not dict) or field in FIELDS_WITHOUT_LISTS:
            continue
        if field == TOOLS:
            waiting += _unusual_tools(value)
        elif field in ITEM_FIELDS:
            for index, item in _unusual_items(value if kind is list else [value]):
                waiting.append(Search(item, field, index, WRITTEN, is_nested=False))
        else:
            waiting.append(Search(value, field, None, SCHEMAS, is_nested=False))
    found: list[ToolList] = []
    if waiting:
        _search(waiting, found)
    return found


def has_tools_beside_tools(body: Mapping[str, Any]) -> bool:
    """Whether a request may give a model tools in another field than `tools`: false for nearly all requests."""
    for field, value in body.items():
        if type(value) is list or type(value) is dict:
            if field == TOOLS or field in FIELDS_WITHOUT_LISTS:
                continue
            if field in ITEM_FIELDS and type(value) is list and not _unusual_items(value):
                continue
            if tool_lists({field: value}):
                return True
    return False


def tool_lists_in(value: Any, param: str) -> list[ToolList]:
    """Return the lists of tools in one tool or one `tool_choice`, all for this param."""
    found: list[ToolList] = []
    if type(value) in CONTAINERS:
        _search([Search(value, param, None, SCHEMAS, is_nested=False)], found)
    return found


def is_tool_report(item: Mapping[str, Any]) -> bool:
    """Whether the tools in an item are those that an MCP server reported, to every reader."""
    return item.get("type") == "mcp_list_tools" and [plain_name(name) for name in item].count("type") == 1


class Search(NamedTuple):
    """A container in which lists of tools are searched, and where it stands in the request."""

    value: Any
    field: str
    position: int | None
    skipped: frozenset[str]
    is_nested: bool


def _unusual_tools(tools: Any) -> list[Search]:
    """Return the tools of `tools` that may contain others: most are functions, whose fields are texts and schemas."""
    found = []
    for index, tool in enumerate(tools) if type(tools) is list else ((None, tools),):
        kind = type(tool)
        if kind is list or (kind is dict and not PLAIN_TOOL_FIELDS.issuperset(tool)):
            found.append(Search(tool, TOOLS, index, SCHEMAS, is_nested=True))
    return found


def _unusual_items(items: list[Any]) -> list[tuple[int, Any]]:
    """Return the items that may contain tools, with their index.

    Most contain none: they have only strings, and perhaps parts that have only strings. Deciding this here takes a
    fifth of the time of a search.
    """
    found = []
    for index, item in enumerate(items):
        if type(item) is dict and TOOLS not in item:
            parts: Any = ()
            for name, value in item.items():
                if type(value) is str:
                    continue
                if value and type(value) is list and not parts:
                    parts = value
                elif value or _is_empty_list_of_tools(name, value):
                    break
            else:
                if not parts or (parts is item.get("content") and _are_plain_parts(parts)):
                    continue
        if item and type(item) in CONTAINERS:
            found.append((index, item))
    return found


def _are_plain_parts(parts: Any) -> bool:
    for part in parts:
        if type(part) is not dict or TOOLS in part:
            return False
        for name, value in part.items():
            if type(value) is not str and (value or _is_empty_list_of_tools(name, value)):
                return False
    return True


def _is_empty_list_of_tools(name: str, value: Any) -> bool:
    return type(value) in CONTAINERS and plain_name(name) == TOOLS


def _search(waiting: list[Search], found: list[ToolList]) -> None:
    """Add the lists of tools in containers, and those inside their tools. Raises PolicyViolation for many values."""
    left = MAX_VALUES
    while waiting:
        root, field, index, skipped, is_nested = waiting.pop()
        inside = [root]
        while inside:
            value = inside.pop()
            left -= len(value)
            if left < 0:
                raise _too_many_values(field)
            if type(value) is list:
                inside += [inner for inner in value if inner and type(inner) in CONTAINERS]
                continue
            for name, inner in _tools_and_containers(value, allows_texts=field == "prompt"):
                plain = plain_name(name)
                if plain != TOOLS:
                    if inner and plain not in skipped:
                        inside.append(inner)
                elif is_nested or skipped is not WRITTEN or name != TOOLS or not is_tool_report(value):
                    found.append(ToolList(_param(field, index), name, inner, is_nested))
                    if type(inner) in CONTAINERS:
                        waiting.append(Search(inner, field, index, SCHEMAS, is_nested=True))


def _tools_and_containers(value: dict[str, Any], *, allows_texts: bool) -> list[tuple[str, Any]]:
    """The fields of an object that are containers, and `tools` whatever it is.

    The variables of a prompt have names of the caller's own: a text among them that is called `tools` is no tool.
    """
    fields = [(name, inner) for name, inner in value.items() if type(inner) in CONTAINERS]
    inner = value.get(TOOLS)
    if inner is not None and type(inner) not in CONTAINERS and not allows_texts:
        fields.append((TOOLS, inner))
    return fields


def _param(field: str, index: int | None) -> str:
    shown = in_ascii(field, 64)
    return shown if index is None else f"{shown}[{index}]"


def _too_many_values(param: str) -> PolicyViolation:
    found = f"The input has too many values to be checked; the limit is {MAX_VALUES}."
    return PolicyViolation("too_many_values", found, param=param)
