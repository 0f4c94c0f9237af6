"""Summarizes a conversation as one short text without a model: messages, calls and results, shortened evenly.

The newest parts are kept whole as long as there is room, because a conversation continues from its end. Reasoning is
left out: it can be made anew. Images and files are named, not kept.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import orjson

from proxy.wire.items import JSON

MAX_PART_CHARS = 4_000
"""The longest part of a summary: one message, call or result."""
CUT, LEFT_OUT = " [...] ", "[earlier parts were left out]"
SYSTEM_ROLES = frozenset({"system", "developer"})
TEXT_FIELDS = ("text", "refusal")
# Fields of an item that say nothing about the conversation.
NOT_SAID = frozenset({
    "id", "type", "status", "call_id", "name", "namespace", "encrypted_content", "created_by", "role", "phase",
    "server_label", "fingerprint",
})  # fmt: skip


def summarize(items: Iterable[Any], max_chars: int) -> str:
    """Return what these items say, one part a line, in at most `max_chars` characters."""
    lines: list[str] = []
    left = max_chars
    for line in reversed([line for item in items if (line := _line(item))]):
        short = shorten(line, min(MAX_PART_CHARS, max_chars))
        if len(short) + 1 > left - len(LEFT_OUT):
            lines.append(LEFT_OUT if len(LEFT_OUT) < left else "")
            break
        lines.append(short)
        left -= len(short) + 1
    return "\n".join(reversed(lines)).strip()


def shorten(text: str, limit: int) -> str:
    """Return a text with its middle cut out if it is longer than `limit` characters."""
    if len(text) <= limit:
        return text
    kept = max(0, limit - len(CUT))
    return text[: kept - kept // 2] + CUT + text[len(text) - kept // 2 :]


def text_of(content: Any) -> str:
    """Return the text of a message's or result's content; what is no text is named in brackets."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, Sequence) else []
    return "".join(_text_of_part(part) for part in parts)


def is_system(item: Any) -> bool:
    """Whether an item is a message of the operator or developer, whose words stay as they are."""
    return is_message(item) and item.get("role") in SYSTEM_ROLES


def is_user(item: Any) -> bool:
    """Whether an item is a message of the user."""
    return is_message(item) and item.get("role") == "user"


def is_message(item: Any) -> bool:
    """Whether an item is a message; its type may be left out."""
    return isinstance(item, dict) and item.get("type") in (None, "message") and "role" in item


def _line(item: Any) -> str:
    """Return what one item says; nothing for reasoning and for what cannot be read."""
    if not isinstance(item, dict):
        return ""
    if is_message(item):
        return f"{str(item.get('role')).capitalize()}: {text_of(item.get('content'))}"
    kind = item.get("type")
    if not isinstance(kind, str) or kind in ("reasoning", "compaction", "compaction_trigger", "additional_tools"):
        return ""
    if kind.endswith("_output"):
        return f"Result: {_text_values(item)}"
    name = item.get("name")
    return f"{name if isinstance(name, str) else kind}({_text_values(item)})"


def _text_values(item: JSON) -> str:
    """Return the values of an item that say something, as text."""
    return ", ".join(_texts({name: value for name, value in item.items() if name not in NOT_SAID}))


def _texts(fields: Mapping[str, Any]) -> Iterator[str]:
    for name, value in fields.items():
        if isinstance(value, str):
            yield value
        elif isinstance(value, list) and name in ("output", "content"):
            yield text_of(value)
        elif value is not None:
            yield f"{name}: {orjson.dumps(value).decode()}"


def _text_of_part(part: Any) -> str:
    if not isinstance(part, dict):
        return ""
    for field in TEXT_FIELDS:
        if isinstance(text := part.get(field), str):
            return text
    return f"[{part.get('filename') or part.get('type')}]"
