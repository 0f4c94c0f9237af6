"""Spends the work of a request's schemas and grammars before any of them is compiled.

Malformed parts cost nothing: the code that reads them reports them.
"""

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

from backends.local.grammar import charge_grammar, charge_schema
from backends.local.request.tools import JSON, is_too_long, tool_lists


def charge_grammars(body: Mapping[str, Any]) -> None:
    """Spend the work of all schemas and grammars. Raises RequestError, naming the part that exceeds the budget."""
    text_format = _object(_object(body.get("text")).get("format"))
    if text_format.get("type") == "json_schema":
        is_strict = text_format.get("strict") is True
        owner = f"response_format '{str(text_format.get('name'))[:64]}'"
        charge_schema(text_format.get("schema"), "text.format.schema", strict=is_strict, owner=owner)
    lists = tool_lists(body)
    if is_too_long(lists):
        return
    for tool, where in chain.from_iterable(_iterate_tools(given, where) for where, given in lists):
        if tool.get("type") == "function":
            is_strict, owner = tool.get("strict") is True, f"function '{str(tool.get('name'))[:64]}'"
            charge_schema(tool.get("parameters"), f"{where}.parameters", strict=is_strict, owner=owner)
        elif tool.get("type") == "custom":
            grammar = _object(tool.get("format"))
            definition, syntax = grammar.get("definition"), grammar.get("syntax")
            if grammar.get("type") == "grammar" and isinstance(definition, str) and isinstance(syntax, str):
                charge_grammar(definition, syntax, f"{where}.format.definition")


def _iterate_tools(tools: Any, where: str, *, is_nested: bool = False) -> Iterator[tuple[JSON, str]]:
    """Yield all tools with their places, those of namespaces too."""
    for index, tool in enumerate(tools if isinstance(tools, list) else ()):
        if isinstance(tool, dict):
            yield tool, f"{where}[{index}]"
            if tool.get("type") == "namespace" and not is_nested:
                yield from _iterate_tools(tool.get("tools"), f"{where}[{index}].tools", is_nested=True)


def _object(value: Any) -> JSON:
    return value if isinstance(value, dict) else {}
