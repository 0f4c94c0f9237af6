"""A body that has arrived together with the head of its request."""

from aiohttp import StreamReader


class ReceivedBody(StreamReader):
    """A body in one piece.

    aiohttp's own constructor is left out: it prepares for more pieces, and takes six times as long. So only what the
    gateway and aiohttp's requests read bodies with is there; what else a StreamReader has raises AttributeError.
    """

    __slots__ = ("unread",)

    def __init__(self, data: bytes) -> None:
        self.unread = data
        self.total_bytes = len(data)

    def exception(self) -> None:
        return None

    def set_exception(self, exc: BaseException, exc_cause: object = None) -> None:
        """aiohttp calls this when no more of a body can come: of this one, all has."""

    def is_eof(self) -> bool:
        return True

    def at_eof(self) -> bool:
        return not self.unread

    async def wait_eof(self) -> None:
        """All of it has arrived."""

    def set_read_chunk_size(self, n: int) -> None:
        """aiohttp calls this before it reads a whole body: here it is one piece."""

    def read_nowait(self, n: int = -1) -> bytes:
        data = self.unread if n < 0 else self.unread[:n]
        self.unread = self.unread[len(data) :]
        return data

    async def read(self, n: int = -1) -> bytes:
        return self.read_nowait(n)

    async def readany(self) -> bytes:
        return self.read_nowait()
