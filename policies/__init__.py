"""What a policy is. One file each; its class is its TOML table. Start from `_template.py`."""

from collections.abc import Awaitable, Callable
from functools import cached_property
from typing import ClassVar

from proxy.settings import Table
from proxy.stores import Store
from proxy.stores.memory import Memory
from proxy.wire.call import Call
from proxy.wire.event import Event

EventCheck = Callable[[Event], Awaitable[Event]]


class Policy(Table):
    """A rule over calls and over the events of their replies. Its fields are its TOML keys.

    A policy raises PolicyViolation or Stop; it knows neither `enforce` from `report`, nor HTTP from a stream. It reads
    what the caller wrote, so it checks types before it compares: an odd shape is a violation or passes, never a crash.
    """

    watches: ClassVar[frozenset[str]] = frozenset()
    """The types of events that `on_response` wants to see beside those that Headgate follows anyway."""

    @cached_property
    def _shared_state(self) -> Store:
        """What must outlive a call: shared by every worker when the config says so, from `start` on."""
        return Memory()

    async def start(self, state: Store) -> None:
        """Take what lives as long as the process."""
        vars(self)["_shared_state"] = state  # a private attribute of pydantic's would cost every call 2 µs to read

    def judge(self, call: Call) -> Call:
        """Let the call pass, changed or not. Raises PolicyViolation."""
        return call

    async def on_request(self, call: Call) -> Call:
        """The same, for those that must wait for something, such as `_shared_state`; it runs instead of `judge`."""
        return self.judge(call)

    def on_response(self, call: Call) -> EventCheck | None:  # noqa: ARG002  for those that look at replies
        """A check that gets every watched event of this call's reply before the caller does, or None.

        It returns the event, changed or not, or raises Stop. What it must remember lives in its closure.
        """
        return None

    def needs_events(self, call: Call) -> bool:  # noqa: ARG002  for those that stop replies in time
        """Whether the reply to this call must be looked at while it is made, even if the caller wants one body."""
        return False

    async def on_end(self, call: Call) -> None:
        """Called once for every call that `on_request` let pass, however it ended: give back what was reserved."""
