"""A text that records how much of it each call takes."""

from typing import Any, Self


class WatchedBytes(bytes):
    """`searched`, `copied`: how much in one call, in bytes. No other thread runs meanwhile."""

    searched: list[int]
    copied: list[int]

    def __new__(cls, text: bytes) -> Self:
        watched = super().__new__(cls, text)
        watched.searched, watched.copied = [], []
        return watched

    def find(self, text: Any, start: int = 0, end: int | None = None) -> int:
        self.searched.append(min(len(self), len(self) if end is None else end) - start)
        return super().find(text, start, end)

    def count(self, text: Any, start: int = 0, end: int | None = None) -> int:
        self.searched.append(min(len(self), len(self) if end is None else end) - start)
        return super().count(text, start, end)

    def __getitem__(self, place: Any) -> Any:
        found = super().__getitem__(place)
        self.copied.append(len(found) if isinstance(found, bytes) else 1)
        return found

    def isascii(self) -> bool:
        self.copied.append(len(self))
        return super().isascii()

    def decode(self, *arguments: Any, **named: Any) -> str:
        self.copied.append(len(self))
        return super().decode(*arguments, **named)

    def strip(self, *arguments: Any) -> bytes:
        self.copied.append(len(self))
        return super().strip(*arguments)

    def lstrip(self, *arguments: Any) -> bytes:
        self.copied.append(len(self))
        return super().lstrip(*arguments)

    def rstrip(self, *arguments: Any) -> bytes:
        self.copied.append(len(self))
        return super().rstrip(*arguments)
