"""Items of responses and conversations: as they were received, with their ids, and in the form that lists show.

Source: https://platform.openai.com/docs/api-reference/responses/input-items, the OpenAPI document (ItemResource)
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

from proxy.wire.items import JSON
from proxy.wire.refusals import invalid_type

MAX_ID_CHARS = 64
# The beginnings of ids by type of item; some servers refuse ids with another one.
PREFIXES = {
    "message": "msg", "reasoning": "rs", "function_call": "fc", "function_call_output": "fco",
    "custom_tool_call": "ctc", "custom_tool_call_output": "ctco", "file_search_call": "fs", "web_search_call": "ws",
    "code_interpreter_call": "ci", "image_generation_call": "ig", "mcp_list_tools": "mcpl", "mcp_call": "mcp",
    "mcp_approval_request": "mcpr", "computer_call": "cu", "local_shell_call": "lsh", "shell_call": "sh",
    "apply_patch_call": "apc", "compaction": "cmp",
}  # fmt: skip
# Types whose lists show a status, which input may leave out.
WITH_STATUS = frozenset({
    "message", "function_call", "function_call_output", "custom_tool_call", "custom_tool_call_output",
    "file_search_call", "web_search_call", "code_interpreter_call", "image_generation_call", "computer_call",
    "computer_call_output", "local_shell_call", "shell_call", "shell_call_output", "apply_patch_call",
    "apply_patch_call_output", "tool_search_call", "tool_search_output", "program_output",
})  # fmt: skip
# Other fields that lists show, which input may leave out, with what they mean then.
DEFAULTS: dict[str, JSON] = {
    "reasoning": {"summary": []}, "computer_call": {"pending_safety_checks": []},
    "tool_search_call": {"call_id": None, "execution": "server"},
    "tool_search_output": {"call_id": None, "execution": "server"},
    "shell_call": {"environment": None, "action": {"timeout_ms": None, "max_output_length": None}},
    "shell_call_output": {"max_output_length": None},
}  # fmt: skip
REFERENCE = "item_reference"
ITEM_BYTES = 512
ID = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class StoredItem:
    """An item as it was received, which is what a backend gets again, and its id, which lists show."""

    id: str
    item: JSON

    @property
    def listed(self) -> JSON:
        """The item with every field that typed clients require in a list."""
        kind = item_type(self.item)
        shown: JSON = {**self.item, "id": self.id, "type": kind}
        if kind in WITH_STATUS and shown.get("status") is None:
            shown["status"] = "completed"
        if kind == "message":
            shown["content"] = _listed_content(shown.get("content"), shown.get("role"))
        for name, default in DEFAULTS.get(kind, {}).items():
            value = shown.get(name)
            if value is None:
                shown[name] = copy(default)
            elif isinstance(default, dict) and isinstance(value, dict):
                shown[name] = default | value
        return shown


def work_bytes(*lists: object) -> int:
    """Return how many bytes take as much work as the items of these lists: finding the id of each is most of it."""
    return ITEM_BYTES * sum(len(items) for items in lists if isinstance(items, list | tuple))


def input_items(value: Any, param: str = "input") -> list[JSON]:
    """Return the input of a request as items; a text is one user message. Raises RequestError for any other type."""
    if value is None:
        return []
    if isinstance(value, str):
        return [{"type": "message", "role": "user", "content": value}]
    if not isinstance(value, list):
        raise invalid_type(param, "a string or an array of objects", value)
    for index, item in enumerate(value):
        if not isinstance(item, dict):
            raise invalid_type(f"{param}[{index}]", "an object", item)
    return value


def kept_input(value: Any) -> list[Any]:
    """Return the input of an answered request as a list, in whatever form the backend accepted it."""
    if isinstance(value, list):
        return value
    return input_items(value) if isinstance(value, str) else []


def with_ids(items: Sequence[Any], source: str, start: int = 0) -> list[StoredItem]:
    """Return items with their ids. Those without one get an id that follows from `source` and their position.

    `source` is the id of the response that they belong to. Values that are no objects are left out.
    """
    return [
        StoredItem(own_id(item) or _derived_id(item, source, position), item)
        for position, item in enumerate(items, start)
        if isinstance(item, dict)
    ]


def own_id(item: Mapping[str, Any]) -> str | None:
    """Return the id that an item has itself, if it can be one: a path must be able to name it."""
    value = item.get("id")
    return value if isinstance(value, str) and len(value) <= MAX_ID_CHARS and ID.fullmatch(value) else None


def item_type(item: Mapping[str, Any]) -> str:
    """Return the type of an item, which messages and references may leave out."""
    kind = item.get("type")
    if isinstance(kind, str):
        return kind
    return REFERENCE if kind is None and "role" not in item and "id" in item else "message"


def item_prefix(item: Mapping[str, Any]) -> str:
    """Return the beginning of an item's id."""
    return PREFIXES.get(item_type(item), "item")


def _derived_id(item: Mapping[str, Any], source: str, position: int) -> str:
    digest = hashlib.sha256(f"{position}:{source}".encode(errors="surrogatepass")).hexdigest()
    return f"{item_prefix(item)}_{digest[:48]}"


def _listed_content(content: Any, role: Any) -> Any:
    is_output = role == "assistant"
    if isinstance(content, str):
        content = [{"type": "output_text" if is_output else "input_text", "text": content}]
    if not (is_output and isinstance(content, list)):
        return content
    empty: JSON = {"annotations": [], "logprobs": []}
    is_text = [isinstance(part, dict) and part.get("type") == "output_text" for part in content]
    return [empty | part if text else part for part, text in zip(content, is_text, strict=True)]
