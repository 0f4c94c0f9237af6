"""Joins runs that arrived one by one, without the texts that their frames have in common.

Deltas of one item differ in a number and a text of a few bytes, in frames of two or three hundred. Most of a stream is
kept only for the case that it breaks off, so what is kept is short, and is put together again when it is read.
"""

from collections.abc import Sequence
from itertools import repeat

from proxy.wire.event import Run

JOINED_BYTES = 16_384
"""Up to which size runs are joined: a longer text would be copied, and saves nothing."""
LEAST_RUNS = 8
"""From how many runs on it is worth while to learn what they have in common."""
SEARCHED_BYTES = 1024
"""In how much of a frame is looked for what it has in common with another one."""
Common = tuple[bytes, bytes]
"""How frames of a stream begin, and what they have in common behind that: in place of each a mark is kept."""
NOTHING: Common = (b"", b"")
START_MARK, MIDDLE_MARK = b"\0", b"\1"
"""Bytes that neither JSON nor frames have."""


class PackedRun(Run):
    """A run that is kept with marks in place of what its frames have in common."""

    __slots__ = ("_common", "_packed")

    def __init__(self, packed: bytes, common: Common) -> None:
        self._packed = packed
        self._common = common

    @property
    def sse(self) -> bytes:  # type: ignore[override]  # it is only read, and seldom
        """The frames as they were received."""
        start, middle = self._common
        return start + self._packed.replace(START_MARK, start).replace(MIDDLE_MARK, middle)

    @property
    def raw(self) -> bytes:  # type: ignore[override]
        return self.sse


def join_runs(runs: Sequence[bytes], kind: type[Run], common: Common) -> tuple[Sequence[Run], Common]:
    """Return consecutive runs of one kind as one unless that is long, and what their frames have in common.

    `common` is that of those before. It is learnt again, from the last two, where it is not in most of the frames.
    Few runs are only joined.
    """
    size = sum(map(len, runs))
    if size > JOINED_BYTES:
        return [*map(kind, runs)], common
    if kind is not Run or len(runs) < LEAST_RUNS:
        return [kind(kind.SEPARATOR.join(runs))], common
    packed = _pack(runs, size, common)
    if packed is None or 2 * len(packed) > size:
        common = _common_texts(runs[-2], runs[-1])
        packed = _pack(runs, size, common)
    return [Run(b"".join(runs)) if packed is None else PackedRun(packed, common)], common


def _pack(runs: Sequence[bytes], size: int, common: Common) -> bytes | None:
    """Return runs, of this size together, with marks; None if they do not all begin so, or have bytes of marks."""
    start, middle = common
    packed = START_MARK.join(map(bytes.removeprefix, runs, repeat(start)))
    marks = len(runs) - 1
    if len(packed) != size - len(runs) * len(start) + marks or packed.count(START_MARK) != marks or 1 in packed:
        return None
    return MIDDLE_MARK.join(packed.split(middle)) if middle else packed


def _common_texts(frame: bytes, other: bytes) -> Common:
    """Return how two frames begin, up to a value, and what they have behind that, up to a text."""
    same = _common_start(frame, other)
    start = same[: same.rfind(b":") + 1]
    ends = [each.find(b",", len(start)) for each in (frame, other)]
    middle = _common_start(frame[ends[0] :], other[ends[1] :]) if min(ends) > 0 else b""
    middle = middle[: middle.rfind(b'"') + 1]
    has_marks = any(mark in text for mark in (START_MARK, MIDDLE_MARK) for text in (start, middle))
    return NOTHING if has_marks else (start, middle)


def _common_start(text: bytes, other: bytes) -> bytes:
    """Return what two texts begin with: as numbers, they differ in the bits from the first other byte on."""
    size = min(len(text), len(other), SEARCHED_BYTES)
    differing = int.from_bytes(text[:size]) ^ int.from_bytes(other[:size])
    return text[: size - (differing.bit_length() + 7) // 8]
