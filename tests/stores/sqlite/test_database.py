"""The file of the SQLite store: its permissions, its contents, and files that cannot be used."""

import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest

from proxy.config.build import ConfigError, build
from proxy.stores import StoreError
from proxy.stores.sqlite import SqliteStore
from proxy.stores.sqlite.database import open_database
from tests.stores.conftest import SteppedClock
from tests.stores.sqlite.conftest import open_store


async def test_only_the_owner_can_read_the_file(path: Path, sqlite: SqliteStore):
    """This includes the WAL and shared-memory files of SQLite."""
    await sqlite.put("a", b"a", ttl_s=60)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}

    assert modes == {"state.sqlite3": 0o600, "state.sqlite3-wal": 0o600, "state.sqlite3-shm": 0o600}


async def test_everything_is_kept_across_a_restart(path: Path):
    """Values, the used part of a running window, journals and leases are kept."""
    clock = SteppedClock()
    async with open_store(path, clock) as store:
        await store.put("value", b"a", ttl_s=60)
        window = (await store.take("counter", 7, limit=10, window_s=60)).window
        await store.append("journal", b"b", ttl_s=60)
        await store.claim("lease", "owner", lease_s=60)
    clock.advance(30)
    async with open_store(path, clock) as store:
        await store.give("counter", 1, window=window)
        grant = await store.take("counter", 10, limit=10, window_s=60)

        assert await store.get("value") == b"a"
        assert (grant.granted, grant.window, grant.resets_in_s) == (4, window, 30)
        assert await store.append("journal", b"c", ttl_s=60) == 2
        assert await store.claim("lease", "another", lease_s=60) is False
    clock.advance(31)
    async with open_store(path, clock) as store:
        assert [key async for key in store.scan("")] == ["journal"]


async def test_two_stores_of_one_file_share_it(path: Path, sqlite: SqliteStore):
    """This happens while a new config replaces an old one."""
    async with open_store(path) as other:
        await other.put("a", b"a", ttl_s=60)
        await sqlite.take("b", 6, limit=10, window_s=60)

        assert await sqlite.get("a") == b"a"
        assert (await other.take("b", 6, limit=10, window_s=60)).granted == 4


def test_a_tilde_is_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A path is expanded as in a shell."""
    monkeypatch.setenv("HOME", str(tmp_path))

    assert SqliteStore(path=Path("~/a.sqlite3")).path == tmp_path / "a.sqlite3"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "state.path: missing"),
        ({"path": "~no-such-user/a"}, "state.path: .*home directory"),
        ({"path": "a", "timeout_ms": 0}, "state.timeout_ms"),
        ({"path": "a", "max_waiting": 0}, "state.max_waiting"),
    ],
)
def test_a_broken_table_names_its_key(keys: dict[str, object], message: str):
    """The error comes when the config is read."""
    tables = {"backend": [{"name": "a", "use": "replay", "path": "a.sse"}], "route": [{"model": "*", "backend": "a"}]}
    with pytest.raises(ConfigError, match=message):
        build(tables | {"state": {"use": "sqlite", **keys}})


def no_folder(path: Path) -> Path:
    return path / "none"


def a_folder(path: Path) -> Path:
    path.mkdir()
    return path


def a_text(path: Path) -> Path:
    path.write_text("This is not a database. " * 100)
    return path


def another_program(path: Path) -> Path:
    with closing(sqlite3.connect(path)) as direct:
        direct.execute("CREATE TABLE bookmarks (url TEXT)")
    return path


def another_schema(path: Path) -> Path:
    with closing(sqlite3.connect(path)) as direct:
        for table in ("schema", "record", "entry"):
            direct.execute(f"CREATE TABLE {table} (something TEXT)")
    return path


def newer(path: Path) -> Path:
    open_database(path, 1).close()
    with closing(sqlite3.connect(path)) as direct, direct:
        direct.execute("UPDATE schema SET version = 2")
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (no_folder, "cannot be opened: No such file or directory"),
        (a_folder, "cannot be opened: Is a directory"),
        (a_text, "is not a SQLite database"),
        (another_program, "is a database of another program"),
        (another_schema, "cannot be used: no such column: version"),
        (newer, "has schema version 2; this program knows version 1"),
    ],
)
async def test_a_file_that_cannot_be_used_fails_the_start(path: Path, make, message: str):
    """The error has the path; a file of another kind is not changed, and closing is no error."""
    found = make(path)
    before = contents(found)
    store = SqliteStore(path=found)
    with pytest.raises(ValueError, match=f"{found} {message}"):
        await store.start()
    with pytest.raises(StoreError, match="not started"):
        await store.get("a")
    await store.close()

    assert contents(found) == before


def contents(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


async def test_a_file_that_another_process_locks_fails_the_start_in_time(path: Path):
    """The start waits no longer than a command."""
    open_database(path, 1).close()
    with closing(sqlite3.connect(path, isolation_level=None)) as direct:
        direct.execute("BEGIN IMMEDIATE")
        with pytest.raises(ValueError, match="database is locked"):
            await SqliteStore(path=path, timeout_ms=50).start()
