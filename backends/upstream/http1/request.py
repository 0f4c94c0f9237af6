"""Where requests go, and the heads of requests as bytes."""

import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Self
from urllib.parse import urlsplit

DEFAULT_PORTS = {"http": 80, "https": 443}
VARYING = frozenset({"idempotency-key", "traceparent", "x-client-request-id"})
"""Fields that are different in every request."""
MAX_KEPT_CHARS = 4096
"""How long the fields of a request are at most that are kept for the next one, in characters."""
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
    """A body that is sent while it is received: its chunks, none of them empty, and its size if that is known."""

    chunks: AsyncIterator[bytes]
    size: int | None = None

    @property
    def framing(self) -> Mapping[str, str]:
        """Return the header that says where the body ends."""
        return {"Transfer-Encoding": "chunked"} if self.size is None else {"Content-Length": str(self.size)}

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """Yield the bytes of the body as they are written. Raises what the source of the chunks raises."""
        async for chunk in self.chunks:
            yield chunk if self.size is not None else b"%x\r\n%b\r\n" % (len(chunk), chunk)
        if self.size is None:
            yield b"0\r\n\r\n"


def encode_head(method: str, target: str, fields: Mapping[str, str]) -> bytes:
    """Return the head of a request. Raises ValueError if a part of it could be read as more than it is."""
    lines = "".join([f"{name}: {value}\r\n" for name, value in fields.items()])
    if _NO_TARGET.search(target) or not _FIELDS.fullmatch(lines) or lines.count("\n") != len(fields):
        raise ValueError("A target or field of a request has a character that it cannot have.")
    return f"{method} {target} HTTP/1.1\r\n{lines}\r\n".encode("utf-8", "surrogateescape")


def encode_request(method: str, target: str, fields: Mapping[str, str], framing: Mapping[str, str]) -> bytes:
    """Return the head of a request, whose fields most others have too, but for its framing. Raises ValueError."""
    if not VARYING.isdisjoint(fields) or sum(map(len, fields.values())) + len(target) > MAX_KEPT_CHARS:
        return encode_head(method, target, {**fields, **framing})
    last = "".join([f"{name}: {value}\r\n" for name, value in framing.items()])
    return b"%b%b\r\n" % (_encode_fixed(method, target, tuple(fields.items())), last.encode())


@lru_cache(256)
def _encode_fixed(method: str, target: str, fields: tuple[tuple[str, str], ...]) -> bytes:
    """Return the head of a request without its framing and its end. Raises ValueError."""
    return encode_head(method, target, dict(fields))[:-2]
