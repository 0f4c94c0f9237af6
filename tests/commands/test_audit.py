"""`headgate audit verify`, run as from a command line."""

from pathlib import Path

import pytest

from proxy.__main__ import main
from proxy.telemetry.audit import Audit, AuditTable, Decision
from tests.conftest import CANNED

OR = " Or --secret is not its secret, or --after is missing."
DECISION = Decision("metadata_limits", "0123456789ab", "allowed", None, None, "anna", "m")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """An audit file of four lines."""
    audit = Audit(AuditTable(path=tmp_path / "audit.jsonl"))
    audit.open()
    for _ in range(4):
        audit.write("req_1", DECISION)
    audit.close()
    return tmp_path / "audit.jsonl"


def verify(file: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Return the exit status, stdout and stderr."""
    code = main(["audit", "verify", str(file)])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def broken_at(file: Path, number: int) -> str:
    """Return what is printed where a line does not follow the one before it."""
    hint = OR if number == 1 else ""
    return f"{file}: the chain breaks at line {number}: it was changed, or lines before it were removed.{hint}\n"


def test_an_intact_chain_is_exit_0(file: Path, capsys):
    """It prints the number of lines."""
    assert verify(file, capsys) == (0, f"{file}: 4 lines, the chain is intact.\n", "")


def test_an_empty_file_is_intact(tmp_path: Path, capsys):
    """A chain without lines has no altered line."""
    (tmp_path / "empty").touch()

    assert verify(tmp_path / "empty", capsys)[0] == 0


@pytest.mark.parametrize("number", [1, 3, 4])
def test_an_altered_line_is_exit_1(file: Path, capsys, number: int):
    """It prints the number of the line, counted from 1."""
    lines = file.read_bytes().splitlines(keepends=True)
    lines[number - 1] = lines[number - 1].replace(b"anna", b"ben")
    file.write_bytes(b"".join(lines))

    assert verify(file, capsys) == (1, broken_at(file, number), "")


def test_a_removed_line_is_exit_1(file: Path, capsys):
    """The line that stands in its place is intact, but does not follow the one before."""
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*lines[:2], lines[3]]))

    assert verify(file, capsys) == (1, broken_at(file, 3), "")


def test_a_file_of_another_kind_is_exit_1(tmp_path: Path, capsys):
    """Its first line is not an audit line."""
    (tmp_path / "other").write_bytes(b"\x00\xff\n")

    assert verify(tmp_path / "other", capsys)[0] == 1


@pytest.mark.parametrize("name", ["none.jsonl", "."])
def test_a_file_that_cannot_be_read_is_exit_2(tmp_path: Path, capsys, name: str):
    """stderr names the file and the reason."""
    code, out, err = verify(tmp_path / name, capsys)

    assert (code, out) == (2, "")
    assert str(tmp_path / name) in err


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """Return the exit status and stdout of a command."""
    status = main(["audit", *map(str, arguments)])
    return status, capsys.readouterr().out


def test_a_head_finds_what_a_chain_cannot_show(file: Path, capsys):
    """A cut file, an emptied one and another chain contradict it; the file itself does not."""
    _, head = command(capsys, "head", file)
    head = head.strip()
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:2]))
    cut = command(capsys, "verify", file, "--expect", head)
    file.write_bytes(b"")
    emptied = command(capsys, "verify", file, "--expect", head)
    file.write_bytes(b"".join(lines))

    assert head.startswith("4:")
    assert cut == (1, f"{file}: the lines after 2 are missing; 4 was expected.\n")
    assert emptied == (1, f"{file}: the lines after 0 are missing; 4 was expected.\n")
    assert command(capsys, "verify", file, "--expect", f"4:{'0' * 64}") == (
        1, f"{file}: line 4 is not the one that was expected.\n",
    )  # fmt: skip
    assert command(capsys, "verify", file, "--expect", head)[0] == 0


def test_the_files_of_a_rotation_are_verified_together(file: Path, capsys):
    """Without the older one, its head says what the first line must follow."""
    older = file.with_name("audit.jsonl.1")
    lines = file.read_bytes().splitlines(keepends=True)
    older.write_bytes(b"".join(lines[:3]))
    _, head = command(capsys, "head", older)
    file.write_bytes(lines[3])

    assert command(capsys, "verify", older, file) == (0, f"{older}, {file}: 4 lines, the chain is intact.\n")
    assert command(capsys, "verify", file) == (1, broken_at(file, 1))
    assert command(capsys, "verify", file, "--after", head.strip())[0] == 0


def test_a_file_with_a_secret_is_verified_with_it(tmp_path: Path, capsys, monkeypatch):
    """Without it, every line counts as altered. A secret that is written into the command is not printed."""
    secret = "a secret of more than 32 characters"
    monkeypatch.setenv("AUDIT_SECRET", secret)
    file = tmp_path / "audit.jsonl"
    audit = Audit(AuditTable(path=file, secret="env:AUDIT_SECRET"))
    audit.open()
    audit.write("req_1", DECISION)
    audit.close()

    assert command(capsys, "verify", file, "--secret", "env:AUDIT_SECRET")[0] == 0
    assert command(capsys, "verify", file)[0] == 1
    with pytest.raises(SystemExit, match="2"):
        main(["audit", "verify", str(file), "--secret", secret])
    assert secret not in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["verify", "x", "--expect", "4"], ["verify", "x", "--after", "4:zz"]])
def test_a_head_that_is_none_is_exit_2(arguments: list[str], capsys):
    """The message says what one looks like."""
    with pytest.raises(SystemExit, match="2"):
        command(capsys, *arguments)
    assert "NUMBER:HASH" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["audit"], ["audit", "verify"], ["audit", "mend", "x"]])
def test_an_incomplete_command_is_exit_2(arguments: list[str], capsys):
    """It prints the usage."""
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "usage: headgate audit" in capsys.readouterr().err


def test_a_gateway_with_an_incomplete_audit_file_does_not_start(file: Path, tmp_path: Path, capsys):
    """It exits with 2; the message names the remedy."""
    file.write_bytes(file.read_bytes()[:-10])
    config = tmp_path / "headgate.toml"
    config.write_text(f'[server]\nport = 0\n[audit]\npath = "{file}"\n{CANNED}')
    code = main(["serve", "--config", str(config)])

    assert (code, capsys.readouterr().err) == (
        2,
        f"headgate cannot start: {file}: the last line of the audit file is incomplete, or not an audit line; move the file away\n",
    )
