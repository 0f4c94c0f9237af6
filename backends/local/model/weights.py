"""The header of model.bin, without its weights: whether the file is complete, a language model, and how large.

version:u32  name  revision:u32  count:u32  count x (name  rank:u8  dimensions:u32...  type:u8  bytes:u32  data)
count:u32  count x (alias  name)                             a name is length:u16, text, a zero byte

The engine detects most faults, too, but some of them by crashing.
Source: https://github.com/OpenNMT/CTranslate2/blob/v4.8.1/python/ctranslate2/specs/model_spec.py (_serialize)
"""

import os
import re
import struct
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

VERSION, MAX_VERSION = 6, 1000
LANGUAGE_MODEL_SPEC = "TransformerDecoderSpec"
TYPES = ("float32", "int8", "int16", "int32", "float16", "bfloat16")
EMBEDDING = re.compile(r"decoder/embeddings(_0)?/weight")
LAYER = re.compile(r"decoder/layer_(\d+)/")
HEADS, HEAD_DIM = "decoder/num_heads", "decoder/layer_0/self_attention/head_dim"
MAX_NUMBER_BYTES = 8


@dataclass(frozen=True, slots=True)
class Weights:
    """What the header says of a model."""

    size_bytes: int
    data_type: str  # of the embeddings: "int8" ...
    vocabulary_size: int  # how many tokens have an embedding
    layers: int
    heads: int | None
    head_dim: int | None


def read_weights(path: Path) -> Weights:
    """Raises ValueError for a file that is incomplete or no language model, OSError for one that cannot be read."""
    size = path.stat().st_size
    with path.open("rb") as file:
        try:
            shapes, numbers = _read_variables(_BinaryReader(file, size))
        except (struct.error, UnicodeDecodeError, EOFError) as error:
            raise ValueError(f"{path} is damaged or incomplete, at byte {min(file.tell(), size)} of {size}.") from error
        except ValueError as error:
            raise ValueError(f"{path} {error}") from error
    embedding = next((name for name in shapes if EMBEDDING.fullmatch(name)), None)
    if embedding is None:
        raise ValueError(f"{path} has no token embeddings.")
    (vocabulary_size, width), data_type = shapes[embedding]
    layers = {found[1] for found in map(LAYER.match, shapes) if found}
    heads = numbers.get(HEADS)
    head_dim = numbers.get(HEAD_DIM) or (width // heads if heads else None)
    return Weights(size, TYPES[data_type], vocabulary_size, len(layers), heads, head_dim)


class _BinaryReader:
    def __init__(self, file: BufferedReader, size: int) -> None:
        self._file = file
        self._size = size

    def numbers(self, form: str) -> tuple[int, ...]:
        return struct.unpack(f"<{form}", self._file.read(struct.calcsize(f"<{form}")))

    def number(self, form: str) -> int:
        return self.numbers(form)[0]

    def name(self) -> str:
        length = self.number("H")
        name = self._file.read(length)
        if len(name) < length:
            raise EOFError
        return name.rstrip(b"\0").decode()

    def data(self, length: int) -> bytes:
        """Return data that is short enough to be a number; anything longer is skipped."""
        if self._file.tell() + length > self._size:
            raise EOFError
        if length <= MAX_NUMBER_BYTES:
            return self._file.read(length)
        self._file.seek(length, os.SEEK_CUR)
        return b""


def _read_variables(file: _BinaryReader) -> tuple[dict[str, tuple[tuple[int, ...], int]], dict[str, int]]:
    """Return the shapes and types of all variables, and the values of integers."""
    version = file.number("I")
    if version > MAX_VERSION:
        raise ValueError("is not a CTranslate2 model.")
    name = file.name()
    if version != VERSION:
        raise ValueError(f"has binary version {version}; this engine reads {VERSION}: convert the model again.")
    if name != LANGUAGE_MODEL_SPEC:
        raise ValueError(f"is a {name[:40]!r}; a language model is a {LANGUAGE_MODEL_SPEC!r}.")
    file.number("I")
    shapes, numbers = {}, {}
    for _ in range(file.number("I")):
        name = file.name()
        shape = file.numbers("I" * file.number("B"))
        kind, length = file.number("B"), file.number("I")
        if kind >= len(TYPES):
            raise EOFError
        shapes[name] = (shape, kind)
        data = file.data(length)
        if shape == () and "int" in TYPES[kind]:
            numbers[name] = int.from_bytes(data, "little", signed=True)
    for _ in range(file.number("I")):
        alias, target = file.name(), file.name()
        shapes[alias] = shapes.get(target, ((), 0))
    return shapes, numbers
