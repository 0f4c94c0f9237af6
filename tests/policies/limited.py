"""Calls under policies that limit what is used over time."""

import asyncio
from collections.abc import Mapping
from typing import Any

from pydantic import PrivateAttr

from policies import Policy, PolicyState
from proxy.context import Caller, Context
from proxy.stores import Grant, HoldRequest, StoreError
from proxy.stores.memory import MemoryStore
from proxy.wire.call import Call
from proxy.wire.errors import LimitExceeded
from tests.examples import make_call, make_context

ANNA, BEN, CAROL = Caller("anna", "search"), Caller("ben", "search"), Caller("carol", "shop")


class UnreachableStore(MemoryStore):
    """A store that cannot be reached until `mend` is called."""

    _is_down: bool = PrivateAttr(default=True)

    def mend(self, *, is_down: bool = False) -> None:
        self._is_down = is_down

    async def take(self, key: str, amount: int, **options: Any) -> Grant:
        self._check()
        return await super().take(key, amount, **options)

    async def hold(self, key: str, asked: HoldRequest, **options: Any) -> Grant:
        self._check()
        return await super().hold(key, asked, **options)

    async def claim(self, key: str, owner: str, *, lease_s: float) -> bool:
        self._check()
        return await super().claim(key, owner, lease_s=lease_s)

    async def release(self, key: str, owner: str) -> None:
        self._check()
        await super().release(key, owner)

    def _check(self) -> None:
        if self._is_down:
            raise StoreError("it cannot be reached")


class CountingStore(MemoryStore):
    """A store that counts the commands that change what is held, and can keep their answers back."""

    _commands: int = PrivateAttr(default=0)
    _gate: asyncio.Event = PrivateAttr(default_factory=asyncio.Event)

    @property
    def commands(self) -> int:
        return self._commands

    @property
    def gate(self) -> asyncio.Event:
        """Answers come while it is set; so it is at first."""
        return self._gate

    def model_post_init(self, context: Any, /) -> None:
        super().model_post_init(context)
        self._gate.set()

    async def hold(self, key: str, asked: HoldRequest, **options: Any) -> Grant:
        self._commands += 1
        grant = await super().hold(key, asked, **options)
        await self._gate.wait()
        return grant


def timed_store(now: list[float]) -> MemoryStore:
    """Return a store whose clock shows the first of these times."""
    store = MemoryStore()
    vars(store)["_clock"] = lambda: now[0]
    return store


class Limited:
    """A policy, and the calls that it has let pass."""

    def __init__(self, policy: Policy, state: PolicyState | None = None) -> None:
        self._check = policy.request_check(state or PolicyState())

    async def ask(self, caller: Caller = ANNA, **fields: Any) -> Context:
        """Return the context of a call that passes, as it is sent to a backend. Raises LimitExceeded, Unavailable."""
        context = make_context(caller)
        checked = self._check(make_call(**fields), context)
        if not isinstance(checked, Call):
            await checked
        context.is_sent = True
        return context

    async def refusal(self, caller: Caller = ANNA, **fields: Any) -> LimitExceeded:
        """Return the refusal of a call, which has ended then."""
        try:
            await end(await self.ask(caller, **fields))
        except LimitExceeded as error:
            return error
        raise AssertionError("the call was not refused")


async def end(context: Context, usage: Mapping[str, int] | None = None, *, is_sent: bool = True) -> None:
    """End a call, whose backend reports this usage."""
    context.is_sent = is_sent
    if usage is not None:
        context.record.input_tokens, context.record.output_tokens = usage["input_tokens"], usage["output_tokens"]
    async with context.cleanup:
        pass


def usage(input_tokens: int, output_tokens: int) -> dict[str, int]:
    return {"input_tokens": input_tokens, "output_tokens": output_tokens}
