"""The short way of runs: from where they arrive to where they are written, past the task that reads the batches.

Most of a stream are deltas that arrive one by one. To wake a task for each, through all that waits for it, costs more
than everything that is done with one. So who reads batches may give them an outlet; they call it with each run that
arrives while the next batch is awaited. Everything else, and what the outlet does not take, comes as a batch.

A wrapper of batches that has no `pass_runs` sees all of them: whatever changes or keeps batches needs no more.
"""

from abc import abstractmethod
from collections.abc import AsyncIterator, Callable

from proxy.wire.event import Batch, Run

Outlet = Callable[[Run], bool]
"""Takes a run now and returns True, or returns False and has done nothing. It raises nothing."""


class Passage(AsyncIterator[Batch]):
    """Batches that can give runs to an outlet."""

    __slots__ = ()

    @abstractmethod
    def pass_runs(self, outlet: Outlet) -> None:
        """Offer each run to an outlet from now on. Call it when a batch was read, once."""


def pass_runs(batches: AsyncIterator[Batch], outlet: Outlet) -> None:
    """Let batches give their runs to an outlet, if they can."""
    if isinstance(batches, Passage):
        batches.pass_runs(outlet)
