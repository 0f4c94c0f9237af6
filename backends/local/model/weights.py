"""Reads what model.bin says of itself, and none of its numbers: whether it is whole, a language model, and how large.

version:u32  name  revision:u32  count:u32  count x (name  rank:u8  dimensions:u32...  type:u8  bytes:u32  data)
count:u32  count x (name  name of what it stands for)        a name is length:u16, text, a zero

The engine finds out most of that, too, but some of it by crashing.
Source: https://github.com/OpenNMT/CTranslate2/blob/v4.8.1/python/ctranslate2/specs/model_spec.py (_serialize)
"""

import os
import re
import struct
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

VERSION, LATER = 6, 1000
LANGUAGE_MODEL = "TransformerDecoderSpec"
TYPES = ("float32", "int8", "int16", "int32", "float16", "bfloat16")
EMBEDDING = re.compile(r"decoder/embeddings(_0)?/weight")
LAYER = re.compile(r"decoder/layer_(\d+)/")
HEADS, HEAD_DIM = "decoder/num_heads", "decoder/layer_0/self_attention/head_dim"
LONGEST_NUMBER = 8


@dataclass(frozen=True, slots=True)
class Weights:
    bytes: int
    stored_as: str  # "int8" ...
    vocabulary: int  # how many tokens have an embedding
    layers: int
    heads: int | None
    head_dim: int | None


def read_weights(path: Path) -> Weights:
    """Raises ValueError for a file that is no language model or not whole, OSError for one that cannot be read."""
    size = path.stat().st_size
    with path.open("rb") as file:
        try:
            shapes, numbers = _variables(_File(file, size))
        except (struct.error, UnicodeDecodeError, EOFError) as error:
            raise ValueError(f"{path} is damaged or cut off, at byte {min(file.tell(), size)} of {size}.") from error
        except ValueError as error:
            raise ValueError(f"{path} {error}") from error
    embedding = next((name for name in shapes if EMBEDDING.fullmatch(name)), None)
    if embedding is None:
        raise ValueError(f"{path} has no embeddings of tokens.")
    (vocabulary, width), kind = shapes[embedding]
    layers = {found[1] for found in map(LAYER.match, shapes) if found}
    heads = numbers.get(HEADS)
    head_dim = numbers.get(HEAD_DIM) or (width // heads if heads else None)
    return Weights(size, TYPES[kind], vocabulary, len(layers), heads, head_dim)


class _File:
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
        """What is short enough to be a number; all else is passed over."""
        if self._file.tell() + length > self._size:
            raise EOFError
        if length <= LONGEST_NUMBER:
            return self._file.read(length)
        self._file.seek(length, os.SEEK_CUR)
        return b""


def _variables(file: _File) -> tuple[dict[str, tuple[tuple[int, ...], int]], dict[str, int]]:
    """All variables' shapes and types, and the values of whole numbers."""
    version = file.number("I")
    if version > LATER:
        raise ValueError("is no model of CTranslate2's.")
    name = file.name()
    if version != VERSION:
        raise ValueError(f"is of binary version {version}; this engine's is {VERSION}: convert the model again.")
    if name != LANGUAGE_MODEL:
        raise ValueError(f"is a {name[:40]!r}; a language model is a {LANGUAGE_MODEL!r}.")
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
        alias, meant = file.name(), file.name()
        shapes[alias] = shapes.get(meant, ((), 0))
    return shapes, numbers
