"""How running calls learn that the gate itself ends: by a cancellation that says so, and that they may answer."""

import asyncio

from proxy.wire.errors import Unavailable

_WHY = "server_shutdown"  # a caller that leaves cancels its call, too, and says nothing


class ShuttingDown(Unavailable):
    """The gate ends before the answer did."""

    def __init__(self) -> None:
        super().__init__("The gate is shutting down; this answer was not finished in time.", code=_WHY)


def end(call: asyncio.Task[None]) -> None:
    """Tell a running call that the gate ends."""
    call.cancel(_WHY)


def heed(cancelled: asyncio.CancelledError) -> ShuttingDown:
    """What to tell the caller of a call that `end` has cancelled; the call goes on. Raises any other cancellation."""
    call = asyncio.current_task()
    if call is None or cancelled.args != (_WHY,):
        raise cancelled
    call.uncancel()
    return ShuttingDown()
