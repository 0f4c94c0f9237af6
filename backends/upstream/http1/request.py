"""Where requests go, and the heads of requests as bytes."""

import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

DEFAULT_PORTS = {"http": 80, "https": 443}
# What would end a line, a field or the head before its end.
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


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
        if _CONTROL.search(name) or " " in name:
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
    if " " in target or any(map(_CONTROL.search, (target, *fields, *fields.values()))):
        raise ValueError("a target or field of a request has a character that ends it")
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    return "\r\n".join(lines).encode("utf-8", "surrogateescape")
