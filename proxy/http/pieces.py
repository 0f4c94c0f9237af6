"""Cuts large bodies and batches into pieces: one write of all of it would hold the event loop while it is copied."""

from collections.abc import Iterable, Iterator

PIECE_BYTES = 131_072
"""The most bytes of one write; other clients are served between two writes."""


def pieces_of(parts: Iterable[bytes]) -> Iterator[bytes]:
    """Yield these parts, one after the other, in pieces of at most PIECE_BYTES; short parts share a piece."""
    waiting: list[bytes] = []
    size = 0
    for part in parts:
        for start in range(0, len(part), PIECE_BYTES):
            piece = part[start : start + PIECE_BYTES]
            if size + len(piece) > PIECE_BYTES:
                yield _join(waiting)
                waiting, size = [], 0
            waiting.append(piece)
            size += len(piece)
    if waiting:
        yield _join(waiting)


def _join(parts: list[bytes]) -> bytes:
    return parts[0] if len(parts) == 1 else b"".join(parts)
