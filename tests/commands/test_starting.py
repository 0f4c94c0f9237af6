"""What `headgate check` finds in files that a config names."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.__main__ import main
from tests.conftest import CANNED

OTHER_USER = 65534
TABLES = {
    "state": ('[state]\nuse = "sqlite"\npath = "{path}"', "state.path"),
    "cache": ('[cache]\nuse = "sqlite"\npath = "{path}"', "cache.path"),
    "audit": ('[audit]\npath = "{path}"', "audit.path"),
    "record": ('[record]\npath = "{path}"', "record.path"),
}


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that other users can read as well: root may write everywhere."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def write(config: Path, text: str) -> None:
    config.write_text(f"{text}\n{CANNED}")


@pytest.mark.parametrize("table", TABLES)
def test_a_file_that_cannot_be_written_is_a_fault(table: str, folder: Path, capsys: pytest.CaptureFixture[str]):
    """In a folder that does not exist, in place of a folder, or where it may not; nothing is created."""
    text, path = TABLES[table]
    (folder / "closed").mkdir(mode=0o555)
    line, user, config = text.count("\n") + 1, os.geteuid(), folder / "my.toml"
    wrong = {
        "none/x": f"the folder {folder}/none does not exist",
        "closed": f"{folder}/closed is a folder",
        "closed/x": f"this user may not create a file in {folder}/closed",
    }
    for name, message in wrong.items():
        write(config, text.format(path=folder / name))
        try:
            os.seteuid(user or OTHER_USER)
            code = main(["check", "--config", str(config)])
        finally:
            os.seteuid(user)

        assert (code, capsys.readouterr()) == (2, ("", f"{config}:{line}:1: {path}: {message}\n"))
    write(config, text.format(path=folder / "x"))

    assert main(["check", "--config", str(config)]) == 0
    assert sorted(path.name for path in folder.rglob("*")) == ["closed", "my.toml"]


def test_all_files_are_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A store that is no database, a backend without its recording; the parts of one that exists are read only."""
    config = tmp_path / "my.toml"
    (tmp_path / "text").write_text("no database at all")
    tape = f'[[backend]]\nname = "b"\nuse = "replay"\npath = "{tmp_path}/none"'
    state = f'[state]\nuse = "sqlite"\npath = "{tmp_path}/text"'
    more = f'[server]\ntls_cert = "{tmp_path}/text"\ntls_key = "{tmp_path}/none"\n'
    write(config, f'{more}\n{state}\n[audit]\npath = "/none/x"\n{tape}')

    assert main(["check", "--config", str(config)]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"{config}:3:1: server.tls_key: {tmp_path}/none: No such file or directory",
        f"{config}:7:1: state.path: {tmp_path}/text is no SQLite database",
        f"{config}:9:1: audit.path: the folder /none does not exist",
        f"{config}:10:3: backend[0]: 'b' cannot start: {tmp_path}/none: No such file or directory",
    ]
