"""Every event that the sources log is described where operators look it up."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOGGED = re.compile(r'\blog\.(?:info|warning|error|exception)\(\s*"([a-z_]+\.[a-z_]+)"')


def test_every_log_event_is_described():
    """In the table of deploy/README.md."""
    sources = [path for folder in ("proxy", "policies", "backends") for path in (ROOT / folder).rglob("*.py")]
    logged = {event for path in sources for event in LOGGED.findall(path.read_text())}
    described = set(re.findall(r"`([a-z_]+\.[a-z_]+)`", (ROOT / "deploy/README.md").read_text()))

    assert len(logged) > 30
    assert logged - described == set()
