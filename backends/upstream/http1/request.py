"""The origin of requests, and the encoding of their heads."""

import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

DEFAULT_PORTS = {"http": 80, "https": 443}
VARYING = frozenset({"idempotency-key", "traceparent", "x-client-request-id"})
"""Fields with a different value in every request."""
MAX_CACHED, MAX_CACHED_BYTES = 256, 4096
"""How many encoded heads are cached, and the longest one that is."""
_NO_TARGET = re.compile(r"[\x00-\x20\x7f]")
_FIELDS = re.compile(r"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]++: [^\x00-\x08\x0a-\x1f\x7f]*+\r\n)*+")


@dataclass(frozen=True, slots=True)
class Origin:
    """A server: the host to connect to, its port, and the value of `Host`."""

    host: str
    port: int
    is_tls: bool
    authority: str

    @classmethod
    def of(cls, url: str) -> Self:
        """Return the origin of a URL of http or https. Raises ValueError."""
        parts = urlsplit(url)
        default = DEFAULT_PORTS[parts.scheme]
        port = default if parts.port is None else parts.port
        if not parts.hostname or not port:
            raise ValueError("the URL has no host, or port 0")
        host = parts.hostname.encode("idna").decode() if not parts.hostname.isascii() else parts.hostname
        name = f"[{host}]" if ":" in host else host
        if _NO_TARGET.search(name):
            raise ValueError("the host of the URL is not valid")
        return cls(host, port, parts.scheme == "https", name if port == default else f"{name}:{port}")


@dataclass(frozen=True, slots=True)
class BodySource:
    """A streamed body: its chunks, none of them empty, and its size if known."""

    chunks: AsyncIterator[bytes]
    size: int | None = None

    @property
    def framing(self) -> bytes:
        """Return the header line that frames the body."""
        return b"Transfer-Encoding: chunked\r\n" if self.size is None else encode_length(self.size)

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """Yield the bytes of the body as they are written. Raises the errors of the source."""
        async for chunk in self.chunks:
            yield chunk if self.size is not None else b"%x\r\n%b\r\n" % (len(chunk), chunk)
        if self.size is None:
            yield b"0\r\n\r\n"


def encode_head(method: str, target: str, fields: Mapping[str, str]) -> bytes:
    """Return the head of a request. Raises ValueError for a part that could be read as another field or line."""
    if _NO_TARGET.search(target):
        raise ValueError("The target of a request has a character that it cannot have.")
    first = f"{method} {target} HTTP/1.1\r\n".encode("utf-8", "surrogateescape")
    return b"%b%b\r\n" % (first, _encode_lines(fields))


def encode_length(size: int) -> bytes:
    """Return the Content-Length line of a body."""
    return b"Content-Length: %d\r\n" % size


class RequestHeads:
    """Encodes the heads of requests to one server; what they have in common is checked and encoded once."""

    def __init__(self, defaults: Mapping[str, str]) -> None:
        """`defaults` are fields that every request has."""
        self._defaults = defaults
        self._own: Mapping[str, str] = {}
        self._starts: dict[tuple[object, ...], bytes] = {}

    def encode(
        self, method: str, target: str, fields: Mapping[str, str], own: Mapping[str, str], framing: bytes
    ) -> bytes:  # fmt: skip
        """Return the head of a request. `own` fields replace others of their name; `framing` is a line, or empty.

        Raises ValueError for a part that could be read as another field or line.
        """
        if own is not self._own:
            self._starts.clear()
            self._own = own
        varying = b""
        if fields and not VARYING.isdisjoint(fields):
            last = {name: value for name, value in fields.items() if name in VARYING and name not in own}
            fields = {name: value for name, value in fields.items() if name not in VARYING}
            varying = _encode_lines(last)
        key = (method, target, *fields.items()) if fields else (method, target)
        start = self._starts.get(key)
        if start is None:
            start = encode_head(method, target, {**self._defaults, **fields, **own})[:-2]
            self._cache(key, start)
        return b"".join((start, varying, framing, b"\r\n"))

    def _cache(self, key: tuple[object, ...], start: bytes) -> None:
        if len(start) <= MAX_CACHED_BYTES:
            if len(self._starts) >= MAX_CACHED:
                self._starts.clear()
            self._starts[key] = start


def _encode_lines(fields: Mapping[str, str]) -> bytes:
    """Return the lines of fields. Raises ValueError."""
    lines = "".join([f"{name}: {value}\r\n" for name, value in fields.items()])
    if not _FIELDS.fullmatch(lines) or lines.count("\n") != len(fields):
        raise ValueError("A field of a request has a character that it cannot have.")
    return lines.encode("utf-8", "surrogateescape")
