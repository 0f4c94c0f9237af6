"""Tokens of issuers -> callers. A token that was checked is remembered by its hash until it expires."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from proxy.context import Caller
from proxy.identity.claims import ClaimMap
from proxy.identity.issuer_keys import Fetch, IssuerKeys
from proxy.identity.issuer_table import IssuerTable
from proxy.identity.tokens import UncheckedToken, check_claims, expired, has_signed, invalid, read_token

MAX_KNOWN = 10_000
"""How many tokens are remembered."""
MAX_KNOWN_S = 300.0
"""How long one is, in seconds, before it is checked again."""


@dataclass(frozen=True, slots=True)
class Issuer:
    """An issuer, its keys, and how its claims name callers."""

    table: IssuerTable
    keys: IssuerKeys
    claim_map: ClaimMap


@dataclass(frozen=True, slots=True)
class KnownToken:
    """The caller of a token; `ends_at` is on the clock, `known_until` on the monotonic one."""

    caller: Caller
    ends_at: float
    known_until: float


class SignIn:
    """Knows the callers of tokens. Those of issuers that were removed are refused at once."""

    def __init__(
        self, fetch: Fetch, clock: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._fetch = fetch
        self._clock = clock
        self._monotonic = monotonic
        self._issuers: Mapping[str, Issuer] = {}
        self._longest = 0  # of the tokens that an issuer may have made, in bytes
        self._known: OrderedDict[bytes, KnownToken] = OrderedDict()
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def is_used(self) -> bool:
        """Whether there is an issuer."""
        return bool(self._issuers)

    @property
    def issuers(self) -> Sequence[IssuerKeys]:
        """The keys of the issuers, in the order of the config."""
        return [issuer.keys for issuer in self._issuers.values()]

    def replace(self, tables: Sequence[IssuerTable]) -> None:
        """Accept tokens of these issuers from now on; those that do not change keep their keys."""
        old = self._issuers
        same = {table.url: old[table.url] for table in tables if table.url in old and old[table.url].table == table}
        self._issuers = {table.url: same.get(table.url) or self._start(table) for table in tables}
        self._longest = max((table.max_token_bytes for table in tables), default=0)
        self._known.clear()
        for url, issuer in old.items():
            if url not in same:
                task = asyncio.create_task(issuer.keys.close())
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Accept no more tokens, and fetch no more keys."""
        self.replace(())
        await asyncio.gather(*self._closing)

    def identify(self, token: str, digest: bytes) -> Caller:
        """Return the caller of a token with this SHA-256.

        Raises Unauthenticated, KeysPending while its key is being fetched, and Unavailable if that is not possible.
        """
        known = self._known.get(digest)
        if known is not None and self._monotonic() < known.known_until:
            if self._clock() < known.ends_at:
                return known.caller
            raise expired()
        if len(token) > self._longest:
            raise invalid(f"it is longer than {self._longest} bytes")
        unchecked = read_token(token)
        issuer = self._issuer_of(unchecked, len(token))
        keys = issuer.keys.find(unchecked.key_id, unchecked.algorithm)
        if not any(has_signed(key, token, unchecked.algorithm) for key in keys):
            raise invalid(f"the issuer '{issuer.table.name}' has not signed it")
        table = issuer.table
        ends_at = check_claims(unchecked.claims, table.audiences, self._clock(), table.clock_skew_s)
        caller = issuer.claim_map.caller_of(unchecked.claims)
        if len(self._known) >= MAX_KNOWN:
            self._known.popitem(last=False)
        self._known[digest] = KnownToken(caller, ends_at, self._monotonic() + MAX_KNOWN_S)
        return caller

    def known(self, digest: bytes) -> Caller | None:
        """Return the caller of a token with this SHA-256 that was checked lately; it may have expired since."""
        known = self._known.get(digest)
        return None if known is None else known.caller

    def _start(self, table: IssuerTable) -> Issuer:
        keys = IssuerKeys(table, self._fetch, self._known.clear, self._monotonic)
        keys.start()
        return Issuer(table, keys, table.claim_map())

    def _issuer_of(self, unchecked: UncheckedToken, size_bytes: int) -> Issuer:
        """Return the issuer that a token names, if it may have made it. Raises Unauthenticated."""
        issuer = self._issuers.get(unchecked.issuer)
        if issuer is None:
            raise invalid("its issuer is not accepted")
        if size_bytes > issuer.table.max_token_bytes:
            raise invalid(f"it is longer than {issuer.table.max_token_bytes} bytes")
        if unchecked.algorithm not in issuer.table.algorithms:
            raise invalid("its algorithm is not accepted")
        return issuer
