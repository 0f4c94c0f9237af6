"""Calls in WebSocket mode: the lane of each, and the connection of its caller.

A backend that speaks WebSocket keeps one connection of its own for each connection of a caller, so that what it
remembers of a connection is remembered for that caller, and ends with it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

from proxy.context import Context, Slot
from proxy.wire.call import Call


class ConnectionPart(Protocol):
    """The state that a backend keeps for one connection of a caller."""

    def generates(self, response_id: object) -> bool:
        """Return whether a response, finished or not, is the last one of a lane here."""

    async def send(self, message: bytes) -> None:
        """Send a message that concerns such a response."""

    def close(self) -> None:
        """Begin to end it, and the work behind it."""


class UnsolicitedReply(Protocol):
    """A reply that a backend began without a call, to continue a response that was steered."""

    @property
    def lane(self) -> str | None: ...

    def close(self) -> None:
        """Discard the unread rest."""


P = TypeVar("P", bound=ConnectionPart)


class CallerConnection:
    """One WebSocket connection of a caller, as backends see it.

    `headers` are those of the upgrade that they may see. `notify` sends the caller a message in a lane beside the
    events of its turns. `adopt` makes a turn of a reply that continues a response without a call: the reply, the
    backend's name, and the response's id.
    """

    def __init__(
        self,
        headers: Mapping[str, str],
        notify: Callable[[bytes, str | None], None],
        adopt: Callable[[UnsolicitedReply, str, object], None],
    ) -> None:
        self.headers = headers
        self.notify = notify
        self.adopt = adopt
        self._parts: dict[str, ConnectionPart] = {}

    def part(self, backend: str, make: Callable[[], P]) -> P:
        """Return the state that the backend of this name keeps for the connection, made at the first request."""
        found = self._parts.get(backend)
        if found is None:
            found = self._parts[backend] = make()
        return found  # type: ignore[return-value]  # each backend asks for its own kind

    def part_of(self, response_id: object) -> ConnectionPart | None:
        """Return the part in which a response is the last one of a lane."""
        return next((part for part in self._parts.values() if part.generates(response_id)), None)

    def backend_of(self, response_id: object) -> str | None:
        """Return the name of the backend in whose part a response is the last one of a lane."""
        return next((name for name, part in self._parts.items() if part.generates(response_id)), None)

    def close(self) -> None:
        """Close the state of all backends."""
        while self._parts:
            self._parts.popitem()[1].close()

    def end(self) -> None:
        """Close the state of all backends, as the caller's connection ends. What they send later is dropped."""
        self.close()
        self.notify = self.adopt = _drop  # what was called keeps this connection, in a cycle


def _drop(*_: object) -> None:
    """Take a message or a reply for a caller whose connection has ended."""


@dataclass(slots=True)
class LaneCall:
    """What a call in WebSocket mode has beside its body. `generates` is false for a warm-up.

    `brief` is the short form of the call, with the id of the response that it continues and new input only, for a
    backend whose connection still has that response. None: there is no short form. `reply` is one that the backend
    `begun_by` began before the call was made.
    """

    connection: CallerConnection
    lane: str | None
    generates: bool = True
    brief: Call | None = None
    reply: UnsolicitedReply | None = None
    begun_by: str | None = None

    @property
    def has_own_reply(self) -> bool:
        """Whether the cache must not answer the call: it is a warm-up, or its reply has begun."""
        return self.reply is not None or not self.generates


LANE_CALL = Slot[LaneCall]("lane.call")
"""Set for calls in WebSocket mode."""


def is_warm_up(context: Context) -> bool:
    """Return whether a call asks for no output."""
    lane_call = context.get(LANE_CALL)
    return lane_call is not None and not lane_call.generates


def offer_brief(call: Call | None, context: Context) -> None:
    """Offer backends the brief form of a call in WebSocket mode; None withdraws it."""
    lane_call = context.get(LANE_CALL)
    if lane_call is not None:
        lane_call.brief = call
