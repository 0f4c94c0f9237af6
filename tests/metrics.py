"""Reads the metrics of a gateway as a scraper does."""

import re
from typing import Any

import aiohttp

SERIES = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def admin_of(logged: list[dict[str, Any]]) -> str:
    """Return the address of the admin listener of the gateway that was started last."""
    return next(line["address"] for line in reversed(logged) if line["event"] == "admin.started")


async def scrape(http: aiohttp.ClientSession, admin: str) -> Series:
    """Return the value of each series."""
    async with http.get(f"{admin}/metrics") as answer:
        assert answer.status == 200
        return parse(await answer.text())


def parse(text: str) -> Series:
    """Return the series in a text. Raises AssertionError for a line that is none."""
    found: Series = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            match = SERIES.fullmatch(line)
            assert match is not None, line
            found[match[1], frozenset(LABEL.findall(match[2] or ""))] = float(match[3])
    return found


def changes(before: Series, after: Series, shown: dict[str, tuple[str, ...]]) -> dict[str, float]:
    """Return by how much series have changed: by their short names and the values of the labels that are shown."""
    changed: dict[str, float] = {}
    for (name, labels), value in after.items():
        if name in shown and (grown := value - before.get((name, labels), 0.0)):
            short, *wanted = shown[name]
            known = dict(labels)
            key = " ".join([short, *(known[label] for label in wanted if label in known)])
            changed[key] = changed.get(key, 0.0) + grown
    return changed
