"""How the tests of all formats read what a model says."""

from collections.abc import Iterable, Sequence

from hypothesis import strategies as st

from backends.local.speech import Piece, Reader, Text, ToolFormat, reader_of
from backends.local.speech.piece import CustomCall, FunctionCall, Names

NAMES: Names = {"f": "function", "g": "function", "note": "custom", "patch": "raw"}


def call(name: str, arguments: str = "{}") -> FunctionCall:
    return FunctionCall(name, arguments)


def pieces_of(reader: Reader, chunks: Iterable[str], *, cut: bool = False) -> list[Piece]:
    """What comes out, with the parts of each text and each call in one."""
    found = [piece for chunk in chunks for piece in reader.feed(chunk)]
    joined: list[Piece] = []
    for piece in [*found, *reader.close(cut=cut)]:
        if isinstance(piece, Text) and joined and isinstance(joined[-1], Text):
            before = joined[-1]
            assert piece.at == before.at + len(before.text)
            joined[-1] = Text(before.text + piece.text, before.at)
        elif joined and isinstance(piece, FunctionCall) and _goes_on(joined[-1], piece):
            joined[-1] = FunctionCall(piece.name, joined[-1].arguments + piece.arguments, piece.whole)
        elif joined and isinstance(piece, CustomCall) and _goes_on(joined[-1], piece):
            joined[-1] = CustomCall(piece.name, joined[-1].input + piece.input, piece.whole)
        else:
            joined.append(piece)
    return joined


def _goes_on(before: Piece, piece: Piece) -> bool:
    return type(before) is type(piece) and not before.whole and before.name == piece.name


def read(form: ToolFormat, *chunks: str, cut: bool = False, sure: bool = False) -> list[Piece | str]:
    """The same with texts as strings, once it is sure that each stands where it says."""
    said = "".join(chunks)
    pieces = pieces_of(reader_of(form, NAMES, sure=sure), chunks, cut=cut)
    for piece in pieces:
        if isinstance(piece, Text):
            assert said[piece.at : piece.at + len(piece.text)] == piece.text
    return [piece.text if isinstance(piece, Text) else piece for piece in pieces]


def cut_everywhere(said: str) -> list[Sequence[str]]:
    """The text letter by letter, cut at every place, and at every two when it is short."""
    size = len(said)
    twice = [(a, b) for a in range(size) for b in range(a, size)] if size < 90 else []
    return [
        tuple(said),
        *((said[:a], said[a:]) for a in range(size)),
        *((said[:a], said[a:b], said[b:]) for a, b in twice),
    ]


@st.composite
def cuttings(draw: st.DrawFn, words: Sequence[str]) -> tuple[str, list[str]]:
    """A text of these words, and the same text in parts."""
    said = "".join(draw(st.lists(st.sampled_from(words), max_size=14)))
    places = sorted(draw(st.lists(st.integers(0, len(said)), max_size=8)))
    return said, [said[start:end] for start, end in zip([0, *places], [*places, len(said)], strict=True)]
