"""Attributes in OTLP are what the exporters' own encoder makes of them."""

from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.common._internal import _encode_attributes as reference
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from proxy.telemetry import otlp_fields
from proxy.telemetry.otlp_fields import encode_attributes, encode_text, encode_varint


@pytest.fixture(autouse=True)
def _encodings() -> Iterator[None]:
    """Nothing is known of other tests."""
    otlp_fields._ENCODINGS.clear()
    yield
    otlp_fields._ENCODINGS.clear()


def decoded(attributes: dict[str, Any]) -> Resource:
    return Resource.FromString(encode_attributes(b"\x0a", attributes))


def test_values_of_all_sizes_are_encoded():
    """Lengths of one byte and of two, of the name and the value together too; small and large numbers. Once more is the same."""
    names = {length: "n" * length for length in (1, 60, 121, 125, 130)}
    texts = {f"{name}.{size}": "é" * (size // 2) + "t" * (size % 2) for name in names.values() for size in range(140)}
    numbers: list[Any] = [0, 1, 127, 128, -1, 2**63 - 1, -(2**63), True, False, 0.0, -1.5, "", "x" * 20_000, ("a", 1)]
    attributes = texts | {f"{name}{each!r}": each for name in names.values() for each in numbers}

    for _ in range(2):
        assert decoded(attributes) == Resource(attributes=reference(attributes))


def test_lists_are_encoded():
    """Which have no hash, beside attributes that are known."""
    attributes = {"none": [], "some": ["a", 1], "text": "b"}
    encode_attributes(b"\x0a", {"text": "b"})

    assert decoded(attributes) == Resource(attributes=reference(attributes))
    assert encode_attributes(b"\x0a", {}) == encode_attributes(b"\x0a", None) == b""


@pytest.mark.parametrize("odd", [2**63, -(2**63) - 1, "\ud800", [1, 2**64], object()])
def test_an_attribute_that_has_no_encoding_is_left_out(odd: Any):
    """An upstream's count of tokens may have more than 64 bits. The other attributes are sent."""
    (encoded,) = decoded({"odd": odd, "b": 2**63 - 1}).attributes

    assert (encoded.key, encoded.value.int_value) == ("b", 2**63 - 1)


def test_a_bounded_number_of_short_values_is_kept():
    """However many callers and models there are, and however long the texts of a call."""
    encode_attributes(b"\x0a", {"content": "x" * otlp_fields.LONGEST_KEPT_BYTES})
    assert len(otlp_fields._ENCODINGS) == 0

    for number in range(otlp_fields.MAX_KEPT + 1):
        assert decoded({"id": number}).attributes[0].value.int_value == number
    assert len(otlp_fields._ENCODINGS) == 1


@pytest.mark.parametrize("number", [0, 127, 128, 16_383, 16_384, 2**64 - 1])
def test_numbers_are_in_groups_of_seven_bits(number: int):
    """The lowest first."""
    encoding = encode_varint(number)

    assert sum((byte & 127) << 7 * place for place, byte in enumerate(encoding)) == number
    assert [byte > 127 for byte in encoding] == [True] * (len(encoding) - 1) + [False]


def test_a_text_that_is_no_unicode_is_replaced():
    """As in names of spans."""
    assert encode_text(b"\x2a", "a\ud800") == b"\x2a\x02a?"
