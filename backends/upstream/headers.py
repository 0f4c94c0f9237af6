"""Which headers of an upstream's answer callers receive: those that clients of the protocol read, and configured ones.

All others stay with the gateway: what an upstream sends beside its answer names its own parts and addresses, instructs
browsers, sets cookies, or concerns one connection.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

from backends.upstream.scrub import Scrubber
from proxy.wire.headers import MAX_NAME_CHARS

UPSTREAM_ID = "x-upstream-request-id"
"""The upstream's own `x-request-id`, beside the gateway's."""
# Limits, retries, and what SDKs and coding agents read. Source: openai-python, and codex-rs/codex-api.
FORWARDED = frozenset({
    "ratelimit", "ratelimit-policy", "retry-after", "retry-after-ms", "x-models-etag", "x-oai-request-id",
    "x-openai-model", "x-reasoning-included", "x-should-retry",
})  # fmt: skip
FORWARDED_PREFIXES = ("openai-", "x-codex-", "x-ratelimit-")
# Never forwarded: headers of one connection (RFC 9110, 7.6.1), headers that the gateway writes itself, and headers that
# change what a client does beyond reading this answer.
REFUSED = frozenset({
    "age", "alt-svc", "cache-control", "cache-status", "clear-site-data", "connection", "content-encoding",
    "content-length", "content-type", "date", "keep-alive", "location", "proxy-authenticate", "proxy-connection",
    "refresh", "server", "server-timing", "set-cookie", "strict-transport-security", "te", "trailer",
    "transfer-encoding", "upgrade", "via", "www-authenticate", "x-accel-buffering", "x-request-id",
    UPSTREAM_ID,
})  # fmt: skip
REFUSED_PREFIXES = ("access-control-", "x-envoy-", "x-headgate-")
MAX_HEADERS, MAX_KNOWN = 64, 64
"""The most headers of an answer, and the most kinds of answers, for which the chosen names are cached."""
MAX_BYTES = 8_192
"""The most bytes of names and values together; the rest is dropped. Clients in Node fail from 16 KB of headers."""
_UNFIT = re.compile(r"[\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]")
_NAME = re.compile(r"[!#$%&'+.^_`|~0-9A-Za-z-]+\*?|\*", re.ASCII)


ChosenNames = tuple[Sequence[tuple[str, str]], str, bool, bool]
"""Names of headers as they are forwarded and received, the former joined, whether the upstream's id is among them, and
whether `connection` was received too.
"""


class HeaderFilter:
    """Chooses the headers of an answer. `more` has names, or beginnings of names that end in `*`."""

    def __init__(self, more: Iterable[str] = ()) -> None:
        """Raises ValueError for what is not the name of a header, or names one that is never forwarded."""
        known = [name.lower() for name in more]
        for name in known:
            if not _NAME.fullmatch(name):
                raise ValueError(f"'{name}' is not the name of a header, or the beginning of one and *")
            if name in REFUSED or name.startswith(REFUSED_PREFIXES):
                raise ValueError(f"'{name}' is never forwarded")
        self._names = FORWARDED.union(known)
        self._prefixes = (*FORWARDED_PREFIXES, *(name[:-1] for name in known if name.endswith("*")))
        self._selected = lru_cache(1024)(self._select)
        self._known: dict[tuple[str, ...], ChosenNames] = {}

    def forwarded(self, received: Mapping[str, str], scrubber: Scrubber) -> dict[str, str]:
        """Return the chosen headers, with names in lower case, without secrets, and at most MAX_BYTES of them.

        A value with control characters, or bytes that are not UTF-8, is dropped; so is a name that has a secret in it.
        """
        names = tuple(received)
        known = self._known.get(names) or self._choose(names)
        # A multidict counts a name that is there twice as two.
        if known is None or len(names) < len(received):
            return _within_limits(self._search(received), scrubber)
        pairs, joined, has_id, has_connection = known
        if has_connection and received["connection"] != "keep-alive":
            return _within_limits(self._search(received), scrubber)
        chosen: dict[str, str] = {}
        for forwarded, name in pairs:
            chosen[forwarded] = received[name]
        if has_id and not chosen[UPSTREAM_ID]:
            del chosen[UPSTREAM_ID]
        if not chosen:
            return chosen
        values = "".join(chosen.values())
        is_short = len(values) + len(joined) <= MAX_BYTES
        if is_short and values.isprintable() and not scrubber.is_in_fields(joined, values):
            return chosen
        return _within_limits(chosen, scrubber)

    def _search(self, received: Mapping[str, str]) -> dict[str, str]:
        chosen: dict[str, str] = {}
        excluded = _named_by_connection(received)
        for name, value in received.items():
            if len(name) > MAX_NAME_CHARS or (lower := self._selected(name)) is None or lower in excluded:
                continue
            chosen[lower] = f"{chosen[lower]}, {value}" if lower in chosen else value
        if upstream_id := received.get("x-request-id"):
            chosen[UPSTREAM_ID] = upstream_id
        return chosen

    def _choose(self, names: tuple[str, ...]) -> ChosenNames | None:
        """Return those among these names that are forwarded, and remember them: an upstream sends the same ones in each
        of its answers. None where each header has to be looked at: they are many, one is very long, or there twice.
        """
        if len(names) > MAX_HEADERS or max(map(len, names), default=0) > MAX_NAME_CHARS:
            return None
        chosen = [(lower, name) for name in names if (lower := self._selected(name)) is not None]
        chosen += [(UPSTREAM_ID, name) for name in names if name.lower() == "x-request-id"]
        if len(dict(chosen)) < len(chosen):
            return None
        if len(self._known) >= MAX_KNOWN:
            self._known.clear()
        has_connection = "connection" in map(str.lower, names)
        known = self._known[names] = chosen, "".join(dict(chosen)), UPSTREAM_ID in dict(chosen), has_connection
        return known

    def _select(self, name: str) -> str | None:
        """Return a name in lower case; None if headers of this name are not forwarded."""
        lower = name.lower()
        is_listed = lower in self._names or lower.startswith(self._prefixes)
        return lower if is_listed and lower not in REFUSED and not lower.startswith(REFUSED_PREFIXES) else None


def _named_by_connection(received: Mapping[str, str]) -> Sequence[str]:
    """The names of headers that concern this connection only."""
    named = received.get("connection")
    return [name.strip().lower() for name in named.split(",")] if named else ()


def _within_limits(chosen: Mapping[str, str], scrubber: Scrubber) -> dict[str, str]:
    headers: dict[str, str] = {}
    size = 0
    for name, value in chosen.items():
        size += len(name) + len(value)
        if size <= MAX_BYTES and not _UNFIT.search(value) and not scrubber.is_in_name(name):
            headers[name] = scrubber.text(value)
    return headers
