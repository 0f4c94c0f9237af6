"""The value of `Server-Timing`. Source: https://www.w3.org/TR/server-timing/"""

from collections.abc import Iterable
from math import floor

SHORT_S = 0.005
"""The duration in seconds below which its text is looked up: formatting a number takes several times as long."""
_UNITS_PER_S = 100_000.0  # hundredths of a millisecond
_SHORT = [f"{units / 100:.2f}" for units in range(floor(SHORT_S * _UNITS_PER_S) + 1)]


class _Texts(dict[str, list[str]]):
    """The texts of the short durations of each step; the steps are known."""

    def __missing__(self, step: str) -> list[str]:
        texts = self[step] = [f"{step};dur={text}" for text in _SHORT]
        return texts


_TEXTS = _Texts()


def server_timing(durations: Iterable[tuple[str, float]]) -> str:
    """Return the value for steps that have a name, and have lasted so many seconds: in ms with two decimals."""
    parts: list[str] = []
    for name, seconds in durations:
        if seconds < SHORT_S:
            parts.append(_TEXTS[name][floor(seconds * _UNITS_PER_S + 0.5)])
        else:
            parts.append(f"{name};dur={seconds * 1000:.2f}")
    return ", ".join(parts)


def read_timing(value: str) -> list[tuple[str, float]]:
    """Return the durations of a value in seconds."""
    parts = (part.split(";dur=") for part in value.split(", ") if part)
    return [(name, float(milliseconds) / 1000) for name, milliseconds in parts]
