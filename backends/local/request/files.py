"""Text files that come inside a request: the one kind of file that a model of text can read.

Source: https://platform.openai.com/docs/guides/pdf-files
"""

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Any

from backends.local.request.faults import missing, unsupported, wrong_type

# data:text/plain;charset=utf-8;base64,SGVsbG8=   or the bare base64 of it
DATA_URL = re.compile(r"data:(?P<type>[^;,]*)[^,]*?(?P<base64>;base64)?,", re.IGNORECASE)
INLINE = "this model reads text; send the file's text inline, as file_data."
SHOWN_NAME_CHARS = 200


def text_of_file(part: Mapping[str, Any], where: str) -> str:
    """The file's name and text as a model can read them. Raises RequestError for one that is elsewhere or no text."""
    for elsewhere in ("file_id", "file_url"):
        if part.get(elsewhere) is not None:
            raise unsupported(f"{where}.{elsewhere}", INLINE)
    data, name = part.get("file_data"), part.get("filename")
    if data is None:
        raise missing(f"{where}.file_data")
    if not isinstance(data, str):
        raise wrong_type(f"{where}.file_data", "a string", data)
    if not isinstance(name, str | None):
        raise wrong_type(f"{where}.filename", "a string", name)
    text = _text(data, f"{where}.file_data")
    return f"{(name or 'file')[:SHOWN_NAME_CHARS]}:\n{text}\n"


def _text(data: str, where: str) -> str:
    url = DATA_URL.match(data)
    encoded = data if url is None else data[url.end() :]
    if url is not None and url["base64"] is None:
        raise unsupported(where, "its data is base64, as data:text/plain;base64,... or alone.")
    try:
        text = base64.b64decode(encoded, validate=True).decode("utf-8-sig")
    except binascii.Error as error:
        raise unsupported(where, "its data is base64, as data:text/plain;base64,... or alone.") from error
    except UnicodeDecodeError as error:
        raise unsupported(where, "this model reads text, and the file is none in UTF-8.") from error
    if "\0" in text:
        raise unsupported(where, "this model reads text, and the file is binary.")
    return text
