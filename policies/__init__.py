"""What a policy is. One file each; its class is its TOML table. Start from `_template.py`."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cached_property
from inspect import iscoroutinefunction, isfunction
from typing import Any, ClassVar

from proxy.settings import Table
from proxy.stores import Store
from proxy.stores.memory import Memory
from proxy.wire.call import Call
from proxy.wire.event import Event

Judge = Callable[[Call], Call | Awaitable[Call]]
EventCheck = Callable[[Event], Awaitable[Event]]


@dataclass(frozen=True, slots=True)
class Watch:
    """How the reply to one call is watched. What must be remembered meanwhile lives in the closure of `check`."""

    check: EventCheck
    """Gets every watched event before the caller does; returns it, changed or not, or raises Stop."""
    in_time: bool = False
    """Whether it must see the reply while that is made, even if the caller wants one body."""


Watcher = Callable[[Call], Watch | None]


class Policy(Table):
    """A rule over calls and over the events of their replies. Its fields are its TOML keys.

    A policy raises PolicyViolation or Stop; it knows neither `enforce` from `report`, nor HTTP from a stream. It reads
    what the caller wrote, so it checks types before it compares: an odd shape is a violation or passes, never a crash.
    """

    watches: ClassVar[frozenset[str]] = frozenset()
    """The types of events that a check wants to see beside those that Headgate follows anyway."""
    judges_text: ClassVar[frozenset[str]] = frozenset()
    """The keys that judge a text by more than its length: what was recorded of requests cannot tell what they do."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Raises ValueError for a hook that nobody calls, or awaits: such a slip would let everything pass."""
        super().__init_subclass__(**options)
        for name, value in vars(cls).items():
            if name in ("judging", "watching") and iscoroutinefunction(value):
                raise ValueError(f"{cls.__name__}.{name} is asked while nobody waits; make what it returns async")
            if isfunction(value) and not (name.startswith("_") or hasattr(Policy, name)):
                message = f"{cls.__name__}.{name} is no hook of a policy; those are start, judging and watching"
                raise ValueError(message)

    @cached_property
    def _shared_state(self) -> Store:
        """What must outlive a call: shared by every worker when the config says so, from `start` on."""
        return Memory()

    @cached_property
    def _ordinal(self) -> int:
        """How many policies of this kind stand before this one in the config, from `start` on."""
        return 0

    async def start(self, state: Store, ordinal: int = 0) -> None:
        """Take what lives as long as the process; policies of one kind tell theirs apart by their ordinals."""
        vars(self).update(_shared_state=state, _ordinal=ordinal)

    def judging(self) -> Judge:
        """What every call goes through: a function that returns it, changed or not, or raises PolicyViolation.

        Asked for once, after `start`, so that the function has its settings at hand: to read one of a pydantic model's
        takes as long as a dozen of its variables. One that must wait for something is `async`, or returns what is.
        What it reserves for a call, it gives back by one of the call's `endings`, which come however the call ends.
        """
        return _passed

    def watching(self) -> Watcher | None:
        """What looks at replies: a function that tells how the reply to a call is watched, or None; None looks at none.

        Asked for once, as `judging`. The function is asked for a call before the backend is.
        """
        return None


def _passed(call: Call) -> Call:
    return call
