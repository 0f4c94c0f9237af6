"""The request's instructions and input as the messages that chat templates take: texts, thoughts, calls and results.

Source: https://platform.openai.com/docs/api-reference/responses/create#responses-create-input
"""

from collections.abc import Callable, Mapping
from typing import Any

import orjson

from backends.local.names import CUSTOM_INPUT, flat_name
from backends.local.request.faults import missing, shown, unsupported, wrong_type, wrong_value
from backends.local.request.files import text_of_file
from proxy.wire.errors import RequestError

JSON = dict[str, Any]

ROLES = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}
TEXTS = {"input_text": "text", "output_text": "text", "refusal": "refusal"}


def messages_of(body: Mapping[str, Any], *, call_id: Callable[[str], str] = str) -> list[JSON]:
    """The conversation, oldest first. Raises RequestError for what a model of text cannot read.

    `call_id` gives the ids of calls as the model's template wants them.
    """
    history = _History(call_id)
    if body.get("instructions"):
        history.say("system", body["instructions"])
    given = body.get("input")
    if isinstance(given, str):
        history.say("user", given)
    elif isinstance(given, list):
        for index, item in enumerate(given):
            history.add(item, f"input[{index}]")
    elif given is not None:
        raise wrong_type("input", "a string or an array of objects", given)
    history.refuse_open_calls()
    if given is None or not history.messages:
        raise missing("input")
    return history.messages


class _History:
    """Messages as they grow item by item."""

    def __init__(self, call_id: Callable[[str], str]) -> None:
        self._call_id = call_id
        self.messages: list[JSON] = []
        self._ids: set[str] = set()
        self._open_calls: dict[str, str] = {}  # call_id -> name, of those that have no output yet
        self._thought = ""  # what the assistant thought before the message that comes next

    def add(self, item: Any, where: str) -> None:
        if not isinstance(item, dict):
            raise wrong_type(where, "an object", item)
        self._refuse_twice(item.get("id"))
        match _type(item, where):
            case "message":
                self.say(_role(item, where), _text(item.get("content"), f"{where}.content"))
            case "function_call":
                self._call(item, where, _arguments(_string(item, "arguments", where)))
            case "custom_tool_call":
                self._call(item, where, {CUSTOM_INPUT: _string(item, "input", where)})
            case "function_call_output" | "custom_tool_call_output":
                self._output(item, where)
            case "reasoning":
                self._thought = _thought(item)
            case "item_reference":
                raise RequestError(f"Item with id '{shown(str(item.get('id')))}' not found.", status=404, param="input")
            case other:
                raise unsupported(where, f"this model reads messages and function calls, not '{shown(other)}'.")

    def say(self, role: str, text: str) -> None:
        """Texts of the system at the beginning become one: most templates know only one."""
        if role == "system" and len(self.messages) == 1 and self.messages[0]["role"] == "system":
            self.messages[0]["content"] += "\n\n" + text
            return
        message = {"role": role, "content": text}
        if role == "assistant" and self._thought:
            message["reasoning_content"] = self._thought  # where templates of models that think look for it
        self._thought = ""
        self.messages.append(message)

    def refuse_open_calls(self) -> None:
        for call_id in self._open_calls:
            raise RequestError(f"No tool output found for function call {shown(call_id)}.", param="input")

    def _call(self, item: JSON, where: str, arguments: Any) -> None:
        """Calls stand in the message of the assistant that made them, beside its text."""
        call_id, name = (_string(item, key, where) for key in ("call_id", "name"))
        namespace = item.get("namespace")
        name = flat_name(name, namespace if isinstance(namespace, str) else None)
        function = {"name": name, "arguments": arguments}
        if not self.messages or self.messages[-1]["role"] != "assistant":
            self.say("assistant", "")
        calls = self.messages[-1].setdefault("tool_calls", [])
        calls.append({"id": self._call_id(call_id), "type": "function", "function": function})
        self._open_calls[call_id] = name

    def _output(self, item: JSON, where: str) -> None:
        call_id = _string(item, "call_id", where)
        name = self._open_calls.pop(call_id, None)
        if name is None:
            raise RequestError(
                f"No tool call found for function call output with call_id {shown(call_id)}.", param="input"
            )
        text = _text(item.get("output"), f"{where}.output")
        self.messages.append({"role": "tool", "tool_call_id": self._call_id(call_id), "name": name, "content": text})

    def _refuse_twice(self, item_id: Any) -> None:
        if not isinstance(item_id, str):
            return
        if item_id in self._ids:
            raise RequestError(
                f"Duplicate item found with id {shown(item_id)}. Remove duplicate items from your input and try again.",
                param="input",
            )
        self._ids.add(item_id)


def _type(item: JSON, where: str) -> str:
    """The kind of an item. Messages need not say theirs; nor need references, which have nothing but an id."""
    kind = item.get("type")
    if isinstance(kind, str):
        return kind
    if kind is not None:
        raise wrong_type(f"{where}.type", "a string", kind)
    if "role" in item:
        return "message"
    if "id" in item:
        return "item_reference"
    raise missing(f"{where}.type")


def _role(item: JSON, where: str) -> str:
    role = _string(item, "role", where)
    if role not in ROLES:
        raise wrong_value(f"{where}.role", role, "'user', 'assistant', 'system' and 'developer'")
    return ROLES[role]


def _text(content: Any, where: str) -> str:
    """A string as it is, or the texts of its parts in one."""
    if isinstance(content, str):
        return content
    if content is None:
        raise missing(where)
    if not isinstance(content, list):
        raise wrong_type(where, "a string or an array of objects", content)
    return "".join(_text_of_part(part, f"{where}[{index}]") for index, part in enumerate(content))


def _text_of_part(part: Any, where: str) -> str:
    if not isinstance(part, dict):
        raise wrong_type(where, "an object", part)
    kind = _string(part, "type", where)
    if kind == "input_file":
        return text_of_file(part, where)
    if kind not in TEXTS:
        raise unsupported(where, f"this model reads text, not '{shown(kind)}'.")
    return _string(part, TEXTS[kind], where)


def _thought(item: JSON) -> str:
    """What a model of ours thought in another turn; others encrypt their thoughts, and nobody here can read those."""
    parts = item.get("content")
    texts = [part.get("text") for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
    return "".join(text for text in texts if isinstance(text, str))


def _string(item: JSON, key: str, where: str) -> str:
    value = item.get(key)
    if value is None:
        raise missing(f"{where}.{key}")
    if not isinstance(value, str):
        raise wrong_type(f"{where}.{key}", "a string", value)
    return value


def _arguments(text: str) -> Any:
    """The arguments as an object, which templates write in their model's own way; what is none stays text."""
    try:
        arguments = orjson.loads(text or "{}")
    except orjson.JSONDecodeError:
        return text
    return arguments if isinstance(arguments, dict) else text
