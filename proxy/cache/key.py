"""The cache key: everything that can change an answer.

`prompt_cache_key` is the caller's consent and a part of the key. The other parts are the team, the route, the query and
the whole body without the fields that only identify the caller or describe the delivery. Unknown fields count.
"""

import hashlib

import orjson

from proxy.context import Caller
from proxy.wire.call import Call

VERSION = b"headgate cache 3"
NOT_IN_KEY = frozenset({"stream", "stream_options", "metadata", "safety_identifier", "user", "store"})


def cache_key(call: Call, caller: Caller, route: str) -> str:
    """Return the hex SHA-256 of all parts, each with its length before it; names in the body are sorted."""
    relevant = {name: value for name, value in call.body.items() if name not in NOT_IN_KEY}
    digest = hashlib.sha256()
    for part in (
        VERSION,
        caller.team.encode(),
        str(call.body["prompt_cache_key"]).encode(),
        route.encode(),
        call.query.encode(),
        orjson.dumps(relevant, option=orjson.OPT_SORT_KEYS),
    ):
        digest.update(len(part).to_bytes(8))
        digest.update(part)
    return digest.hexdigest()
