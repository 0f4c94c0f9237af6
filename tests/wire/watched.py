"""Texts that record how much of them each call takes."""

from typing import Any, Self


class WatchedBytes(bytes):
    """`searched`, `copied`: how much in one call, in bytes. No other thread runs meanwhile.

    `searched_for_text` has those searches that are for more than one byte, which take as long as copying.
    """

    searched: list[int]
    searched_for_text: list[int]
    copied: list[int]

    def __new__(cls, text: bytes) -> Self:
        watched = super().__new__(cls, text)
        watched.searched, watched.searched_for_text, watched.copied = [], [], []
        return watched

    def find(self, text: Any, start: int = 0, end: int | None = None) -> int:
        self._note_search(text, min(len(self), len(self) if end is None else end) - start)
        return super().find(text, start, end)

    def count(self, text: Any, start: int = 0, end: int | None = None) -> int:
        self._note_search(text, min(len(self), len(self) if end is None else end) - start)
        return super().count(text, start, end)

    def _note_search(self, text: bytes | int, size: int) -> None:
        self.searched.append(size)
        if not isinstance(text, int) and len(text) > 1:
            self.searched_for_text.append(size)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice) and place.indices(len(self)) == (0, len(self), 1):  # bytes return themselves
            return self
        found = super().__getitem__(place)
        self.copied.append(len(found) if isinstance(found, bytes) else 1)
        return found

    def isascii(self) -> bool:
        self.copied.append(len(self))
        return super().isascii()

    def decode(self, *arguments: Any, **named: Any) -> str:
        self.copied.append(len(self))
        return super().decode(*arguments, **named)

    def split(self, *arguments: Any) -> list[bytes]:
        self.copied.append(len(self))
        return super().split(*arguments)

    def replace(self, *arguments: Any) -> bytes:
        self.copied.append(len(self))
        return super().replace(*arguments)

    def translate(self, *arguments: Any, **named: Any) -> bytes:
        self.copied.append(len(self))
        return super().translate(*arguments, **named)

    def strip(self, *arguments: Any) -> bytes:
        found = super().strip(*arguments)
        if len(found) == len(self):  # bytes return themselves
            return self
        self.copied.append(len(self))
        return found

    def lstrip(self, *arguments: Any) -> bytes:
        self.copied.append(len(self))
        return super().lstrip(*arguments)

    def rstrip(self, *arguments: Any) -> bytes:
        self.copied.append(len(self))
        return super().rstrip(*arguments)


class WatchedBuffer(bytearray):
    """`copied`: how much in one call, in bytes. No other thread runs meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.copied: list[int] = []

    def __getitem__(self, place: Any) -> Any:
        found = super().__getitem__(place)
        if isinstance(found, bytearray):
            self.copied.append(len(found))
        return found

    def __bytes__(self) -> bytes:
        self.copied.append(len(self))
        return bytes(memoryview(self))
