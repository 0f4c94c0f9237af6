"""Where requests go, and the heads of requests as bytes."""

import re
from collections.abc import Mapping
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


def encode_head(method: str, target: str, fields: Mapping[str, str]) -> bytes:
    """Return the head of a request. Raises ValueError if a part of it could be read as more than it is."""
    if " " in target or any(map(_CONTROL.search, (target, *fields, *fields.values()))):
        raise ValueError("a target or field of a request has a character that ends it")
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    return "\r\n".join(lines).encode("utf-8", "surrogateescape")
