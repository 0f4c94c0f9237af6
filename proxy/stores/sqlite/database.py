"""Opens the file of the SQLite store: its mode, its settings, its schema."""

import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

SCHEMA_VERSION = 1
SCHEMA = (
    "CREATE TABLE schema (version INTEGER NOT NULL)",
    # key: NULL in a row that was deleted or replaced and waits for the sweep, and while the pieces of a large value are
    # written. kind: value, large (a value in pieces), counter, journal, tally or lease. data: the bytes of a value, the
    # owner of a lease, in JSON the sources and rows of a tally and what is held of a counter. number: what is in use of
    # a counter, the length of a journal, the number of pieces. window: identifies the window of a counter.
    # expires_at: seconds since 1970.
    """CREATE TABLE record (id INTEGER PRIMARY KEY, key TEXT UNIQUE, kind TEXT NOT NULL, data BLOB, number INTEGER,
        window INTEGER, expires_at REAL NOT NULL)""",
    "CREATE INDEX record_expires_at ON record (expires_at)",
    # The entries of a journal, or the pieces of a value; `journal` is the id of the record.
    """CREATE TABLE entry (journal INTEGER NOT NULL, position INTEGER NOT NULL, data BLOB NOT NULL,
        PRIMARY KEY (journal, position)) WITHOUT ROWID""",
)
CLOCK = "CREATE TABLE IF NOT EXISTS clock (boot TEXT NOT NULL, started_at REAL NOT NULL)"
"""When the machine was started, in seconds since 1970, as it seemed to the first process that opened the file since."""
BOOT = Path("/proc/sys/kernel/random/boot_id")
"""Names the time between two starts of the machine, on Linux."""
RETRY_S = 0.01
WAL_MAX_BYTES = 67_108_864


def open_database(path: Path, timeout_s: float) -> sqlite3.Connection:
    """Open or create the file. Raises ValueError, with the path, when that is impossible."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # -wal and -shm get the same mode
    except OSError as error:
        raise ValueError(f"{path} cannot be opened: {error.strerror}") from error
    database = sqlite3.connect(path, timeout=timeout_s, isolation_level=None, check_same_thread=False)
    try:
        _check_schema(database)
        _set_wal_mode(database, timeout_s)
        _create_schema(database)
        _note_start(database)
    except sqlite3.Error as error:
        database.close()
        found = "is not a SQLite database" if error.sqlite_errorname == "SQLITE_NOTADB" else f"cannot be used: {error}"
        raise ValueError(f"{path} {found}") from error
    except ValueError as error:
        database.close()
        raise ValueError(f"{path} {error}") from error
    return database


def open_with_clock(path: Path, timeout_s: float) -> tuple[sqlite3.Connection, Callable[[], float]]:
    """Open or create the file, and return the time by which what it has expires. Raises as `open_database`."""
    database = open_database(path, timeout_s)
    return database, even_clock(database)


def even_clock(database: sqlite3.Connection) -> Callable[[], float]:
    """Return a clock in seconds since 1970 that goes on evenly although the machine's clock is set.

    It is what that showed when the file was first opened after a start of the machine, and what has passed since: the
    same for all processes. Where a start has no name it is the machine's clock.
    """
    boot = _boot()
    if boot is None:
        return time.time
    (started_at,) = database.execute("SELECT started_at FROM clock WHERE boot = ?", (boot,)).fetchone()
    return lambda: float(started_at) + _uptime_s()


def copy_database(path: Path, target: Path) -> None:
    """Write what a file has at one moment to a new one, while other processes go on using it.

    Raises ValueError, with the path, if the file is missing, or the new one exists or cannot be written.
    """
    if target.exists():
        raise ValueError(f"{target} exists; a backup is a new file")
    try:
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise ValueError(f"{target} cannot be created: {error.strerror}") from error
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True)) as database:
            _check_schema(database)
            database.execute("VACUUM INTO ?", (str(target),))
    except (sqlite3.Error, ValueError) as error:
        target.unlink()
        raise ValueError(f"{path} cannot be copied to {target}: {error}") from error


def _check_schema(database: sqlite3.Connection) -> None:
    """Raises ValueError unless the database is empty or has the schema of this version; it is not changed here."""
    tables = _tables(database)
    if not tables:
        return
    if not tables >= {"schema", "record", "entry"}:
        raise ValueError("is a database of another program")
    (version,) = database.execute("SELECT max(version) FROM schema").fetchone()
    if version != SCHEMA_VERSION:
        raise ValueError(f"has schema version {version}; this program knows version {SCHEMA_VERSION}")


def _set_wal_mode(database: sqlite3.Connection, timeout_s: float) -> None:
    """Turn on WAL mode. SQLite's own timeout does not hold when several processes do this at the same time."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            (mode,) = database.execute("PRAGMA journal_mode = WAL").fetchone()
            break
        except sqlite3.OperationalError as error:
            if not error.sqlite_errorname.startswith("SQLITE_BUSY") or time.monotonic() > deadline:
                raise
            time.sleep(RETRY_S)
    if mode != "wal":
        raise ValueError("is on a file system that WAL mode does not work on; use a local disk")
    database.execute("PRAGMA synchronous = NORMAL")
    database.execute(f"PRAGMA journal_size_limit = {WAL_MAX_BYTES}")


def _create_schema(database: sqlite3.Connection) -> None:
    """Create the schema unless another process has done so."""
    database.execute("BEGIN IMMEDIATE")
    if not _tables(database):
        for statement in SCHEMA:
            database.execute(statement)
        database.execute("INSERT INTO schema VALUES (?)", (SCHEMA_VERSION,))
    database.execute("COMMIT")


def _note_start(database: sqlite3.Connection) -> None:
    """Note when the machine was started, unless another process has done so."""
    if (boot := _boot()) is None:
        return
    database.execute("BEGIN IMMEDIATE")
    database.execute(CLOCK)
    if database.execute("SELECT 1 FROM clock WHERE boot = ?", (boot,)).fetchone() is None:
        database.execute("DELETE FROM clock")
        database.execute("INSERT INTO clock VALUES (?, ?)", (boot, time.time() - _uptime_s()))
    database.execute("COMMIT")


def _boot() -> str | None:
    """Return the name of the last start of the machine; None if it has none."""
    try:
        return BOOT.read_text().strip()
    except OSError:
        return None


def _uptime_s() -> float:
    """Return the seconds since the last start of the machine, those in which it slept included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _tables(database: sqlite3.Connection) -> set[str]:
    return {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
