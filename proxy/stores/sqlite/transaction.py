"""What each verb of the SQLite store does within a transaction."""

import secrets
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import orjson

from proxy.stores import LARGEST, LONGEST_S, Grant, Holder, HoldRequest, StoreError, added, grantable
from proxy.stores._holds import Hold, Holds, change_hold

SCAN_MAX = 500
VALUE, COUNTER, JOURNAL, TALLY, LEASE = "value", "counter", "journal", "tally", "lease"
LARGE = "large"
"""The kind of a value in pieces, which are entries of its record; `number` is how many there are."""
UNFINISHED_S = 60.0
"""How long after its last piece a value that is not complete is kept, in seconds."""
SWEPT_JOURNALS = 8
"""How many journals and values in pieces a transaction removes at most."""
SWEPT_PIECES = 4
"""How many pieces a transaction removes at most: they are long."""


class KeyRow(NamedTuple):
    """The row of a key."""

    id: int
    kind: str
    data: bytes | None
    number: int
    window: int
    expires_at: float


class Pieces(NamedTuple):
    """Where the pieces of a value are."""

    record: int
    number: int


class Transaction:
    """The verbs at one moment in time. Each looks before it writes, so one that fails has changed nothing."""

    def __init__(self, database: sqlite3.Connection, now: float) -> None:
        self._execute = database.execute
        self._now = now

    def get(self, key: str) -> bytes | Pieces | None:
        found = self._find(key, VALUE)
        if found is None:
            return None
        return Pieces(found.id, found.number) if found.kind == LARGE else found.data

    def piece(self, record: int, position: int) -> bytes | None:
        """Return a piece of a value; None if the value was replaced and swept meanwhile."""
        select = "SELECT data FROM entry WHERE journal = ? AND position = ?"
        row = self._execute(select, (record, position)).fetchone()
        return None if row is None else bytes(row[0])

    def begin_pieces(self) -> int:
        """Return the id of a record for a value in pieces. It has no key yet, and is swept if nothing follows."""
        insert = "INSERT INTO record (kind, number, expires_at) VALUES (?, 0, ?)"
        return self._execute(insert, (LARGE, self._now + UNFINISHED_S)).lastrowid or 0

    def add_piece(self, record: int, position: int, data: bytes) -> None:
        """Write the next piece. Raises StoreError if the record was swept."""
        update = "UPDATE record SET number = ?, expires_at = ? WHERE id = ? AND key IS NULL"
        if not self._execute(update, (position, self._now + UNFINISHED_S, record)).rowcount:
            raise StoreError("the value was not written in time")
        self._execute("INSERT INTO entry VALUES (?, ?, ?)", (record, position, data))

    def finish_pieces(self, record: int, key: str, ttl_s: float, *, if_absent: bool) -> bool:
        """Give the pieces their key, as `put` does; return whether they are kept."""
        if if_absent and self._any(key) is not None:
            self._execute("UPDATE record SET expires_at = 0 WHERE id = ?", (record,))
            return False
        self.delete(key)
        update = "UPDATE record SET key = ?, expires_at = ? WHERE id = ? AND key IS NULL"
        if not self._execute(update, (key, self._end(ttl_s), record)).rowcount:
            raise StoreError("the value was not written in time")
        return True

    def put(self, key: str, value: bytes, ttl_s: float, *, if_absent: bool) -> bool:
        if if_absent and self._any(key) is not None:
            return False
        self._insert(key, VALUE, ttl_s, data=value)
        return True

    def delete(self, key: str) -> None:
        self._retire_journal(key)
        self._execute("DELETE FROM record WHERE key = ?", (key,))

    def take(self, key: str, amount: int, limit: int, window_s: float, *, whole: bool) -> Grant:
        found = self._find(key, COUNTER)
        used = 0 if found is None else found.number
        granted = grantable(amount, used, limit, whole=whole)
        if found is not None:
            if granted:
                self._execute("UPDATE record SET number = ? WHERE id = ?", (used + granted, found.id))
            return Grant(granted, used + granted, found.window, found.expires_at - self._now)
        if not granted:
            return Grant(0, 0, 0, window_s)
        window = secrets.randbits(53) or 1
        self._insert(key, COUNTER, window_s, number=granted, window=window)
        return Grant(granted, granted, window, min(window_s, LONGEST_S))

    def give(self, key: str, amount: int, window: int) -> None:
        found = self._find(key, COUNTER)
        if found is not None and found.window == window:
            left = max(0, found.number - max(0, amount))
            self._execute("UPDATE record SET number = ? WHERE id = ?", (left, found.id))

    def hold(self, key: str, asked: HoldRequest, limit: int, window_s: float, holder: Holder) -> Grant:
        found = self._find(key, COUNTER)
        holds: Holds = {
            name: Hold(*each) for name, each in orjson.loads(found.data or b"{}" if found else b"{}").items()
        }
        if found is None or found.window != asked.window:
            asked = replace(asked, kept=0, spent=0)
        used = 0 if found is None else found.number
        used, held = change_hold(holds, used, asked, min(limit, LARGEST), holder, self._now)
        data = orjson.dumps({name: tuple(each) for name, each in holds.items()})
        if found is not None:
            self._execute("UPDATE record SET number = ?, data = ? WHERE id = ?", (used, data, found.id))
            return Grant(held, used, found.window, found.expires_at - self._now)
        if not used:
            return Grant(0, 0, 0, window_s)
        window = secrets.randbits(53) or 1
        self._insert(key, COUNTER, window_s, number=used, window=window, data=data)
        return Grant(held, used, window, min(window_s, LONGEST_S))

    def append(self, key: str, value: bytes, ttl_s: float) -> int:
        found = self._find(key, JOURNAL)
        if found is None:
            journal, position = self._insert(key, JOURNAL, ttl_s, number=1), 1
        else:
            journal, position = found.id, found.number + 1
            row = (position, self._end(ttl_s), journal)
            self._execute("UPDATE record SET number = ?, expires_at = ? WHERE id = ?", row)
        self._execute("INSERT INTO entry VALUES (?, ?, ?)", (journal, position, value))
        return position

    def tail(self, key: str, after: int, limit: int) -> Sequence[tuple[int, bytes]]:
        found = self._find(key, JOURNAL)
        if found is None:
            return []
        select = "SELECT position, data FROM entry WHERE journal = ? AND position > ? ORDER BY position LIMIT ?"
        return self._execute(select, (found.id, after, max(0, limit))).fetchall()

    def add(self, key: str, rows: Mapping[str, Sequence[int]], ttl_s: float, source: str, number: int) -> bool:
        found = self._find(key, TALLY)
        last, sums = ({}, {}) if found is None else orjson.loads(found.data or b"")
        if number <= last.get(source, 0):
            return False
        last[source] = number
        for name, numbers in rows.items():
            sums[name] = added(sums.get(name, ()), numbers)
        self._insert(key, TALLY, ttl_s, data=orjson.dumps((last, sums)))
        return True

    def rows(self, key: str) -> Mapping[str, Sequence[int]]:
        found = self._find(key, TALLY)
        rows: Mapping[str, Sequence[int]] = {} if found is None else orjson.loads(found.data or b"")[1]
        return rows

    def claim(self, key: str, owner: str, lease_s: float) -> bool:
        found = self._find(key, LEASE)
        if found is not None and found.data != owner.encode():
            return False
        self._insert(key, LEASE, lease_s, data=owner.encode())
        return True

    def release(self, key: str, owner: str) -> None:
        found = self._find(key, LEASE)
        if found is not None and found.data == owner.encode():
            self._execute("DELETE FROM record WHERE id = ?", (found.id,))

    def scan(self, prefix: str, last: str | None) -> Sequence[str]:
        """Return the next keys after `last` that start with `prefix`."""
        select = "SELECT key FROM record WHERE key >= ? AND key IS NOT ? AND expires_at > ? ORDER BY key LIMIT ?"
        rows = self._execute(select, (prefix if last is None else last, last, self._now, SCAN_MAX))
        return [key for (key,) in rows if key.startswith(prefix)]

    def has_expired(self) -> bool:
        """Whether there is anything to sweep."""
        return self._execute("SELECT 1 FROM record WHERE expires_at <= ? LIMIT 1", (self._now,)).fetchone() is not None

    def sweep(self, limit: int) -> bool:
        """Remove at most `limit` rows that have expired, and return whether more may be left.

        Each statement, and each row that one returns, gives up the interpreter's lock and waits for it again: so all
        records without entries are removed by one.
        """
        delete = """DELETE FROM record WHERE id IN (SELECT id FROM
            (SELECT id, kind FROM record WHERE expires_at <= ? ORDER BY expires_at LIMIT ?)
            WHERE kind NOT IN ('journal', 'large'))"""
        removed = self._execute(delete, (self._now, limit)).rowcount
        if removed == limit:
            return True
        select = """SELECT id, kind FROM
            (SELECT id, kind FROM record WHERE expires_at <= ? ORDER BY expires_at LIMIT ?)
            WHERE kind IN ('journal', 'large') LIMIT ?"""
        found = self._execute(select, (self._now, limit, SWEPT_JOURNALS)).fetchall()
        left = limit - removed
        for record, kind in found:
            if kind == LARGE and self._sweep_entries(record, SWEPT_PIECES) == SWEPT_PIECES:
                return True
            if kind == JOURNAL:
                left -= self._sweep_entries(record, left)
            if left <= 0:
                return True
            self._execute("DELETE FROM record WHERE id = ?", (record,))
            left -= 1
        return left <= 0 or len(found) == SWEPT_JOURNALS

    def _sweep_entries(self, journal: int, limit: int) -> int:
        """Remove the first entries of a journal, and return how many."""
        delete = """DELETE FROM entry WHERE journal = ?1 AND position <
            (SELECT min(position) FROM entry WHERE journal = ?1) + ?2"""
        return self._execute(delete, (journal, limit)).rowcount

    def _any(self, key: str) -> KeyRow | None:
        """Return the unexpired record of a key, of whatever kind."""
        select = "SELECT id, kind, data, number, window, expires_at FROM record WHERE key = ? AND expires_at > ?"
        row = self._execute(select, (key, self._now)).fetchone()
        return None if row is None else KeyRow(*row)

    def _find(self, key: str, kind: str) -> KeyRow | None:
        """Return the unexpired record of that kind. Raises StoreError when the key holds another kind."""
        found = self._any(key)
        if found is None:
            return None
        held = VALUE if found.kind == LARGE else found.kind
        if held != kind:
            raise StoreError(f"the key holds a {held}, not a {kind}")
        return found

    def _insert(
        self, key: str, kind: str, ttl_s: float, *, data: bytes | None = None, number: int = 0, window: int = 0
    ) -> int:
        """Write a record in place of what the key holds, and return its id."""
        self._retire_journal(key)
        row = (key, kind, data, number, window, self._end(ttl_s))
        insert = "INSERT OR REPLACE INTO record (key, kind, data, number, window, expires_at) VALUES (?, ?, ?, ?, ?, ?)"
        return self._execute(insert, row).lastrowid or 0

    def _retire_journal(self, key: str) -> None:
        """Take the key from a journal or a value in pieces. The sweep removes the entries, in slices."""
        update = "UPDATE record SET key = NULL, expires_at = 0 WHERE key = ? AND kind IN ('journal', 'large')"
        self._execute(update, (key,))

    def _end(self, ttl_s: float) -> float:
        return self._now + min(ttl_s, LONGEST_S)
