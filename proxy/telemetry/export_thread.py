"""A thread that sends to a collector. One that is slow or gone delays nothing else, the end of the process included."""

import threading
from abc import ABC, abstractmethod
from typing import Protocol

from proxy.outage import Outage
from proxy.telemetry.exporter_log import ExporterLog

SHUTDOWN_S = 1.0
"""How long the end of the process waits for what is left, in seconds, first for metrics and then for traces."""


class Exporter(Protocol):
    """An exporter."""

    def shutdown(self) -> None: ...


class ExportThread(ABC):
    """Calls `send_waiting` when data waits. A subclass defines the data."""

    def __init__(self, name: str, exporter: Exporter, *, delay_s: float | None = None) -> None:
        """`delay_s` is the longest time between two calls."""
        self._sender = exporter
        self._log = ExporterLog(exporter)
        self._outage = Outage()
        self._delay_s = delay_s
        self._has_work = threading.Event()
        self._is_closing = False
        # A daemon: a collector that never answers must not keep the process from exiting.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def close(self, timeout_s: float = SHUTDOWN_S) -> bool:
        """Send what waits and end the thread; return False if it still sends after `timeout_s`."""
        self._is_closing = True
        self._has_work.set()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def note_outcome(self, *, is_sent: bool) -> bool:
        """Note the outcome of an export; return whether an outage begins with it."""
        if not is_sent:
            return self._outage.begins()
        self._outage.end()
        self._log.reset()
        return False

    @abstractmethod
    def send_waiting(self, *, is_due: bool) -> None:
        """Send what waits, all of it if it is due. Called in the thread."""

    def _run(self) -> None:
        while True:
            is_due = not self._has_work.wait(self._delay_s)
            self._has_work.clear()
            is_last = self._is_closing
            self.send_waiting(is_due=is_due or is_last)
            if is_last:
                self._sender.shutdown()
                self._log.close()
                return
