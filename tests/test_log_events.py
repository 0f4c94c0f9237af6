"""Every event that the sources log is described where operators look it up."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOGGED = re.compile(r'\blog\.(?:info|warning|error|exception)\(\s*"([a-z_]+\.[a-z_]+)"')

SOURCES = [path for folder in ("proxy", "policies", "backends") for path in (ROOT / folder).rglob("*.py")]
UNBOUNDED = re.compile(r"\blog\.(?:info|warning|error|exception)\([^()]*\b(?:error|reason|message)=(?:str|repr)\(")


def test_no_log_line_has_the_words_of_an_exception_as_they_are():
    """They are bounded and printable, by `proxy/wire/loggable.py`."""
    assert UNBOUNDED.search('log.warning("a.b", error=str(error)[:200])')
    assert [path for path in SOURCES if UNBOUNDED.search(path.read_text())] == []


def test_every_log_event_is_described():
    """In the table of deploy/README.md."""
    logged = {event for path in SOURCES for event in LOGGED.findall(path.read_text())}
    described = set(re.findall(r"`([a-z_]+\.[a-z_]+)`", (ROOT / "deploy/README.md").read_text()))

    assert len(logged) > 30
    assert logged - described == set()
