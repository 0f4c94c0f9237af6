"""Origins of web pages: which of them a config lists. Source: https://www.rfc-editor.org/rfc/rfc6454#section-6.2."""

import re
from collections.abc import Iterable

_HOST = r"(?:[a-z0-9_-]+\.)*[a-z0-9_-]+|\[[0-9a-f:.]+\]"
_ORIGIN = re.compile(rf"[a-z][a-z0-9+.-]*://(?:{_HOST})(?::[0-9]{{1,5}})?", re.ASCII)
_WILDCARD = re.compile(r"(https?://)\*\.((?:[a-z0-9_-]+\.)+[a-z0-9_-]+(?::[0-9]{1,5})?)", re.ASCII)
_DEFAULT_PORT = re.compile(r"(?<=^https://)(.*):443$|(?<=^http://)(.*):80$")


def check_origin(text: str) -> str:
    """Return an origin as browsers write it. Raises ValueError for what is none, and for `*` and `null`."""
    origin = _DEFAULT_PORT.sub(r"\1\2", text.lower())
    if not _ORIGIN.fullmatch(origin) and not _WILDCARD.fullmatch(origin):
        raise ValueError('an origin is "https://app.example.com", or "https://*.example.com" for all that are below it')
    return origin


class Origins:
    """The origins that a config lists."""

    def __init__(self, listed: Iterable[str]) -> None:
        """Each is one that `check_origin` returned."""
        origins = [*listed]
        wildcards = [match for origin in origins if (match := _WILDCARD.fullmatch(origin)) is not None]
        self._exact = frozenset(origins) - {match[0] for match in wildcards}
        below = "|".join(f"{match[1]}(?:[a-z0-9_-]+\\.)+{re.escape(match[2])}" for match in wildcards)
        self._below = re.compile(below, re.ASCII) if below else None

    def allow(self, origin: str) -> bool:
        """Whether an origin is listed."""
        return origin in self._exact or (self._below is not None and self._below.fullmatch(origin) is not None)
