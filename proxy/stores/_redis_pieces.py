"""Values too large for one command of Redis: written, read and removed in pieces, between the commands of other calls.

The key holds a mark, which names the record of the value and how many pieces it has. These are fields of a hash whose
key has the same slot, so a cluster has both on one node. The hash gets its key when it is complete, in the step that
sets the mark; a reader that finds another record there begins anew. A small value is put together with a look for such
a hash, which is removed then; if that fails, it expires.
"""

import asyncio
import re
import secrets
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from typing import Any, Protocol

from proxy.stores import StoreError
from proxy.stores._redis_answers import join_value, value_in
from proxy.stores._redis_parser import ValuePieces
from proxy.stores._redis_scripts import CLEAR, FINISH

PIECE_BYTES = 261_120
"""A larger value is written in pieces, in bytes. A piece and its command are below the 256 KiB of work for a thread."""
UNFINISHED_MS = b"60000"
"""How long after its last piece a value that is not complete is kept."""
TRIES = 3
"""How often a value is looked up again that is replaced while it is read."""
START = b"\0headgate:pieces:"
"""The prefix of a mark; values that begin so are stored in pieces."""
WHOLE = b"whole"
"""The field that the hash of a complete value has. Of a hash that is not there it is read as fast as a value."""
_MARK = re.compile(START + rb"([0-9a-f]{32}):([0-9]{1,9})")


class CommandSender(Protocol):
    """One server or the nodes of a cluster."""

    def command(self, *parts: bytes) -> Awaitable[Sequence[Any]]: ...

    def run(self, script: str, key: str, *arguments: bytes) -> Awaitable[Any]: ...


def is_large(value: bytes) -> bool:
    """Return whether a value is written in pieces, as are values that look like a mark."""
    return len(value) > PIECE_BYTES or value.startswith(START)


def pieces_key(key: str) -> bytes:
    """Return the key of the pieces of a value, which has the same slot: what is in the first braces decides."""
    return (b"%b:pieces" if "{" in key else b"{%b}:pieces") % key.encode()


class LargeValues:
    """Writes and reads large values of one store, one at a time. Its methods raise StoreError."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()

    async def put(self, server: CommandSender, key: str, value: bytes, ttl_ms: int, *, if_absent: bool) -> bool:
        """Keep a value, and return whether that was done."""
        record = _new_record()
        unfinished = b"%b:%b" % (pieces_key(key), record)
        starts = range(0, len(value), PIECE_BYTES)
        async with self._turn:
            for number, start in enumerate(starts):
                piece = value[start : start + PIECE_BYTES]
                await server.command(b"HSET", unfinished, _field(record, number), piece)
                await server.command(b"PEXPIRE", unfinished, UNFINISHED_MS)
            mark = b"%b%b:%d" % (START, record, len(starts))
            terms = b"%d" % ttl_ms, b"%d" % if_absent, unfinished, pieces_key(key), WHOLE
            return bool(await server.run(FINISH, key, mark, *terms))

    async def remove(self, server: CommandSender, key: str) -> None:
        """Remove the pieces of a value that a small one has replaced, unless another large one is there by now."""
        with suppress(StoreError):  # the value is set, and its pieces expire
            await server.run(CLEAR, key, START, pieces_key(key))

    async def get(self, server: CommandSender, key: str, found: bytes) -> bytes | None:
        """Return a value, given what its key holds: itself if that is no mark; None if it is gone."""
        if not found.startswith(START):
            return found
        async with self._turn:
            for _ in range(TRIES):
                mark = _MARK.fullmatch(found)
                if mark is None:
                    return found
                if (value := await self._read(server, key, mark[1], int(mark[2]))) is not None:
                    return value
                (answer,) = await server.command(b"GET", key.encode())
                again = await _bytes(answer)
                if again is None or again == found:  # the pieces were evicted, or have expired
                    return None
                found = again
        raise StoreError("Redis: the value is replaced all the time")

    async def _read(self, server: CommandSender, key: str, record: bytes, number: int) -> bytes | None:
        pieces: list[bytes] = []
        for position in range(number):
            (answer,) = await server.command(b"HGET", pieces_key(key), _field(record, position))
            piece = await _bytes(answer)
            if piece is None:
                return None
            pieces.append(piece)
        return await join_value(ValuePieces(pieces))


def _new_record() -> bytes:
    return secrets.token_hex(16).encode()


def _field(record: bytes, number: int) -> bytes:
    return b"%b:%d" % (record, number)


async def _bytes(answer: Any) -> bytes | None:
    return await join_value(answer) if isinstance(answer, ValuePieces) else value_in(answer)
