"""Where the entry of a call is, or why it is not looked up; decided once for a call that is received again."""

from collections.abc import Awaitable, Sequence
from functools import lru_cache

from msgspec import Struct

from proxy.cache.cacheable import reason_to_bypass, runs_tools
from proxy.cache.key import MANY_HEADERS, encode_call, forwarded_in_key, hash_fields
from proxy.cache.vault import EntryAddress, Vault
from proxy.cache.vault_keys import HASH_BYTES, MAX_KEYS, Partition
from proxy.config.schema import CacheWhen, Share
from proxy.context import Caller, Context
from proxy.routing.routes import Route
from proxy.wire.call import Call
from proxy.wire.headers import HeaderNames

partition = lru_cache(MAX_KEYS)(Partition)
"""Returns those who share entries, the same object each time."""
Found = EntryAddress | str
"""The address of a call's entry, or why the call is not looked up."""


class Lookup(Struct, frozen=True):
    """What was found for a call of this caller on this route."""

    route: Route
    caller: Caller
    found: Found


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

    def find(self, call: Call, route: Route, context: Context) -> Found | Awaitable[Found]:
        """Return the address of a call's entry, nothing of which is read yet, or why the call is not looked up.

        A large call is looked through, and hashed, in a thread.
        """
        memo = call.memo
        if memo is not None:
            known: Lookup | None = memo.get(self)
            if known is not None and known.route is route and known.caller is context.caller:
                found = known.found
                return found if isinstance(found, str) else EntryAddress(found.partition, found.keys)
        reason = reason_to_bypass(call, route.cache or self._when)
        if reason is None:
            if context.is_large(call.size_bytes):
                return self._find_large(call, route, context)
            reason = None if self._allows_tools else runs_tools(call)
        return self._address(call, route, context.caller, reason)

    async def _find_large(self, call: Call, route: Route, context: Context) -> Found:
        return self._address(call, route, context.caller, await context.run_large(self._look_through, call))

    def _look_through(self, call: Call) -> str | None:
        """Return why a call is not looked up for what is in it; hash the fields of one that is."""
        reason = None if self._allows_tools else runs_tools(call)
        if reason is None:
            call.fact(hash_fields)
        return reason

    def _address(self, call: Call, route: Route, caller: Caller, bypass: str | None) -> Found:
        """Return why a call is not looked up, or else the address of its entry, and keep it in the call's memo."""
        found: Found
        if bypass is None:
            group = partition_of(call, caller, self._share)
            found = EntryAddress(group, self._keys_of(call, route, group))
        else:
            found = bypass
        if call.memo is not None:
            call.memo[self] = Lookup(route, caller, found)
        return found

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
