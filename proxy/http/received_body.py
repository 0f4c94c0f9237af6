"""A request body that arrived whole, together with its head."""

from aiohttp import StreamReader


class ReceivedBody(StreamReader):
    """A body in one piece.

    aiohttp's constructor, which prepares for more pieces and takes six times as long, is not called. The methods that
    the gateway and aiohttp's requests use are implemented here; the others raise AttributeError.
    """

    __slots__ = ("unread",)

    def __init__(self, data: bytes) -> None:
        self.unread = data
        self.total_bytes = len(data)

    def exception(self) -> None:
        return None

    def set_exception(self, exc: BaseException, exc_cause: object = None) -> None:
        """aiohttp calls this when the rest of a body cannot arrive. This body is complete."""

    def is_eof(self) -> bool:
        return True

    def at_eof(self) -> bool:
        return not self.unread

    async def wait_eof(self) -> None:
        """Return at once: the body is complete."""

    def set_read_chunk_size(self, n: int) -> None:
        """aiohttp calls this before it reads a whole body. This body is one piece."""

    def read_nowait(self, n: int = -1) -> bytes:
        data = self.unread if n < 0 else self.unread[:n]
        self.unread = self.unread[len(data) :]
        return data

    async def read(self, n: int = -1) -> bytes:
        return self.read_nowait(n)

    async def readany(self) -> bytes:
        return self.read_nowait()
