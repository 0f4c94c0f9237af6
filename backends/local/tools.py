"""The request's function tools in the form that chat templates take, and the refusal of all other tools.

Source: https://platform.openai.com/docs/api-reference/responses/create#responses-create-tools
"""

from collections.abc import Mapping
from typing import Any

from backends.local.faults import missing, unsupported, wrong_type, wrong_value

JSON = dict[str, Any]


def tools_of(body: Mapping[str, Any], *, callable_by_model: bool) -> list[JSON]:
    """The functions that the model may call; none when `tool_choice` is "none". Raises RequestError."""
    tools = [_function(tool, f"tools[{index}]") for index, tool in enumerate(body.get("tools") or [])]
    if not _may_be_called(body.get("tool_choice")):
        return []
    if tools and not callable_by_model:
        raise unsupported("tools[0]", "this model cannot call functions; leave tools out.")
    return tools


def names_of(tools: list[JSON]) -> frozenset[str]:
    return frozenset(tool["function"]["name"] for tool in tools)


def _function(tool: Any, where: str) -> JSON:
    if not isinstance(tool, dict):
        raise wrong_type(where, "an object", tool)
    kind = tool.get("type")
    if kind is None:
        raise missing(f"{where}.type")
    if not isinstance(kind, str):
        raise wrong_type(f"{where}.type", "a string", kind)
    if kind != "function":
        raise unsupported(where, f"this model has no tools of type '{kind[:40]}'; it has those of type 'function'.")
    return {
        "type": "function",
        "function": {
            "name": _name(tool, where),
            "description": _optional(tool, "description", str, "a string", where) or "",
            "parameters": _optional(tool, "parameters", dict, "an object", where)
            or {"type": "object", "properties": {}},
        },
    }


def _name(tool: JSON, where: str) -> str:
    name = tool.get("name")
    if name is None or name == "":
        raise missing(f"{where}.name")
    if not isinstance(name, str):
        raise wrong_type(f"{where}.name", "a string", name)
    return name


def _optional(tool: JSON, key: str, shape: type, expected: str, where: str) -> Any:
    value = tool.get(key)
    if not isinstance(value, shape | None):
        raise wrong_type(f"{where}.{key}", expected, value)
    return value


def _may_be_called(choice: Any) -> bool:
    if isinstance(choice, dict):
        choice = choice.get("type")
        raise unsupported("tool_choice", "this model cannot be held to certain tools; it has 'auto' and 'none'.")
    if not isinstance(choice, str | None):
        raise wrong_type("tool_choice", "a string or an object", choice)
    if choice == "required":
        raise unsupported("tool_choice", "this model cannot be made to call a function; it has 'auto' and 'none'.")
    if choice not in (None, "auto", "none"):
        raise wrong_value("tool_choice", choice, "'auto' and 'none'")
    return choice != "none"
