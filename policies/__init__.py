"""What a policy is. One file each; its class is its TOML table. Start from `_template.py`."""

from collections.abc import Awaitable, Callable
from functools import cached_property
from inspect import isfunction
from typing import Any, ClassVar

from proxy.settings import Table
from proxy.stores import Store
from proxy.stores.memory import Memory
from proxy.wire.call import Call
from proxy.wire.event import Event

Judge = Callable[[Call], Call | Awaitable[Call]]
EventCheck = Callable[[Event], Awaitable[Event]]


class Policy(Table):
    """A rule over calls and over the events of their replies. Its fields are its TOML keys.

    A policy raises PolicyViolation or Stop; it knows neither `enforce` from `report`, nor HTTP from a stream. It reads
    what the caller wrote, so it checks types before it compares: an odd shape is a violation or passes, never a crash.
    """

    watches: ClassVar[frozenset[str]] = frozenset()
    """The types of events that `on_response` wants to see beside those that Headgate follows anyway."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Raises ValueError for a hook that nobody calls: with such a slip a policy would let everything pass."""
        super().__init_subclass__(**options)
        for name, value in vars(cls).items():
            if isfunction(value) and not (name.startswith("_") or hasattr(Policy, name)):
                hooks = "judging, on_response, needs_events, start and on_end"
                raise ValueError(f"{cls.__name__}.{name} is no hook of a policy; those are {hooks}")

    @cached_property
    def _shared_state(self) -> Store:
        """What must outlive a call: shared by every worker when the config says so, from `start` on."""
        return Memory()

    async def start(self, state: Store) -> None:
        """Take what lives as long as the process."""
        vars(self)["_shared_state"] = state

    def judging(self) -> Judge:
        """What every call goes through: a function that returns it, changed or not, or raises PolicyViolation.

        Asked for once, after `start`, so that the function has its settings at hand: to read one of a pydantic model's
        takes as long as a dozen of its variables. One that must wait for something is `async`, or returns what is.
        """
        return _passed

    def on_response(self, call: Call) -> EventCheck | None:  # noqa: ARG002  for those that look at replies
        """A check that gets every watched event of this call's reply before the caller does, or None.

        It returns the event, changed or not, or raises Stop. What it must remember lives in its closure.
        """
        return None

    def needs_events(self, call: Call) -> bool:  # noqa: ARG002  for those that stop replies in time
        """Whether the reply to this call must be looked at while it is made, even if the caller wants one body."""
        return False

    def on_end(self, call: Call) -> Awaitable[None] | None:  # noqa: ARG002  for those that reserve something
        """Asked once for every call that was let pass, however it ended: what gives back what was reserved, or None."""
        return None


def _passed(call: Call) -> Call:
    return call
