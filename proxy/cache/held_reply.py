"""A shared reply that is held back until it cannot break off any more: its client wants no stream, and waits anyway."""

from collections.abc import AsyncIterator, Sequence

from proxy.wire.errors import BackendError
from proxy.wire.event import Batch, Reply


class SharedCallEnded(BackendError):
    """A reply that was passed on in part has no end: its leader has died, or the store fails."""

    def __init__(self) -> None:
        super().__init__("The call that this one shared has ended early.", code="upstream_cut")


async def hold(reply: Reply, keep_bytes: int) -> Reply:
    """Return a reply once all of it is there, or more than `keep_bytes`. Raises what the reply raises until then."""
    rest = reply.batches
    if rest is None:
        return reply
    held: list[Batch] = []
    size = 0
    async for batch in rest:
        held.append(batch)
        size += sum([len(unit.sse) for unit in batch])
        if size > keep_bytes:
            break
    return reply.with_fields(batches=_in_turn(held, rest))


async def _in_turn(held: Sequence[Batch], rest: AsyncIterator[Batch]) -> AsyncIterator[Batch]:
    for batch in held:
        yield batch
    async for batch in rest:
        yield batch
