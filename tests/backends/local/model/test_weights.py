"""The header of model.bin."""

import struct

import pytest

from backends.local.model.weights import Weights, read_weights
from tests.models import write_model


def name(text):
    return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"


def test_a_models_sizes_are_read(tmp_path):
    """Without loading the weights."""
    path = write_model(tmp_path) / "model.bin"

    assert Weights(path.stat().st_size, "int8", 324, 1, 4, 32) == read_weights(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is damaged or incomplete, at byte 0 of 0"),
        (b"%PDF-1.7", "is not a CTranslate2 model"),
        (struct.pack("<I", 5) + name("TransformerDecoderSpec"), "has binary version 5; this engine reads 6"),
        (struct.pack("<I", 6) + name("WhisperSpec"), "is a 'WhisperSpec'; a language model is a 'TransformerDecoderSpec'"),
        (struct.pack("<I", 6) + name("TransformerDecoderSpec") + struct.pack("<III", 8, 0, 0), "has no token embeddings"),
        (struct.pack("<I", 6) + b"\x05\x00\xff\xff", "is damaged or incomplete"),
        (
            struct.pack("<I", 6) + name("TransformerDecoderSpec") + struct.pack("<II", 8, 1) + name("a")
            + struct.pack("<BBI", 0, 77, 0),
            "is damaged or incomplete",
        ),
        (
            struct.pack("<I", 6) + name("TransformerDecoderSpec") + struct.pack("<II", 8, 1) + name("a")
            + struct.pack("<BBI", 0, 0, 4_000_000_000),
            "is damaged or incomplete",
        ),
    ],
)  # fmt: skip
def test_a_file_that_is_no_language_model_is_refused(tmp_path, content, message):
    """In one sentence; no data is read into memory."""
    path = tmp_path / "model.bin"
    path.write_bytes(content)

    with pytest.raises(ValueError, match=f"model.bin {message}"):
        read_weights(path)


def test_incomplete_weights_are_refused(tmp_path):
    """Wherever they end."""
    path = write_model(tmp_path) / "model.bin"
    whole = path.read_bytes()
    for size in [*range(0, 200, 7), *range(200, len(whole), len(whole) // 40), len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="incomplete"):
            read_weights(path)
