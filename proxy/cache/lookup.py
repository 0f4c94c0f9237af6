"""Where the entry of a call is, or why it is not looked up; decided once for a call that is received again."""

from collections.abc import Awaitable, Sequence
from functools import lru_cache

from msgspec import Struct

from proxy.cache.cacheable import reason_to_bypass, runs_tools
from proxy.cache.key import MANY_HEADERS, encode_call, forwarded_in_key, hash_fields
from proxy.cache.vault import Vault
from proxy.cache.vault_keys import HASH_BYTES, MAX_KEYS, Partition
from proxy.config.schema import CacheWhen, Share
from proxy.context import Caller, Context
from proxy.routing.routes import Route
from proxy.wire.call import Call
from proxy.wire.headers import HeaderNames

partition = lru_cache(MAX_KEYS)(Partition)
"""Returns those who share entries, the same object each time."""
NONE = Partition("none")
"""That of a call that is not looked up."""


class Lookup(Struct, frozen=True):
    """The lookup of a call of this caller on this route.

    `bypass` is why there is none; None: the entry is in this partition, at these keys.
    """

    route: Route
    caller: Caller
    bypass: str | None
    partition: Partition = NONE
    keys: Sequence[str] = ()


class Lookups:
    """The lookups of calls in a vault."""

    def __init__(self, vault: Vault, when: CacheWhen, share: Share, *, allows_tools: bool = False) -> None:
        """`allows_tools`: answers that may come of tools of the server are looked up too."""
        self._vault = vault
        self._when = when
        self._share = share
        self._allows_tools = allows_tools
        # Of keys without a secret: by route, who may see which headers, partition, and the names of headers, none of
        # which counts.
        self._beginnings: dict[tuple[str, Sequence[HeaderNames], Partition, Sequence[str]], str] = {}

    def find(self, call: Call, route: Route, context: Context) -> Lookup | Awaitable[Lookup]:
        """Return the lookup of a call; a large one is looked through, and hashed, in a thread."""
        memo = call.memo
        if memo is not None:
            known: Lookup | None = memo.get(self)
            if known is not None and known.route is route and known.caller is context.caller:
                return known
        reason = reason_to_bypass(call, route.cache or self._when)
        if reason is None:
            if context.is_large(call.size_bytes):
                return self._find_large(call, route, context)
            reason = None if self._allows_tools else runs_tools(call)
        return self._make_lookup(call, route, context.caller, reason)

    async def _find_large(self, call: Call, route: Route, context: Context) -> Lookup:
        return self._make_lookup(call, route, context.caller, await context.run_large(self._look_through, call))

    def _look_through(self, call: Call) -> str | None:
        """Return why a call is not looked up for what is in it; hash the fields of one that is."""
        reason = None if self._allows_tools else runs_tools(call)
        if reason is None:
            call.fact(hash_fields)
        return reason

    def _make_lookup(self, call: Call, route: Route, caller: Caller, bypass: str | None) -> Lookup:
        """Return the lookup of a call, and keep it in the call's memo."""
        if bypass is None:
            group = partition_of(call, caller, self._share)
            lookup = Lookup(route, caller, None, group, self._keys_of(call, route, group))
        else:
            lookup = Lookup(route, caller, bypass)
        if call.memo is not None:
            call.memo[self] = lookup
        return lookup

    def _keys_of(self, call: Call, route: Route, group: Partition) -> Sequence[str]:
        """Return the keys of a call: of one without parameters and headers that count only the end is its own."""
        sent = route.name, route.header_names, group, tuple(call.headers)
        if not call.query and (beginning := self._beginnings.get(sent)) is not None:
            return (beginning + call.fact(hash_fields).hex(),)
        forwarded = forwarded_in_key(call, route)
        keys = self._vault.keys_of(encode_call(call, route.name, forwarded), group)
        if self._vault.has_plain_keys and not (call.query or forwarded or len(call.headers) > MANY_HEADERS):
            if len(self._beginnings) >= MAX_KEYS:
                self._beginnings.clear()
            self._beginnings[sent] = keys[0][: -2 * HASH_BYTES]
        return keys


def partition_of(call: Call, caller: Caller, share: Share) -> Partition:
    """Return those who share the answer to a call. A stored answer has an id that no other team may continue."""
    if share == "caller":
        return partition("caller", caller.team, caller.name)
    is_public = share == "all" and call.body.get("store") is False and call.body.get("previous_response_id") is None
    return partition("all") if is_public else partition("team", caller.team)
