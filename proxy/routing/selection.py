"""In which order the targets of a route are asked, by the route's strategy.

order            as the config lists them: the others are for when the first one fails
weighted         at random, in the proportion of their weights
least_inflight   the one with the fewest calls in flight; among equals at random
affinity         always the same one for the same `prompt_cache_key`, or else for the same team and
                 `safety_identifier`, so that its cache of prompts is used (rendezvous hashing: if a target fails,
                 only its own calls move). With `affinity_max_per_min` the first so many calls of a key in a minute go
                 to the first target, as many to the next one, and so on
"""

import random
from collections.abc import Sequence
from hashlib import blake2b

from proxy.context import Context
from proxy.routing.hot_keys import HotKeys
from proxy.routing.routes import PoolSettings
from proxy.routing.targets import Target
from proxy.wire.call import Call


def in_order(
    targets: Sequence[Target], pool: PoolSettings, call: Call, context: Context, hot_keys: HotKeys
) -> Sequence[Target]:
    """Return the targets, the preferred one first. A target without a weight has 1."""
    strategy, weights = pool.strategy, pool.weights
    if strategy == "order" or len(targets) == 1:
        return targets
    if strategy == "weighted":
        # Source: Efraimidis and Spirakis, "Weighted random sampling with a reservoir" (2006)
        return sorted(targets, key=lambda target: -(random.random() ** (1 / weights.get(target.backend.name, 1))))  # noqa: S311
    if strategy == "least_inflight":
        return sorted(targets, key=lambda target: (target.in_flight, random.random()))  # noqa: S311
    key = _affinity_key(call, context)
    ranked = sorted(targets, key=lambda target: blake2b(target.backend.name.encode(), key=key, digest_size=8).digest())
    if pool.affinity_max_per_min is None:
        return ranked
    first = hot_keys.count(key) // pool.affinity_max_per_min % len(ranked)
    return [*ranked[first:], *ranked[:first]]


def _affinity_key(call: Call, context: Context) -> bytes:
    """Return what is the same for calls that have the beginning of their prompt in common."""
    key = call.body.get("prompt_cache_key")
    parts = [context.caller.team, key if isinstance(key, str) else f"\0{call.body.get('safety_identifier')}"]
    return blake2b("\0".join(parts).encode(errors="surrogatepass"), digest_size=32).digest()
