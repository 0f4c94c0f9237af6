"""Text files inside a request: the only kind of file that a text model can read.

Source: https://platform.openai.com/docs/guides/pdf-files
"""

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Any

from backends.local.request.validation import invalid_type, missing_parameter, unsupported_value

# data:text/plain;charset=utf-8;base64,SGVsbG8=   or the base64 alone
DATA_URL = re.compile(r"data:(?P<type>[^;,]*)[^,]*?(?P<base64>;base64)?,", re.IGNORECASE)
NOT_INLINE = "this model reads text; send the file's text inline, as file_data."
NOT_BASE64 = "its data must be base64, as data:text/plain;base64,... or alone."
MAX_NAME_CHARS = 200


def read_input_file(part: Mapping[str, Any], where: str) -> str:
    """Return the name and text of an `input_file`. Raises RequestError for one that is not inline or not text."""
    for reference in ("file_id", "file_url"):
        if part.get(reference) is not None:
            raise unsupported_value(f"{where}.{reference}", NOT_INLINE)
    data, name = part.get("file_data"), part.get("filename")
    if data is None:
        raise missing_parameter(f"{where}.file_data")
    if not isinstance(data, str):
        raise invalid_type(f"{where}.file_data", "a string", data)
    if not isinstance(name, str | None):
        raise invalid_type(f"{where}.filename", "a string", name)
    text = _decode(data, f"{where}.file_data")
    return f"{(name or 'file')[:MAX_NAME_CHARS]}:\n{text}\n"


def _decode(data: str, where: str) -> str:
    url = DATA_URL.match(data)
    encoded = data if url is None else data[url.end() :]
    if url is not None and url["base64"] is None:
        raise unsupported_value(where, NOT_BASE64)
    try:
        text = base64.b64decode(encoded, validate=True).decode("utf-8-sig")
    except binascii.Error as error:
        raise unsupported_value(where, NOT_BASE64) from error
    except UnicodeDecodeError as error:
        raise unsupported_value(where, "this model reads text, and the file is not UTF-8.") from error
    if "\0" in text:
        raise unsupported_value(where, "this model reads text, and the file is binary.")
    return text
