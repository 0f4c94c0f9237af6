"""The cache key: everything that can change an answer.

`prompt_cache_key` is the caller's consent and a part of the key. The other parts are the team, the route, the query,
the forwarded headers and the whole body, without the fields and headers that only identify the caller or describe the
delivery. Unknown ones count.
"""

import hashlib
from collections.abc import Mapping

import orjson

from proxy.context import Caller
from proxy.wire.call import Call

VERSION = b"headgate cache 5"
NOT_IN_KEY = frozenset({"stream", "stream_options", "metadata", "safety_identifier", "user", "store"})
# `store` counts by its meaning: a caller that wants its response stored gets the id of a stored one.
# Forwarded headers that name the client, a session or an attempt. Others, such as `openai-beta`, can change an answer.
HEADERS_NOT_IN_KEY = frozenset({
    "agent-framework-version", "idempotency-key", "originator", "session-id", "session_id", "thread-id", "user-agent",
    "x-client-request-id", "x-initiator", "x-interaction-type", "x-irid", "x-promptfoo-version", "x-session-affinity",
    "x-session-id",
})  # fmt: skip
HEADER_PREFIXES_NOT_IN_KEY = ("x-stainless-",)


def cache_key(call: Call, caller: Caller, route: str, forwarded: Mapping[str, str]) -> str:
    """Return the hex SHA-256 of all parts, each with its length before it; names in the body are sorted.

    `forwarded` are the headers of the call that a target of the route may see.
    """
    relevant = {name: value for name, value in call.body.items() if name not in NOT_IN_KEY}
    headers = {name: value for name, value in forwarded.items() if _can_change_answer(name)}
    digest = hashlib.sha256()
    for part in (
        VERSION,
        caller.team.encode(),
        str(call.body["prompt_cache_key"]).encode(),
        route.encode(),
        call.query.encode(errors="surrogatepass"),
        b"not stored" if call.body.get("store") is False else b"stored",
        repr(sorted(headers.items())).encode("ascii", "backslashreplace"),  # a header may have bytes that are not UTF-8
        orjson.dumps(relevant, option=orjson.OPT_SORT_KEYS),
    ):
        digest.update(len(part).to_bytes(8))
        digest.update(part)
    return digest.hexdigest()


def _can_change_answer(header: str) -> bool:
    return header not in HEADERS_NOT_IN_KEY and not header.startswith(HEADER_PREFIXES_NOT_IN_KEY)
