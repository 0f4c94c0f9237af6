"""Reads Redis' answers: an answer in another form than the command has is a fault of the store."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from proxy.stores import StoreError
from proxy.stores._redis_parser import ValuePieces

ODD_ANSWER = (ValueError, TypeError, LookupError, AttributeError, RuntimeError, OverflowError, EOFError, AssertionError)
"""The exceptions of reading an answer in an unexpected form."""


@contextmanager
def reading() -> Iterator[None]:
    """Turn the exceptions of reading an unexpected answer into StoreError inside the block."""
    try:
        yield
    except ODD_ANSWER as error:
        raise unreadable() from error


def value_in(answer: object) -> bytes | None:
    return None if answer is None else bytes_in(answer)


async def join_value(pieces: ValuePieces) -> bytes:
    """Return a large value from its pieces, which are joined in a thread."""
    return await asyncio.get_running_loop().run_in_executor(None, b"".join, pieces)


def bytes_in(answer: object) -> bytes:
    if isinstance(answer, bytes):
        return answer
    raise unreadable()


def rows_in(fields: Mapping[object, object]) -> Mapping[str, Sequence[int]]:
    """Return the rows in the fields of a tally, which the script ADD explains. Raises StoreError for another hash."""
    found = {bytes_in(name): bytes_in(value) for name, value in fields.items()}
    if found and b"t" not in found:
        raise StoreError("Redis: the key does not hold a tally")
    rows = {name: value for name, value in found.items() if name.startswith(b"r")}
    return {name[1:].decode(): [*map(int, value.split())] for name, value in rows.items()}


def unreadable() -> StoreError:
    return StoreError("Redis answered in another form than the command has")
