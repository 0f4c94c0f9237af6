"""Audit files that were renamed and compressed are searched and verified like the one that is written."""

import gzip
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson
import pytest

from proxy.admin.audit_files import audit_paths, search_files
from proxy.admin.audit_filter import LineFilter
from proxy.admin.audit_reading import files_of, verify_chain
from proxy.telemetry.audit import AuditTable
from proxy.telemetry.audit_chain import Chain

HOURS = 6
NAMES = ("audit.jsonl-20261128.gz", "audit.jsonl.2.gz", "audit.jsonl.1", "audit.jsonl")
"""The oldest first, three lines in each, one of them refused."""


def time_at(number: int) -> str:
    return f"2026-11-{24 + number:02}T10:00:00+00:00"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """An audit of twelve lines that was rotated three times, beside files of other chains."""
    chain = Chain()
    for part, name in enumerate(NAMES):
        lines = []
        for number in range(part * 3, part * 3 + 3):
            decision = "refused" if number % 3 == 1 else "allowed"
            line = {"time": time_at(number - 6), "decision": decision, "model": str(number)}
            [(encoded, chain.head)] = chain.link([orjson.dumps(line)])
            lines.append(encoded + b"\n")
        content = b"".join(lines)
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    for other in ("audit.1.jsonl", "audit.operator.jsonl", "audit.jsonl.lock", "audit.jsonl.3.gz"):
        (tmp_path / other).write_bytes(b"no audit\n")
    return tmp_path / "audit.jsonl"


def found(path: Path, limit: int = 100, since: str = "", until: str = "", **named: str) -> tuple[list[int], bool]:
    """Return which lines are found, and whether all were searched."""
    times = [datetime.fromisoformat(text) if text else None for text in (since, until)]
    done = search_files([path], LineFilter(named, *times), limit)
    return [int(line["model"]) for _, line in done.found], done.is_complete


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({}, [*range(11, -1, -1)]),
        ({"limit": 4}, [11, 10, 9, 8]),
        ({"decision": "refused"}, [10, 7, 4, 1]),
        ({"decision": "refused", "limit": 3}, [10, 7, 4]),
        ({"since": time_at(1)}, [11, 10, 9, 8, 7]),
        ({"until": time_at(-4)}, [2, 1, 0]),
        ({"since": time_at(-3), "until": time_at(0)}, [6, 5, 4, 3]),
        ({"model": "none"}, []),
    ],
)
def test_rotated_files_are_searched_the_newest_first(path: Path, wanted: Any, expected: list[int]):
    """Whether they are compressed or not; all of it is searched."""
    assert found(path, **wanted) == (expected, True)


def test_files_are_ordered_by_what_is_in_them(path: Path):
    """Those of other chains, and what is no audit, are left out."""
    assert [each.name for each in files_of(path)] == [*reversed(NAMES)]
    settings = AuditTable(path=path)
    workers = audit_paths(settings, 2)
    assert [each.name for each in workers] == ["audit.1.jsonl", "audit.2.jsonl", "audit.operator.jsonl"]
    assert search_files(audit_paths(None, 1), LineFilter({}), 5).found == []


def test_what_was_not_searched_is_said(path: Path, monkeypatch: pytest.MonkeyPatch):
    """The newest lines are read first, until so many were read; older files are passed over."""
    monkeypatch.setattr("proxy.admin.audit_files.MOST_LINES", 4)

    assert found(path, decision="refused") == ([10], False)
    assert found(path, limit=1, decision="refused") == ([10], True)
    assert found(path, until=time_at(-1)) == ([5, 4, 3], False)


def test_more_files_than_are_read_are_said(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("proxy.admin.audit_reading.MOST_FILES", 2)

    assert found(path, decision="refused") == ([10, 7], False)


def test_a_compressed_file_that_is_broken_is_said(path: Path):
    """What can be read of the others is found."""
    (path.parent / NAMES[0]).write_bytes((path.parent / NAMES[0]).read_bytes()[:-12])
    numbers, is_complete = found(path)

    assert (numbers[:9], is_complete) == ([*range(11, 2, -1)], False)
    assert [each["is_intact"] for each in verify_chain(files_of(path), None)] == [True, True, True, False]


def test_a_chain_goes_on_over_its_files(path: Path):
    """A file that is missing between two others shows, one that is missing at the end does not."""
    whole = verify_chain(files_of(path), None)
    (path.parent / NAMES[0]).unlink()
    assert [each["is_intact"] for each in verify_chain(files_of(path), None)] == [True, True, True]
    (path.parent / NAMES[2]).unlink()
    cut = verify_chain(files_of(path), None)

    assert [(each["file"], each["lines"], each["is_intact"]) for each in whole] == [
        (name, 3, True) for name in reversed(NAMES)
    ]
    assert [(each["file"], each["altered_line"]) for each in cut] == [("audit.jsonl", 1), ("audit.jsonl.2.gz", None)]


def test_a_gateway_that_found_no_file_has_begun_a_chain(path: Path):
    """It was restarted after the rotation: its file follows nothing."""
    [(encoded, _)] = Chain().link([orjson.dumps({"time": time_at(7), "model": "12"})])
    path.rename(path.with_name("audit.jsonl-20261130"))
    path.write_bytes(encoded + b"\n")

    assert [each["is_intact"] for each in verify_chain(files_of(path), None)] == [True] * 5
    assert found(path, limit=2)[0] == [12, 11]


def test_lines_that_are_no_audit_are_passed_over(path: Path):
    """They are counted as read."""
    with path.open("ab") as file:
        file.write(b"\xff\n[]\n\n" + orjson.dumps({"model": "13", "time": None}) + b"\n" + b"{")

    assert found(path, limit=2) == ([13, 11], True)
    assert found(path, since=time_at(5))[0] == [11]
