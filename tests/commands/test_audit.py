"""`headgate audit verify`, as a person types it."""

from pathlib import Path

import pytest

from proxy.__main__ import main
from proxy.telemetry.audit import Audit, AuditTable, Decision


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """An audit file of four lines."""
    audit = Audit(AuditTable(path=tmp_path / "audit.jsonl"))
    audit.open()
    for _ in range(4):
        audit.write(Decision("metadata_limits", "0123456789ab", "allowed", None, None, "anna", "m"))
    audit.close()
    return tmp_path / "audit.jsonl"


def verified(file: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """The exit code, and what was said on stdout and on stderr."""
    code = main(["audit", "verify", str(file)])
    told = capsys.readouterr()
    return code, told.out, told.err


def test_a_whole_chain_is_exit_0(file: Path, capsys):
    """How many lines it has is told."""
    assert verified(file, capsys) == (0, f"{file}: 4 lines, the chain is whole.\n", "")


def test_an_empty_file_is_whole(tmp_path: Path, capsys):
    """Nothing was written, nothing was changed."""
    (tmp_path / "empty").touch()

    assert verified(tmp_path / "empty", capsys)[0] == 0


@pytest.mark.parametrize("number", [1, 3, 4])
def test_an_altered_line_is_exit_1(file: Path, capsys, number: int):
    """Its number is told, counted as an editor counts."""
    lines = file.read_bytes().splitlines(keepends=True)
    lines[number - 1] = lines[number - 1].replace(b"anna", b"ben")
    file.write_bytes(b"".join(lines))

    assert verified(file, capsys) == (1, f"{file}: line {number} is not what was written.\n", "")


def test_a_file_of_another_kind_is_exit_1(tmp_path: Path, capsys):
    """Its first line is none of ours."""
    (tmp_path / "other").write_bytes(b"\x00\xff\n")

    assert verified(tmp_path / "other", capsys)[0] == 1


@pytest.mark.parametrize("name", ["none.jsonl", "."])
def test_a_file_that_cannot_be_read_is_exit_2(tmp_path: Path, capsys, name: str):
    """It is named, with the reason, on stderr."""
    code, out, err = verified(tmp_path / name, capsys)

    assert (code, out) == (2, "")
    assert str(tmp_path / name) in err


@pytest.mark.parametrize("typed", [["audit"], ["audit", "verify"], ["audit", "mend", "x"]])
def test_half_a_command_is_exit_2(typed: list[str], capsys):
    """The usage is shown."""
    with pytest.raises(SystemExit, match="2"):
        main(typed)
    assert "usage: headgate audit" in capsys.readouterr().err


def test_a_gate_whose_audit_file_is_torn_does_not_start(file: Path, tmp_path: Path, capsys):
    """Exit 2 and a sentence that says what to do."""
    file.write_bytes(file.read_bytes()[:-10])
    config = tmp_path / "headgate.toml"
    config.write_text(f"""
[server]
port = 0
[audit]
path = "{file}"
[[backend]]
use = "replay"
name = "canned"
path = "{Path(__file__).parent.parent / "data" / "canonical.sse"}"
[[route]]
model = "*"
backend = "canned"
""")
    code = main(["serve", "--config", str(config)])

    assert (code, capsys.readouterr().err) == (
        2,
        f"headgate cannot start: {file}: the last line of the audit file is not whole, or not one of ours; put the file aside\n",
    )
