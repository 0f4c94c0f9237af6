"""The thread that works on the SQLite file: it commits the commands that wait together in one transaction."""

import asyncio
import queue
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from proxy.stores import StoreError
from proxy.stores.sqlite.transaction import Transaction
from proxy.wire.loggable import name_failure

BATCH_MAX = 256
"""How many commands are committed together at most."""
LARGE_BYTES = 65_536
"""From this size on a value is written in a transaction of its own, and those of other commands come before it."""
SWEEP_MAX = 100
"""How many expired records a transaction removes at most, beside one for each of its commands."""
IDLE_S, SWEEPING_S = 1.0, 0.01
"""How long the thread waits for a command before it sweeps: first, and while there is more to sweep."""

Outcome = tuple[object, StoreError | None]


@dataclass(frozen=True, slots=True)
class StoreCommand:
    """A verb with its arguments, and where its outcome goes."""

    run: Callable[[Transaction], object]
    writes: bool
    done: asyncio.Future[Any]
    size_bytes: int = 0  # of the value that is written

    def finish(self, result: object, failure: StoreError | None) -> None:
        """Report the outcome, for the thread of the event loop. One that was cancelled in the meantime gets none."""
        if self.done.done():
            return
        if failure is None:
            self.done.set_result(result)
        else:
            self.done.set_exception(failure)


class CommitThread:
    """Runs commands in order, but those with large values one by one, each after all others that wait.

    Each is acknowledged after the commit, so what was acknowledged is kept.
    """

    def __init__(self, database: sqlite3.Connection, clock: Callable[[], float], max_waiting: int) -> None:
        self._database = database
        self._clock = clock
        self._max_waiting = max_waiting
        self._waiting: queue.SimpleQueue[StoreCommand | None] = queue.SimpleQueue()
        self._large: deque[StoreCommand] = deque()  # taken from there, and still waiting
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="sqlite-store", daemon=True)
        self._thread.start()

    def submit(self, command: StoreCommand) -> None:
        """Queue a command. Raises StoreError when too many wait or the thread has ended."""
        if self._closed or not self._thread.is_alive():
            raise StoreError("the store is closed")
        if self._waiting.qsize() + len(self._large) >= self._max_waiting:
            raise StoreError(f"{self._max_waiting} commands are waiting, and max_waiting allows no more")
        self._waiting.put(command)

    def close(self) -> None:
        """Run the commands that wait, and close the file."""
        self._closed = True
        self._waiting.put(None)
        self._thread.join()
        self._database.close()

    def _work(self) -> None:
        wait_s, last = IDLE_S, False
        while not last or self._large:
            batch: list[StoreCommand] = []
            if not last:
                batch, last = self._next_batch(wait_s)
            more = False
            if batch or not self._large:
                more = self._run(batch)
            if self._large:
                more = self._run(self._next_large())
            wait_s = 0 if self._large else SWEEPING_S if more else IDLE_S

    def _next_batch(self, wait_s: float) -> tuple[list[StoreCommand], bool]:
        """Return the commands without a large value, less the cancelled ones, and whether they are the last."""
        batch: list[StoreCommand] = []
        with suppress(queue.Empty):
            command = self._waiting.get(timeout=wait_s) if wait_s else self._waiting.get_nowait()
            while command is not None:
                if command.size_bytes >= LARGE_BYTES:
                    self._large.append(command)
                elif not command.done.cancelled():
                    batch.append(command)
                if len(batch) >= BATCH_MAX:
                    return batch, False
                command = self._waiting.get_nowait()
            return batch, True
        return batch, False

    def _next_large(self) -> list[StoreCommand]:
        """Return the command with a large value that has waited for longest; none if it was cancelled."""
        command = self._large.popleft()
        return [] if command.done.cancelled() else [command]

    def _run(self, batch: Sequence[StoreCommand]) -> bool:
        """Run commands in one transaction, or sweep when there are none; return whether there is more to sweep."""
        try:
            outcomes, more = self._commit(batch)
        except sqlite3.Error as error:
            with suppress(sqlite3.Error):
                self._database.rollback()
            outcomes, more = [(None, StoreError(f"SQLite: {name_failure(error)}")) for _ in batch], False
        if batch:
            with suppress(RuntimeError):  # the event loop has ended without closing the store
                self._loop.call_soon_threadsafe(_finish, batch, outcomes)
        return more

    def _commit(self, batch: Sequence[StoreCommand]) -> tuple[list[Outcome], bool]:
        writes = any(command.writes for command in batch) or (not batch and self._transaction().has_expired())
        self._database.execute("BEGIN IMMEDIATE" if writes else "BEGIN")
        transaction = self._transaction()  # its time begins when the lock is held
        outcomes = [self._attempt(command, transaction) for command in batch]
        more = writes and transaction.sweep(SWEEP_MAX + len(batch))
        self._database.execute("COMMIT")
        return outcomes, more

    def _transaction(self) -> Transaction:
        return Transaction(self._database, self._clock())

    def _attempt(self, command: StoreCommand, transaction: Transaction) -> Outcome:
        """Run one command and return its outcome; a command that fails leaves no trace in the others."""
        self._database.execute("SAVEPOINT command")
        try:
            outcome: Outcome = (command.run(transaction), None)
        except (StoreError, sqlite3.Error, ValueError, OverflowError) as error:
            if not self._database.in_transaction:
                if isinstance(error, sqlite3.Error):
                    raise  # SQLite rolled back, as it does on a full disk
                raise sqlite3.OperationalError from error
            self._database.execute("ROLLBACK TO command")
            outcome = (None, error if isinstance(error, StoreError) else StoreError(f"SQLite: {name_failure(error)}"))
        self._database.execute("RELEASE command")
        return outcome


def _finish(batch: Sequence[StoreCommand], outcomes: Sequence[Outcome]) -> None:
    for command, (result, failure) in zip(batch, outcomes, strict=True):
        command.finish(result, failure)
