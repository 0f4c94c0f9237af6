"""The request's instructions and input as the messages that chat templates expect.

Source: https://platform.openai.com/docs/api-reference/responses/create#responses-create-input
"""

from collections.abc import Callable, Mapping
from typing import Any

import orjson

from backends.local.request.input_files import read_input_file
from backends.local.request.validation import (
    invalid_type,
    invalid_value,
    missing_parameter,
    shorten,
    unsupported_value,
)
from backends.local.speech.segments import INPUT_PARAMETER, flat_name
from proxy.wire.errors import RequestError

JSON = dict[str, Any]

ROLES = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}
# Which key of a content part contains its text.
TEXT_KEYS = {"input_text": "text", "output_text": "text", "refusal": "refusal"}


def build_messages(body: Mapping[str, Any], *, convert_call_id: Callable[[str], str] = str) -> list[JSON]:
    """Return the conversation, oldest message first. Raises RequestError for input that a text model cannot read.

    `convert_call_id` turns the ids of calls into those that the model's template accepts.
    """
    messages = _Messages(convert_call_id)
    if body.get("instructions"):
        messages.add_text("system", body["instructions"])
    given = body.get("input")
    if isinstance(given, str):
        messages.add_text("user", given)
    elif isinstance(given, list):
        for index, item in enumerate(given):
            messages.add_item(item, f"input[{index}]")
    elif given is not None:
        raise invalid_type("input", "a string or an array of objects", given)
    messages.check_calls_answered()
    if given is None or not messages.found:
        raise missing_parameter("input")
    return messages.found


class _Messages:
    """Collects messages, item by item."""

    def __init__(self, convert_call_id: Callable[[str], str]) -> None:
        self.found: list[JSON] = []
        self._convert_call_id = convert_call_id
        self._item_ids: set[str] = set()
        self._open_calls: dict[str, str] = {}  # call_id -> name, of calls without an output
        self._reasoning = ""  # belongs to the next assistant message

    def add_item(self, item: Any, where: str) -> None:
        if not isinstance(item, dict):
            raise invalid_type(where, "an object", item)
        self._check_unique(item.get("id"))
        match _item_type(item, where):
            case "message":
                self.add_text(_read_role(item, where), _read_text(item.get("content"), f"{where}.content"))
            case "function_call":
                self._add_call(item, where, _load_arguments(_read_string(item, "arguments", where)))
            case "custom_tool_call":
                self._add_call(item, where, {INPUT_PARAMETER: _read_string(item, "input", where)})
            case "function_call_output" | "custom_tool_call_output":
                self._add_output(item, where)
            case "reasoning":
                self._reasoning = _read_reasoning(item)
            case "additional_tools":
                pass  # `read_tools` reads them
            case "item_reference":
                item_id = shorten(str(item.get("id")))
                raise RequestError(f"Item with id '{item_id}' not found.", status=404, param="input")
            case other:
                message = f"this model reads messages and function calls, not '{shorten(other)}'."
                raise unsupported_value(where, message)

    def add_text(self, role: str, text: str) -> None:
        """Add a message. System messages at the beginning are joined, because most templates accept only one."""
        if role == "system" and len(self.found) == 1 and self.found[0]["role"] == "system":
            self.found[0]["content"] += "\n\n" + text
            return
        message = {"role": role, "content": text}
        if role == "assistant" and self._reasoning:
            message["reasoning_content"] = self._reasoning  # the key that templates of reasoning models read
        self._reasoning = ""
        self.found.append(message)

    def check_calls_answered(self) -> None:
        for call_id in self._open_calls:
            raise RequestError(f"No tool output found for function call {shorten(call_id)}.", param="input")

    def _add_call(self, item: JSON, where: str, arguments: Any) -> None:
        """Add a call to the assistant message that made it."""
        call_id, name = (_read_string(item, key, where) for key in ("call_id", "name"))
        namespace = item.get("namespace")
        name = flat_name(name, namespace if isinstance(namespace, str) else None)
        function = {"name": name, "arguments": arguments}
        if not self.found or self.found[-1]["role"] != "assistant":
            self.add_text("assistant", "")
        calls = self.found[-1].setdefault("tool_calls", [])
        calls.append({"id": self._convert_call_id(call_id), "type": "function", "function": function})
        self._open_calls[call_id] = name

    def _add_output(self, item: JSON, where: str) -> None:
        call_id = _read_string(item, "call_id", where)
        name = self._open_calls.pop(call_id, None)
        if name is None:
            raise RequestError(
                f"No tool call found for function call output with call_id {shorten(call_id)}.", param="input"
            )
        text = _read_text(item.get("output"), f"{where}.output")
        message = {"role": "tool", "tool_call_id": self._convert_call_id(call_id), "name": name, "content": text}
        self.found.append(message)

    def _check_unique(self, item_id: Any) -> None:
        if not isinstance(item_id, str):
            return
        if item_id in self._item_ids:
            raise RequestError(
                f"Duplicate item found with id {shorten(item_id)}. "
                "Remove duplicate items from your input and try again.",
                param="input",
            )
        self._item_ids.add(item_id)


def _item_type(item: JSON, where: str) -> str:
    """Return the type of an item, which messages and references may omit."""
    kind = item.get("type")
    if isinstance(kind, str):
        return kind
    if kind is not None:
        raise invalid_type(f"{where}.type", "a string", kind)
    if "role" in item:
        return "message"
    if "id" in item:
        return "item_reference"
    raise missing_parameter(f"{where}.type")


def _read_role(item: JSON, where: str) -> str:
    role = _read_string(item, "role", where)
    if role not in ROLES:
        raise invalid_value(f"{where}.role", role, "'user', 'assistant', 'system' and 'developer'")
    return ROLES[role]


def _read_text(content: Any, where: str) -> str:
    """Return a string unchanged, or the joined texts of its parts."""
    if isinstance(content, str):
        return content
    if content is None:
        raise missing_parameter(where)
    if not isinstance(content, list):
        raise invalid_type(where, "a string or an array of objects", content)
    return "".join(_read_part(part, f"{where}[{index}]") for index, part in enumerate(content))


def _read_part(part: Any, where: str) -> str:
    if not isinstance(part, dict):
        raise invalid_type(where, "an object", part)
    kind = _read_string(part, "type", where)
    if kind == "input_file":
        return read_input_file(part, where)
    if kind not in TEXT_KEYS:
        raise unsupported_value(where, f"this model reads text, not '{shorten(kind)}'.")
    return _read_string(part, TEXT_KEYS[kind], where)


def _read_reasoning(item: JSON) -> str:
    """Return the reasoning that a local model wrote in an earlier turn; encrypted reasoning cannot be read."""
    parts = item.get("content")
    texts = [part.get("text") for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
    return "".join(text for text in texts if isinstance(text, str))


def _read_string(item: JSON, key: str, where: str) -> str:
    value = item.get(key)
    if value is None:
        raise missing_parameter(f"{where}.{key}")
    if not isinstance(value, str):
        raise invalid_type(f"{where}.{key}", "a string", value)
    return value


def _load_arguments(text: str) -> Any:
    """Return arguments as an object, so that templates format them; anything else stays text."""
    try:
        arguments = orjson.loads(text or "{}")
    except orjson.JSONDecodeError:
        return text
    return arguments if isinstance(arguments, dict) else text
