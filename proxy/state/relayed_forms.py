"""The ids in forms (multipart/form-data) that pass while they are received.

A part begins wherever the boundary stands, also where a strict reader would not see one: no upstream finds a field that
was not read here. Files are not read.

Source: https://www.rfc-editor.org/rfc/rfc7578
"""

import re
from collections.abc import AsyncIterator, Iterator
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from policies.support.walk import plain_name
from proxy.wire.errors import RequestError
from proxy.wire.fields import normalize

FORM = "multipart/form-data"
MAX_PARTS = 256
"""How many parts a form may have."""
MAX_NAME_BYTES = 256
"""A longer name may be that of any field."""
PART_BYTES = 4_096
"""How much is read of a part: its header, and the text that it may have."""
_BOUNDARY = re.compile(r"boundary\s*=\s*(\"?)([A-Za-z0-9'()+_,./:=?-]{1,70})\1\s*(?:;|$)", re.IGNORECASE)
_BLANK_LINE = re.compile(rb"\r?\n\r?\n|\r\r")
_LINE_END = re.compile(rb"\r?\n\Z")
# Whatever may be the name of a field, in quotes of another parameter too.
_NAME = re.compile(rb'(?<![\w-])name[*0-9]*\s*=\s*("(?:[^"\\]|\\.)*+"?|[^;\s]*)', re.IGNORECASE)
# What every reader takes for a file.
_OTHER_LINES = rb"(?:(?!content-disposition)[\w-]+:[^\r\n]*\r?\n)*"
_FILE = re.compile(
    rb"\r?\n" + _OTHER_LINES + rb'content-disposition:[ \t]*form-data;[ \t]*(?:name="[^"\\\r\n]*";[ \t]*)?'
    rb'filename="[^"\\\r\n]+"(?:;[ \t]*(?:filename\*|name)=(?:"[^"\\\r\n]*"|[^"\s;]+))*[ \t]*\r?\n' + _OTHER_LINES,
    re.IGNORECASE,
)
# Encodings in which a text has other bytes than in ASCII.
_ENCODING = re.compile(
    rb"content-transfer-encoding\s*:\s*+(?!(?:binary|7bit|8bit)\s)|"
    rb"charset\s*=\s*+\"?+(?!utf-8|us-ascii|ascii|iso-8859-|latin|windows-125)",
    re.IGNORECASE,
)


class FormField(NamedTuple):
    """A field of a form that is no file: its name and its text as they were sent, of a long one the beginning."""

    name: str
    value: str
    is_whole: bool = True

    @property
    def text(self) -> str:
        """The value in the form in which ids are compared."""
        return normalize(self.value)

    @property
    def plain_names(self) -> frozenset[str]:
        """The parts of its name, such as those in brackets, without case and separators."""
        return frozenset(plain_name(part) for part in re.split(r"[\[\].]", self.name) if part)

    def holds_id(self, endings: tuple[str, ...]) -> bool:
        """Whether a part of its name, such as that in brackets in `files[0][id]`, has one of these endings."""
        return any(name.endswith(endings) for name in self.plain_names)


def boundary_of(content_type: str) -> bytes:
    """Return what separates the parts of a form. Raises RequestError if two readers could find different ones."""
    found = _BOUNDARY.search(content_type)
    if found is None or content_type.lower().count("boundary") != 1:
        raise RequestError("The form needs one boundary of letters, digits and - in its Content-Type.", status=415)
    return b"--" + found[2].encode()


async def split_form(chunks: AsyncIterator[bytes], boundary: bytes) -> AsyncIterator[tuple[bytes, FormField | None]]:
    """Yield all bytes of a form, in portions, each with a field that the caller checks before it passes them on.

    Raises RequestError for a form that can be read in two ways, and what the chunks raise.
    """
    held, parts = b"", 0
    async for chunk in chunks:
        held += chunk
        start = 0
        while (at := held.find(boundary, start)) >= 0 and len(held) >= at + PART_BYTES:
            parts = _count(parts)
            end = at + len(boundary)
            yield held[start:end], _field(held[end : at + PART_BYTES], boundary)
            start = end
        end = at if at >= 0 else max(start, len(held) - len(boundary) + 1)
        yield held[start:end], None
        held = held[end:]
    for part in _rest(held, boundary):
        parts = _count(parts)
        yield part


def _rest(held: bytes, boundary: bytes) -> Iterator[tuple[bytes, FormField | None]]:
    """Yield the end of a form, which is too short to be known as whole before."""
    first, *others = held.split(boundary)
    yield first, None
    for other in others:
        yield boundary + other, _field(other, boundary)


def _count(parts: int) -> int:
    if parts >= MAX_PARTS:
        raise RequestError(f"The form has more than {MAX_PARTS} parts.", code="too_many_ids")
    return parts + 1


def _field(part: bytes, boundary: bytes) -> FormField | None:
    """Return the field that begins after a boundary; None for a file, and for no field."""
    own, following, _ = part.partition(boundary)
    is_whole = bool(following) or len(part) < PART_BYTES - len(boundary)
    blank = _BLANK_LINE.search(own)
    if blank is None:
        if is_whole:
            return None  # nothing of a part but a header
        raise RequestError(f"A part of the form has a header of more than {PART_BYTES} bytes.")
    head = own[: blank.start()] + b"\n"
    if _FILE.fullmatch(head) is not None:
        return None
    if _ENCODING.search(head):
        raise RequestError("A field of the form is in an encoding that is not relayed; send UTF-8.", status=415)
    value = _LINE_END.sub(b"", own[blank.end() :]).decode(errors="replace")
    if not (value.strip() or is_whole):
        raise RequestError("A field of the form begins with too much white space.")
    return FormField(".".join(map(_unquoted, _NAME.findall(head))) or "id", value, is_whole)


def _unquoted(value: bytes) -> str:
    """Return the value of a parameter without quotes, escapes, and the prefix of an extended one."""
    if len(value) > MAX_NAME_BYTES:
        return "id"
    text = re.sub(rb"\\(.)", rb"\1", value.strip(b'"'))
    return unquote_to_bytes(text.rpartition(b"'")[2]).decode(errors="replace")
