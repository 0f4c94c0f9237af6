"""Encodes fields of OTLP's messages. To set one field of a message of protobuf takes longer than to encode it here.

Source: https://protobuf.dev/programming-guides/encoding/
Source: https://github.com/open-telemetry/opentelemetry-proto/blob/main/opentelemetry/proto/common/v1/common.proto
"""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from struct import Struct
from typing import Any

MAX_KEPT = 1024
"""How many encodings are kept: most attributes have the same value in many requests."""
LONGEST_KEPT_BYTES = 192
_BYTES = [bytes([number]) for number in range(128)]
_DOUBLE = Struct("<d")
UNENCODABLE = (ValueError, TypeError, OverflowError)


def encode_field(tag: bytes, data: bytes) -> bytes:
    """Return a field with its length before it."""
    return tag + encode_varint(len(data)) + data


def encode_varint(number: int) -> bytes:
    """Return a number in groups of seven bits, the lowest first."""
    if number < 128:
        return _BYTES[number]
    if number < 128 * 128:
        return bytes((number & 127 | 128, number >> 7))
    return bytes((number & 127 | 128,)) + encode_varint(number >> 7)


@lru_cache(maxsize=MAX_KEPT)
def encode_text(tag: bytes, text: str) -> bytes:
    """Return a field for a text that recurs, such as a name."""
    return encode_field(tag, text.encode(errors="replace"))


def encode_attributes(tag: bytes, attributes: Mapping[str, Any] | None) -> bytes:
    """Return a field for each attribute. One that OTLP cannot have, such as a larger number, is left out."""
    if not attributes:
        return b""
    try:
        return tag.join([b"", *map(_ENCODINGS.__getitem__, attributes.items())])
    except UNENCODABLE:  # or a list, which has no hash
        return tag.join([b"", *_each_encoding(attributes)])


def _each_encoding(attributes: Mapping[str, Any]) -> Iterator[bytes]:
    for name, value in attributes.items():
        try:
            yield _encode_attribute(name, value)
        except UNENCODABLE:
            continue


class _Encodings(dict[tuple[str, Any], bytes]):
    """The encodings of attributes by name and value.

    1, 1.0 and True are equal, so all values of an attribute have to be of one type.
    """

    def __missing__(self, attribute: tuple[str, Any]) -> bytes:
        name, value = attribute
        encoding = _encode_attribute(name, value)
        if len(encoding) <= LONGEST_KEPT_BYTES:
            if len(self) >= MAX_KEPT:
                self.clear()
            self[attribute] = encoding
        return encoding


_ENCODINGS = _Encodings()


def _encode_attribute(name: str, value: Any) -> bytes:
    """Return what follows the tag of an attribute."""
    data = encode_text(b"\x0a", name) + encode_field(b"\x12", _encode_value(value))
    return encode_varint(len(data)) + data


def _encode_value(value: Any) -> bytes:
    """Return an AnyValue. Raises ValueError, TypeError and OverflowError for one that it cannot have."""
    kind = type(value)
    if kind is str:
        return encode_field(b"\x0a", value.encode())
    if kind is bool:
        return b"\x10\x01" if value else b"\x10\x00"
    if kind is int:
        return b"\x18" + encode_varint(int.from_bytes(value.to_bytes(8, signed=True)))
    if kind is float:
        return b"\x21" + _DOUBLE.pack(value)
    return encode_field(b"\x2a", b"".join([encode_field(b"\x0a", _encode_value(each)) for each in value]))
