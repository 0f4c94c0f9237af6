"""The request's instructions and input as the messages that chat templates expect.

A history may come from another model. What this one cannot read of it becomes a placeholder of a few words, so that a
chat can go on: parts of messages before the last user message, and items that a model or a server made. What the last
user message needs is refused.

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
from proxy.wire.pairing import call_not_found, duplicate_item, output_not_found

JSON = dict[str, Any]

ADDITIONAL_TOOLS = "additional_tools"  # the type of an item that adds tools in the middle of a conversation

ROLES = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}
# Items that a model or a server made, which this model cannot read.
FOREIGN_ITEMS = frozenset({
    "apply_patch_call", "code_interpreter_call", "compaction", "computer_call", "file_search_call",
    "image_generation_call", "local_shell_call", "mcp_approval_request", "mcp_call", "mcp_list_tools", "program",
    "program_output", "shell_call", "tool_search_call", "tool_search_output", "web_search_call",
})  # fmt: skip
MAX_KIND_CHARS = 40
# Which key of a content part contains its text.
TEXT_KEYS = {"input_text": "text", "output_text": "text", "refusal": "refusal"}


def build_messages(
    body: Mapping[str, Any], *, convert_call_id: Callable[[str], str] = str, ignored: list[str] | None = None,
    history_items: int = 0,
) -> list[JSON]:  # fmt: skip
    """Return the conversation, oldest message first. Raises RequestError for input that a text model cannot read.

    `convert_call_id` turns the ids of calls into those that the model's template accepts. The names of what was
    replaced by placeholders are appended to `ignored`. Errors count the caller's own items only, which follow the first
    `history_items`.
    """
    messages = _Messages(convert_call_id, [] if ignored is None else ignored)
    if body.get("instructions"):
        messages.add_text("system", body["instructions"])
    given = body.get("input")
    if isinstance(given, str):
        messages.add_text("user", given)
    elif isinstance(given, list):
        last_user = _last_user_message(given)
        messages.has_question = last_user >= 0
        for index, item in enumerate(given):
            if isinstance(item, dict) and item.get("type") == ADDITIONAL_TOOLS:
                continue  # `read_tools` reads them
            own = index - history_items
            messages.add_item(item, f"input[{own}]" if own >= 0 else f"history[{index}]", is_old=index < last_user)
    elif given is not None:
        raise invalid_type("input", "a string or an array of objects", given)
    messages.finish()
    if given is None or not messages.found:
        raise missing_parameter("input")
    return messages.found


class _Messages:
    """Collects messages, item by item."""

    def __init__(self, convert_call_id: Callable[[str], str], ignored: list[str]) -> None:
        self.found: list[JSON] = []
        self.has_question = False  # whether there is a user message: without one nothing is replaced
        self._ignored = ignored
        self._placeholders: list[str] = []  # of items; they become part of the next or the last assistant message
        self._convert_call_id = convert_call_id
        self._item_ids: set[str] = set()
        self._open_calls: dict[str, str] = {}  # call_id -> name, of calls without an output
        self._reasoning = ""  # belongs to the next assistant message

    def add_item(self, item: Any, where: str, *, is_old: bool) -> None:
        if not isinstance(item, dict):
            raise invalid_type(where, "an object", item)
        self._check_unique(item.get("id"))
        match _readable_type(item, where, is_old=is_old):
            case "message":
                role = _read_role(item, where)
                self.add_text(role, self._read_text(item.get("content"), f"{where}.content", is_old=is_old))
            case "function_call":
                self._add_call(item, where, _load_arguments(_read_string(item, "arguments", where)))
            case "custom_tool_call":
                self._add_call(item, where, {INPUT_PARAMETER: _read_string(item, "input", where)})
            case "function_call_output" | "custom_tool_call_output":
                self._add_output(item, where, is_old=is_old)
            case "reasoning":
                self._reasoning = _read_reasoning(item)
                if item.get("encrypted_content") is not None:
                    self._ignored.append("input.reasoning.encrypted_content")
            case "item_reference":
                item_id = shorten(str(item.get("id")))
                raise RequestError(f"Item with id '{item_id}' not found.", status=404, param="input")
            case other if is_old or (self.has_question and other in FOREIGN_ITEMS):
                self._placeholders.append(self._placeholder(other))
            case other:
                message = f"this model reads messages and function calls, not '{shorten(other)}'."
                raise unsupported_value(where, message)

    def add_text(self, role: str, text: str) -> None:
        """Add a message. System messages at the beginning are joined, because most templates accept only one."""
        if role != "assistant":
            self._flush_placeholders()
        if role == "system" and len(self.found) == 1 and self.found[0]["role"] == "system":
            self.found[0]["content"] += "\n\n" + text
            return
        placeholders, self._placeholders = self._placeholders, []
        message = {"role": role, "content": "\n\n".join([*placeholders, text] if text else placeholders)}
        if role == "assistant" and self._reasoning:
            message["reasoning_content"] = self._reasoning  # the key that templates of reasoning models read
        self._reasoning = ""
        self.found.append(message)

    def finish(self) -> None:
        """Check that all calls have their outputs, and add the last placeholders. Raises RequestError."""
        self._flush_placeholders()
        for call_id in self._open_calls:
            raise output_not_found(call_id)

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

    def _add_output(self, item: JSON, where: str, *, is_old: bool) -> None:
        call_id = _read_string(item, "call_id", where)
        name = self._open_calls.pop(call_id, None)
        if name is None:
            raise call_not_found(call_id)
        text = self._read_text(item.get("output"), f"{where}.output", is_old=is_old)
        message = {"role": "tool", "tool_call_id": self._convert_call_id(call_id), "name": name, "content": text}
        self.found.append(message)

    def _read_text(self, content: Any, where: str, *, is_old: bool) -> str:
        """Return a string unchanged, or the joined texts of its parts."""
        if isinstance(content, str):
            return content
        if content is None:
            raise missing_parameter(where)
        if not isinstance(content, list):
            raise invalid_type(where, "a string or an array of objects", content)
        return "".join(self._read_part(part, f"{where}[{index}]", is_old) for index, part in enumerate(content))

    def _read_part(self, part: Any, where: str, is_old: bool) -> str:  # noqa: FBT001
        if not isinstance(part, dict):
            raise invalid_type(where, "an object", part)
        kind = _read_string(part, "type", where)
        try:
            if kind == "input_file":
                return read_input_file(part, where)
            if kind not in TEXT_KEYS:
                raise unsupported_value(where, f"this model reads text ('input_text'), not '{shorten(kind)}'.")
        except RequestError as error:
            if is_old and error.code == "unsupported_value":
                return self._placeholder(kind)
            raise
        return _read_string(part, TEXT_KEYS[kind], where)

    def _placeholder(self, kind: str) -> str:
        """Return what stands for an item or a part of this type, and record that it was not read."""
        self._ignored.append(f"input.{kind[:MAX_KIND_CHARS]}")
        return f"[{kind[:MAX_KIND_CHARS]} omitted]"

    def _flush_placeholders(self) -> None:
        """Add placeholders to the last message if that is the assistant's, otherwise as a message of the assistant."""
        if not self._placeholders:
            return
        if self.found and self.found[-1]["role"] == "assistant":
            last, placeholders = self.found[-1], self._placeholders
            self._placeholders = []
            last["content"] = "\n\n".join([*filter(None, [last["content"]]), *placeholders])
        else:
            self.add_text("assistant", "")

    def _check_unique(self, item_id: Any) -> None:
        if not isinstance(item_id, str):
            return
        if item_id in self._item_ids:
            raise duplicate_item(item_id)
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


def _readable_type(item: JSON, where: str, *, is_old: bool) -> str:
    """Return the type of an item; that of an old message whose role this model does not have names the role."""
    kind, role = _item_type(item, where), item.get("role")
    is_foreign = is_old and kind == "message" and isinstance(role, str) and role not in ROLES
    return f"{kind}.{role}" if is_foreign else kind


def _last_user_message(items: list[Any]) -> int:
    """Return the index of the last user message; -1 without one, so that nothing counts as older."""
    for index in range(len(items) - 1, -1, -1):
        if isinstance(items[index], dict) and items[index].get("role") == "user":
            return index
    return -1


def _read_role(item: JSON, where: str) -> str:
    role = _read_string(item, "role", where)
    if role not in ROLES:
        raise invalid_value(f"{where}.role", role, "'user', 'assistant', 'system' and 'developer'")
    return ROLES[role]


def _read_reasoning(item: JSON) -> str:
    """Return the reasoning of an earlier turn, or its summary; encrypted reasoning cannot be read."""
    for field in ("content", "summary"):
        parts = item.get(field)
        texts = [part.get("text") for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
        if text := "".join(text for text in texts if isinstance(text, str)):
            return text
    return ""


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
