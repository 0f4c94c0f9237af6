"""A store in a SQLite file, shared by the processes of one machine.

Keeps: until an entry expires, also across restarts. What was acknowledged survives the end of any process, kill -9
    included. A power cut or a crash of the operating system may lose the last moments before it, but leaves the file
    consistent. The file must be on a local disk, because WAL mode needs memory that its processes share. Time is the
    machine's clock when the file was first opened after a start of the machine, and what has passed since: setting the
    clock changes nothing. Free room is used again; the file does not shrink.
Fails: with StoreError when a command takes longer than `timeout_ms`, `max_waiting` commands wait, the disk is full or
    the file is damaged. A command that is cancelled or timed out while it waits is not carried out; one that is already
    running is carried out as a whole. `start` fails with ValueError for a path that cannot be written, a file that is
    no database or belongs to another program, and a schema that is newer than this program.
Source: https://sqlite.org/wal.html, https://sqlite.org/lang_transaction.html
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Concatenate, ParamSpec, TypeVar

from pydantic import AfterValidator, PositiveInt, PrivateAttr

from proxy.config.paths import check_writable
from proxy.stores import PROBE_KEY, Grant, Holder, HoldRequest, Store, StoreError
from proxy.stores.sqlite.commit_thread import CommitThread, StoreCommand
from proxy.stores.sqlite.database import copy_database, open_with_clock
from proxy.stores.sqlite.transaction import Pieces, Transaction

PIECE_BYTES = 262_144
"""A longer value is written and read in pieces, in bytes: the commands of other calls are carried out in between."""
GET_TRIES = 3
MAGIC = b"SQLite format 3\x00"  # https://sqlite.org/fileformat.html#magic_header_string

P = ParamSpec("P")
T = TypeVar("T")


def _expand_user(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ValueError(f"{path} names a home directory that cannot be determined") from error


class SqliteStore(Store):
    path: Annotated[Path, AfterValidator(_expand_user)]
    """The file, created if it does not exist, in a folder that does; ~ is the home directory."""
    timeout_ms: PositiveInt = 1_000
    """How long a command may take, including the wait for other processes, in milliseconds."""
    max_waiting: PositiveInt = 1_000
    """How many commands may wait at most."""

    _thread: CommitThread | None = PrivateAttr(default=None)
    _in_pieces: asyncio.Lock = PrivateAttr(default_factory=asyncio.Lock)  # one at a time: no batch has many pieces

    @cached_property
    def _clock(self) -> Callable[[], float] | None:
        return None  # that of the file

    def check(self) -> None:
        check_writable(self.path)
        if self.path.exists():
            with self.path.open("rb") as file:
                beginning = file.read(len(MAGIC))
            if beginning in (MAGIC, b""):
                return
            raise ValueError(f"{self.path} is no SQLite database")

    async def start(self) -> None:
        database, clock = await asyncio.to_thread(open_with_clock, self.path.absolute(), self.timeout_ms / 1000)
        self._thread = CommitThread(database, self._clock or clock, self.max_waiting)

    def back_up(self, target: Path) -> None:
        """Copy the file as it is at one moment. Raises ValueError if that is impossible or `target` exists."""
        copy_database(self.path, target)

    async def close(self) -> None:
        if self._thread is not None:
            await asyncio.to_thread(self._thread.close)

    async def get(self, key: str) -> bytes | None:
        found = await self._read(Transaction.get, key)
        return await self._get_in_pieces(key) if isinstance(found, Pieces) else found

    async def get_many(self, keys: Sequence[str]) -> Sequence[bytes | None]:
        found = await self._read(lambda transaction: [transaction.get(key) for key in keys])
        values = []
        for key, value in zip(keys, found, strict=True):
            values.append(await self._get_in_pieces(key) if isinstance(value, Pieces) else value)
        return values

    async def put(self, key: str, value: bytes, *, ttl_s: float, if_absent: bool = False, group: str = "") -> bool:
        del group  # it evicts nothing
        if len(value) <= PIECE_BYTES:
            return await self._write_sized(len(value), Transaction.put, key, value, ttl_s, if_absent=if_absent)
        async with self._in_pieces:
            record = await self._write(Transaction.begin_pieces)
            for position, start in enumerate(range(0, len(value), PIECE_BYTES), 1):
                piece = value[start : start + PIECE_BYTES]
                await self._write_sized(len(piece), Transaction.add_piece, record, position, piece)
            return await self._write(Transaction.finish_pieces, record, key, ttl_s, if_absent=if_absent)

    async def delete(self, key: str) -> None:
        await self._write(Transaction.delete, key)

    async def take(
        self, key: str, amount: int, *, limit: int, window_s: float, whole: bool = False, group: str = ""
    ) -> Grant:
        del group  # it evicts nothing
        return await self._write(Transaction.take, key, amount, limit, window_s, whole=whole)

    async def give(self, key: str, amount: int, *, window: int) -> None:
        await self._write(Transaction.give, key, amount, window)

    async def hold(
        self, key: str, asked: HoldRequest, *, limit: int, window_s: float, holder: Holder, group: str = ""
    ) -> Grant:
        del group  # it evicts nothing
        return await self._write(Transaction.hold, key, asked, limit, window_s, holder)

    async def append(self, key: str, value: bytes, *, ttl_s: float, group: str = "") -> int:
        del group  # it evicts nothing
        return await self._write_sized(len(value), Transaction.append, key, value, ttl_s)

    async def tail(self, key: str, *, after: int = 0, limit: int = 1000) -> Sequence[tuple[int, bytes]]:
        return await self._read(Transaction.tail, key, after, limit)

    async def add(
        self, key: str, rows: Mapping[str, Sequence[int]], *, ttl_s: float, source: str, number: int, group: str = ""
    ) -> bool:
        del group  # it evicts nothing
        return await self._write(Transaction.add, key, rows, ttl_s, source, number)

    async def rows(self, key: str) -> Mapping[str, Sequence[int]]:
        return await self._read(Transaction.rows, key)

    async def claim(self, key: str, owner: str, *, lease_s: float) -> bool:
        return await self._write(Transaction.claim, key, owner, lease_s)

    async def release(self, key: str, owner: str) -> None:
        await self._write(Transaction.release, key, owner)

    async def scan(self, prefix: str) -> AsyncIterator[str]:
        last: str | None = None
        while keys := await self._read(Transaction.scan, prefix, last):
            for key in keys:
                yield key
            last = keys[-1]

    async def probe_keys(self) -> Sequence[str]:
        return [PROBE_KEY]

    async def _get_in_pieces(self, key: str) -> bytes | None:
        """Return a value that was in pieces when it was looked up: another one may have replaced it since."""
        async with self._in_pieces:
            for _ in range(GET_TRIES):
                found = await self._read(Transaction.get, key)
                value = await self._read_pieces(found) if isinstance(found, Pieces) else found
                if found is None or value is not None:
                    return value
        raise StoreError("the value was replaced again and again while it was read")

    async def _read_pieces(self, pieces: Pieces) -> bytes | None:
        """Return a value in pieces; None if it was replaced and swept meanwhile."""
        read = []
        for position in range(1, pieces.number + 1):
            piece = await self._read(Transaction.piece, pieces.record, position)
            if piece is None:
                return None
            read.append(piece)
        return await asyncio.to_thread(b"".join, read)

    async def _read(self, verb: Callable[Concatenate[Transaction, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        result: T = await self._ask(lambda transaction: verb(transaction, *args, **kwargs), writes=False)
        return result

    async def _write(self, verb: Callable[Concatenate[Transaction, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        result: T = await self._ask(lambda transaction: verb(transaction, *args, **kwargs), writes=True)
        return result

    async def _write_sized(
        self, size_bytes: int, verb: Callable[Concatenate[Transaction, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Write a value of this size."""
        result: T = await self._ask(
            lambda transaction: verb(transaction, *args, **kwargs), writes=True, size_bytes=size_bytes
        )
        return result

    async def _ask(self, run: Callable[[Transaction], object], *, writes: bool, size_bytes: int = 0) -> Any:
        if self._thread is None:
            raise StoreError("the store is not started")
        command = StoreCommand(run, writes, asyncio.get_running_loop().create_future(), size_bytes)
        self._thread.submit(command)
        try:
            async with asyncio.timeout(self.timeout_ms / 1000):
                return await command.done
        except TimeoutError as error:
            raise StoreError(f"the command took longer than timeout_ms, which is {self.timeout_ms}") from error
