"""Limits how many calls are in flight at a time, for each team, caller, end user, model or value of metadata.

Request: refuses a call beyond the limit with 429 `too_many`. Calls in WebSocket mode and background responses count
    until they have ended. Each holds a lease in the store, so that what a killed process held is free a while later.
Response: passes.
Source: https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers/ (`RateLimit` of a refusal); the protocol
    has no such limit.
"""

import asyncio
import random
import secrets
from collections import Counter, defaultdict
from functools import partial
from itertools import chain
from typing import Annotated, ClassVar

import structlog
from pydantic import Field, PositiveInt

from policies import Policy, PolicyState, Repeatable, RequestCheck
from policies.support.reservation import counter_key
from policies.support.sharing import LIMITED, Per, shared_by
from proxy.context import Context
from proxy.outage import Outage
from proxy.stores import StoreError
from proxy.wire.call import Call, Operation
from proxy.wire.errors import LimitExceeded
from proxy.wire.loggable import short_message

log = structlog.get_logger()

NAME = "concurrency"
LEASE_S = 30.0
"""The time after which the place of a killed process is free again, in seconds."""
RETRY_AFTER_S = 1.0
MAX_PLACES = 10_000
LOCAL = -1


class ConcurrencyLimit(Policy):
    operations: ClassVar[frozenset[Operation]] = LIMITED
    counts_by: ClassVar[tuple[str, ...]] = ("per",)

    max: Annotated[PositiveInt, Field(le=MAX_PLACES)]
    """The most calls in flight."""
    per: Per = "team"
    """Who shares the limit: "team", "caller", "key", "end_user", "model", "metadata.NAME" or "all"."""
    local_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """The share of the limit that a process grants by itself while the store of [state] cannot be reached."""

    def request_check(self, state: PolicyState) -> RequestCheck:
        who, limit = shared_by(self.per), self.max
        places = _Places(state, limit, max(1, int(limit * self.local_share)))
        policy = f'"{state.name}";q={limit};qu="concurrent-requests"'
        headers = {"RateLimit-Policy": policy, "RateLimit": f'"{state.name}";r=0'}

        async def check(call: Call, context: Context) -> Call:
            shared = who(call, context)
            place = await places.take(shared)
            if place is None:
                message = f"{limit} calls are in flight; that is the limit. Try again when one has ended."
                raise LimitExceeded("too_many", message, after_s=RETRY_AFTER_S, headers=headers)
            context.on_end(partial(places.give_back, shared, place))
            return call

        return Repeatable(check, recheck=check)


class _Places:
    """The places of a policy: each is a lease in the store, renewed while its call lasts."""

    def __init__(self, state: PolicyState, limit: int, local_limit: int) -> None:
        self._store = state.store
        self._name = state.name
        self._limit, self._local_limit = limit, local_limit
        self._owner = secrets.token_hex(16)
        self._held: defaultdict[str, set[int]] = defaultdict(set)  # the numbers of the places, by those who share them
        self._local: Counter[str] = Counter()  # how many calls have none, because the store could not be reached
        self._outage = Outage()
        self._renewing: asyncio.Task[None] | None = None

    async def take(self, shared: str) -> int | None:
        """Return the number of a place, LOCAL for one of this process only, and None if there is none."""
        first = random.randrange(self._limit)  # noqa: S311  so that processes do not ask for the same ones
        try:
            for number in chain(range(first, self._limit), range(first)):
                if number not in self._held[shared] and await self._claim(shared, number):
                    return number
        except StoreError as error:
            if self._outage.begins():
                log.warning("concurrency.local", policy=self._name, error=short_message(error))
            if self._local[shared] + len(self._held[shared]) < self._local_limit:
                self._local[shared] += 1
                return LOCAL
        return None

    async def _claim(self, shared: str, number: int) -> bool:
        held, is_taken = self._held[shared], False
        held.add(number)  # before the store is asked: another call of this process has the same owner
        try:
            is_taken = await self._store.claim(self._key(shared, number), self._owner, lease_s=LEASE_S)
            if self._outage.failures:
                log.info("concurrency.resumed", policy=self._name, failures=self._outage.end())
        finally:
            if not is_taken:
                held.discard(number)
        if self._renewing is None:
            self._renewing = asyncio.create_task(self._renew())
        return is_taken

    async def give_back(self, shared: str, number: int) -> None:
        if number == LOCAL:
            self._local[shared] -= 1
            return
        self._held[shared].discard(number)
        try:
            await self._store.release(self._key(shared, number), self._owner)
        except StoreError as error:  # it ends by itself
            log.warning("concurrency.release_failed", policy=self._name, error=short_message(error))

    async def _renew(self) -> None:
        """Renew the places that are held, until none is."""
        while any(self._held.values()):
            await asyncio.sleep(LEASE_S / 3)
            for shared, number in [(shared, number) for shared, held in self._held.items() for number in held]:
                try:
                    await self._store.claim(self._key(shared, number), self._owner, lease_s=LEASE_S)
                except StoreError as error:
                    log.warning("concurrency.renewal_failed", policy=self._name, error=short_message(error))
                    break
            self._held = defaultdict(set, {shared: held for shared, held in self._held.items() if held})
        self._renewing = None

    def _key(self, shared: str, number: int) -> str:
        return counter_key(NAME, self._name, shared, str(number))
