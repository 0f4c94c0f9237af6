"""Selects the caller's headers that a backend may see, by lists of names such as `forward_headers`."""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

FORWARDED = (
    "agent-framework-version", "idempotency-key", "openai-beta", "originator", "session-id", "session_id", "thread-id",
    "user-agent", "x-client-request-id", "x-codex-*", "x-initiator", "x-interaction-type", "x-irid",
    "x-openai-internal-codex-responses-lite", "x-promptfoo-version", "x-session-affinity", "x-session-id",
    "x-stainless-*",
)  # fmt: skip
"""The default: sessions, SDKs, attempts and betas of the clients that exist, never the caller's identity."""
NEVER_FORWARDED = frozenset({
    "accept-encoding", "api-key", "authorization", "connection", "content-encoding", "content-length", "content-type",
    "cookie", "expect", "host", "keep-alive", "proxy-authorization", "proxy-connection",
    "sec-websocket-accept", "sec-websocket-extensions", "sec-websocket-key", "sec-websocket-protocol",
    "sec-websocket-version", "te", "traceparent", "tracestate", "trailer", "transfer-encoding", "upgrade", "x-api-key",
})  # fmt: skip
"""Keys and cookies of callers, headers of one connection, and those that the gateway writes itself."""
MAX_NAME_CHARS = 128  # a longer name is no client's, and would only fill the cache of names
MAX_HEADERS = 64
"""The most headers of a request for which the chosen names are cached."""
MAX_CHOSEN = 256
"""How many lists of names are cached with the chosen ones."""
IDEMPOTENCY_KEY = "idempotency-key"
# Source: https://www.rfc-editor.org/rfc/rfc9110#section-5.1 (field names are tokens)
_NAME = re.compile(r"[a-z0-9!#$%&'+.^_`|~-]+\*?")


class HeaderNames:
    """Names of headers in any case; one that ends in `*` stands for all that begin like it."""

    def __init__(self, names: Iterable[str]) -> None:
        """Raises ValueError for what is not a name, and for a name that is never forwarded."""
        self.names = frozenset(name.lower() for name in names)
        for name in sorted(self.names):
            if not _NAME.fullmatch(name):
                raise ValueError(f"'{name}' is not the name of a header, nor a beginning of names that ends in *")
            if name in NEVER_FORWARDED:
                raise ValueError(f"the header '{name}' is never forwarded")
        self._exact = frozenset(name for name in self.names if not name.endswith("*"))
        self._prefixes = tuple(sorted(name[:-1] for name in self.names if name.endswith("*")))
        self._selected = lru_cache(1024)(self._select)
        self._chosen: dict[tuple[str, ...], Sequence[tuple[str, str]]] = {}
        """The chosen names by all names of a request: a client sends the same ones in each of its requests."""

    def union(self, others: Iterable["HeaderNames"]) -> "HeaderNames":
        """Return the names of all these lists."""
        return HeaderNames(self.names.union(*(other.names for other in others)))

    def select(self, headers: Mapping[str, str]) -> dict[str, str]:
        """Return the headers with these names, in lower case; of a repeated one the last value."""
        sent = tuple(headers)  # a multidict has each name once here
        if len(sent) < len(headers):
            return self._search(headers)
        chosen = self._chosen.get(sent)
        if chosen is None:
            chosen = self._choose(sent)
            if chosen is None:
                return self._search(headers)
        return {name: headers[as_sent] for name, as_sent in chosen} if chosen else {}

    def _search(self, headers: Mapping[str, str]) -> dict[str, str]:
        return {
            name: value
            for sent, value in headers.items()
            if len(sent) <= MAX_NAME_CHARS and (name := self._selected(sent)) is not None
        }

    def _choose(self, sent: tuple[str, ...]) -> Sequence[tuple[str, str]] | None:
        """Return the names among these that are listed, in lower case and as they were sent, and remember them.

        None if one is there twice, or if they are too many or too long to be remembered.
        """
        if len(sent) > MAX_HEADERS or max(map(len, sent), default=0) > MAX_NAME_CHARS:
            return None
        chosen = [(name, as_sent) for as_sent in sent if (name := self._selected(as_sent)) is not None]
        if len(dict(chosen)) < len(chosen):
            return None
        if len(self._chosen) >= MAX_CHOSEN:
            self._chosen.clear()
        self._chosen[sent] = chosen
        return chosen

    def _select(self, name: str) -> str | None:
        """Return a name in lower case; None if it is none of these."""
        lower = name.lower()
        is_listed = lower in self._exact or (lower.startswith(self._prefixes) and lower not in NEVER_FORWARDED)
        return lower if is_listed else None


def scope_idempotency_key(headers: Mapping[str, str], team: str) -> dict[str, str]:
    """Return the headers with an idempotency key that is the team's own.

    An upstream answers a second request with the same key by the answer to the first one, and it sees one account only:
    with the keys as they are sent, a team could receive another team's answer.
    """
    scoped = dict(headers)
    if (key := headers.get(IDEMPOTENCY_KEY)) is not None:
        parts = [part.encode(errors="surrogateescape") for part in (team, key)]
        scoped[IDEMPOTENCY_KEY] = hashlib.sha256(len(parts[0]).to_bytes(8) + b"".join(parts)).hexdigest()
    return scoped


DEFAULT_HEADERS = HeaderNames(FORWARDED)


def forwarded_headers(headers: Mapping[str, str], names: HeaderNames = DEFAULT_HEADERS) -> dict[str, str]:
    """Return the headers of a request that some backend may see; which of them one sees is decided as it is called."""
    return names.select(headers)
