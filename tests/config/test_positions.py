"""Where the keys of a TOML file are."""

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy.config.positions import join, locate, positions

ROOT = Path(__file__).parent.parent.parent
ODD = '''# [comment]
top.dotted . "key [x]" = 'it''s' # = [no]
"" = """
[not.a.table]
\\""" x = 1"""""
a = [ 1.5, 1979-05-27 07:32:00, # ] no
  { b = [[], "]"], c.d = true }, ]
l = \'\'\'
[[no]]\'\'\'
\t[[x . y]]
z = {}\x20
[x.y.z2."é\u2028"]
w = -inf
[[x.y]]
[[x.y.v]]
[[x.y.v]]
k = 1'''


def paths(value: Any, path: str = "") -> Iterator[str]:
    """Yield the path of everything in a value."""
    for step, inner in (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    ):
        yield join(path, step)
        yield from paths(inner, join(path, step))


@pytest.mark.parametrize(
    "text",
    [ODD.replace("'it''s'", "'its'"), *(path.read_text() for path in (ROOT / "config.example.toml", *ROOT.glob("tests/**/*.toml")))],
    ids=lambda text: text[:30],
)  # fmt: skip
def test_everything_in_a_file_has_a_position(text: str):
    """And nothing that is only in texts and comments; each key is at its position."""
    found = positions(text)
    lines = text.split("\n")

    assert set(found) == set(paths(tomllib.loads(text)))
    for path, (line, column) in found.items():
        name = path.rpartition(".")[2]
        assert path.endswith("]") or not name.isalnum() or lines[line - 1][column - 1 :].startswith(name)


def test_a_key_is_at_its_line_and_column():
    """Of tables that occur several times the first one is meant; elements of lists have their own places."""
    found = positions(ODD.replace("'it''s'", "'its'"))

    assert {path: found[path] for path in ('""', "a[1]", "a[2].c.d", "x.y[0].z2", "x.y[1].v[1].k", "x.y")} == {
        '""': (3, 1),
        "a[1]": (6, 12),
        "a[2].c.d": (7, 22),
        "x.y[0].z2": (12, 6),
        "x.y[1].v[1].k": (17, 1),
        "x.y": (10, 8),
    }


def test_sentences_are_in_the_order_of_the_file():
    """What is missing in a table is at its beginning, and what is nowhere in the file has only its name."""
    found = positions("[server]\nport = 1\n[[caller]]\n[[caller]]\nname = 1\n")
    faults = [
        "route: none",
        "caller[1].name: bad",
        "caller[1].key: missing",
        "caller[0]: odd",
        "server.port and x: two",
    ]

    assert locate(faults, "f.toml", found) == [
        "f.toml:2:1: server.port and x: two",
        "f.toml:3:3: caller[0]: odd",
        "f.toml:4:3: caller[1].key: missing",
        "f.toml:5:1: caller[1].name: bad",
        "f.toml: route: none",
    ]
