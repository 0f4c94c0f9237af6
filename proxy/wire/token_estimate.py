"""Estimates how many tokens texts are, for calls whose backend sent no counts.

Four bytes are about one token in the languages that most requests are in. What is no text (images, files, ids) is not
counted: how many tokens it has depends on the model.
"""

from collections.abc import Mapping
from typing import Any

BYTES_PER_TOKEN = 4
INPUT_FIELDS = ("instructions", "input", "tools", "text", "prompt", "messages")
"""The fields of requests that become input of a model, of relayed ones too."""
NO_TEXT = frozenset({
    "call_id", "container_id", "detail", "encrypted_content", "file_data", "file_id", "file_url", "id", "image_url",
    "item_id", "role", "signature", "status", "strict", "type",
})  # fmt: skip
"""Fields of items that hold no text."""
DATA_URL = "data:"


def estimate_input(body: Mapping[str, Any]) -> int:
    """Return about how many tokens the texts of a request are."""
    return estimate_tokens([body.get(name) for name in INPUT_FIELDS])


def estimate_tokens(value: Any) -> int:
    """Return about how many tokens the texts in a JSON value are."""
    return -(-_text_bytes(value) // BYTES_PER_TOKEN)


def _text_bytes(value: Any) -> int:
    """Return how many bytes all texts have together. A loop: values may be nested deeper than functions may be."""
    size, left = 0, [value]
    while left:
        each = left.pop()
        if isinstance(each, str):
            if not each.startswith(DATA_URL):
                size += len(each) if each.isascii() else len(each.encode(errors="replace"))
        elif isinstance(each, list):
            left += each
        elif isinstance(each, dict):
            left += [inner for name, inner in each.items() if name not in NO_TEXT]
    return size
