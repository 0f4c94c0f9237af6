"""What a policy is. One file each; its class is its TOML table. Start from `_template.py`."""

from collections.abc import Callable
from typing import ClassVar

from proxy.settings import Table
from proxy.wire.call import Call
from proxy.wire.event import Event

EventCheck = Callable[[Event], Event]


class Policy(Table):
    """A rule over calls and over the events of their replies. Its fields are its TOML keys.

    A policy raises PolicyViolation or Stop; it knows neither `enforce` from `report`, nor HTTP from a stream. It reads
    what the caller wrote, so it checks types before it compares: an odd shape is a violation or passes, never a crash.
    """

    watches: ClassVar[frozenset[str]] = frozenset()
    """The types of events that `on_response` wants to see beside those that Headgate follows anyway."""

    async def on_request(self, call: Call) -> Call:
        """Let the call pass, changed or not. Raises PolicyViolation."""
        return call

    def on_response(self, call: Call) -> EventCheck | None:  # noqa: ARG002  for those that look at replies
        """A check that gets every watched event of this call's reply before the caller does, or None.

        It returns the event, changed or not, or raises Stop. What it must remember lives in its closure.
        """
        return None
