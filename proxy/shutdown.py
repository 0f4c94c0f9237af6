"""Cancels running calls at shutdown in a way that they can still answer."""

import asyncio

from proxy.wire.errors import Unavailable

_REASON = "server_shutdown"  # a client that disconnects cancels its call without a reason


class ShuttingDown(Unavailable):
    """The gateway shut down before the answer was complete."""

    def __init__(self) -> None:
        super().__init__("The gateway is shutting down; this answer was not finished in time.", code=_REASON)


def cancel_for_shutdown(call: asyncio.Task[None]) -> None:
    """Cancel a running call because the gateway shuts down."""
    call.cancel(_REASON)


def shutdown_error(cancelled: asyncio.CancelledError) -> ShuttingDown:
    """Return the error for a call that `cancel_for_shutdown` cancelled; the call continues with it.

    Raises any other cancellation.
    """
    if cancelled.args != (_REASON,):
        try:
            raise cancelled
        finally:
            del cancelled  # its traceback keeps this frame and all that the call took: in a cycle until it is collected
    call = asyncio.current_task()  # not before: the task keeps a cancellation by which it ends, and that this frame
    if call is not None:
        call.uncancel()
    return ShuttingDown()
