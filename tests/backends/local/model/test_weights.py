"""What model.bin says of itself."""

import struct

import pytest

from backends.local.model.weights import Weights, read_weights
from tests.models import write_model


def name(text):
    return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"


def test_a_models_sizes_are_read(tmp_path):
    """Without loading it."""
    path = write_model(tmp_path) / "model.bin"

    assert Weights(path.stat().st_size, "int8", 324, 1, 4, 32) == read_weights(path)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is damaged or cut off, at byte 0 of 0"),
        (b"%PDF-1.7", "is no model of CTranslate2's"),
        (struct.pack("<I", 5) + name("TransformerDecoderSpec"), "is of binary version 5; this engine's is 6"),
        (struct.pack("<I", 6) + name("WhisperSpec"), "is a 'WhisperSpec'; a language model is a 'TransformerDecoderSpec'"),
        (struct.pack("<I", 6) + name("TransformerDecoderSpec") + struct.pack("<III", 8, 0, 0), "has no embeddings"),
        (struct.pack("<I", 6) + b"\x05\x00\xff\xff", "is damaged or cut off"),
        (
            struct.pack("<I", 6) + name("TransformerDecoderSpec") + struct.pack("<II", 8, 1) + name("a")
            + struct.pack("<BBI", 0, 77, 0),
            "is damaged or cut off",
        ),
        (
            struct.pack("<I", 6) + name("TransformerDecoderSpec") + struct.pack("<II", 8, 1) + name("a")
            + struct.pack("<BBI", 0, 0, 4_000_000_000),
            "is damaged or cut off",
        ),
    ],
)  # fmt: skip
def test_what_is_no_language_model_is_told(tmp_path, content, told):
    """In one sentence; nothing is read into memory."""
    path = tmp_path / "model.bin"
    path.write_bytes(content)

    with pytest.raises(ValueError, match=f"model.bin {told}"):
        read_weights(path)


def test_weights_cut_off_anywhere_are_refused(tmp_path):
    """At every tenth of a long way."""
    path = write_model(tmp_path) / "model.bin"
    whole = path.read_bytes()
    for size in [*range(0, 200, 7), *range(200, len(whole), len(whole) // 40), len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="cut off"):
            read_weights(path)
