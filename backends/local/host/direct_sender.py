"""Sends messages from any thread of the child process, at once, without waking its event loop."""

import asyncio
import socket
import threading

from backends.local.host.ipc import HEADER_BYTES, MAX_WAITING_BYTES


class DirectSender:
    """One end of a connection, to write to. Messages are sent whole, in the order of the calls.

    What the socket does not take at once waits, and the loop sends it when the other side has read.
    """

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._end = end
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._unsent = bytearray()

    def send(self, message: bytes) -> None:
        """Send a message. What waits ends the connection beyond a limit: the other side is stuck."""
        data = len(message).to_bytes(HEADER_BYTES) + message
        with self._lock:
            if self._unsent:
                self._unsent += data
            elif rest := data[self._send_now(data) :]:
                self._unsent += rest
                self._loop.call_soon_threadsafe(self._loop.add_writer, self._end, self._send_unsent)
            if len(self._unsent) > MAX_WAITING_BYTES:
                self._end.shutdown(socket.SHUT_RDWR)  # so that nothing is received any more either

    def _send_unsent(self) -> None:
        with self._lock:
            del self._unsent[: self._send_now(self._unsent)]
            if not self._unsent:
                self._loop.remove_writer(self._end)

    def _send_now(self, data: bytes | bytearray) -> int:
        """Return how many bytes need not be sent any more: all if the other side is gone, which receiving reports."""
        try:
            return self._end.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            return len(data)
