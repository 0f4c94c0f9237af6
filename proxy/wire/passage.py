"""Forwards runs of deltas straight from the connection on which they arrive to the connection of the client.

Most of a stream is deltas that arrive one at a time. To wake the task of the request for each of them, and to pass it
through every iterator between, costs more than all other work on a delta. So the reader of the batches gives the source
an outlet: a function that takes the frames of a run. While the reader awaits its next batch, the source calls it with
each run as it arrives, and the task sleeps on. Events, and runs that the outlet does not take, come in the next batch.

An iterator that changes or keeps batches is no Passage, or forwards none, and so receives every run in a batch.
"""

from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Self

from proxy.wire.event import Batch

Outlet = Callable[[bytes], bool]
"""Takes the whole frames of a run at once and returns True, or does nothing and returns False. It raises nothing."""
Reserve = Callable[[int], None]
"""Reserves memory, in bytes. Raises Unavailable."""


class Passage:
    """Batches whose runs can be forwarded to an outlet: an async iterator.

    It is no ABC: for those `isinstance` is a function in Python, which each stream would call several times.
    """

    __slots__ = ()

    def __aiter__(self) -> Self:
        return self

    @abstractmethod
    def __anext__(self) -> Awaitable[Batch]:
        """Return the next batch."""

    @abstractmethod
    def forward_runs(self, outlet: Outlet) -> None:
        """Offer each run that arrives between batches to the outlet. Called once, after a batch was read."""

    def deliver_at_once(self) -> None:
        """Let each event come as it is there, although the call asked for no stream: a client streams it now."""


def forward_runs(batches: AsyncIterator[Batch], outlet: Outlet) -> None:
    """Let the outlet have the runs of these batches, if they are a Passage."""
    if isinstance(batches, Passage):
        batches.forward_runs(outlet)


def deliver_at_once(batches: AsyncIterator[Batch]) -> None:
    """Let each event of these batches come as it is there, if they are a Passage."""
    if isinstance(batches, Passage):
        batches.deliver_at_once()
