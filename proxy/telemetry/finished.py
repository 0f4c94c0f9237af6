"""Requests that have ended, and are counted, logged, measured and listed soon after: in batches.

The work for one takes a third of the time when it follows that for another: what it needs is in the processor's caches.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime

import structlog

from proxy.telemetry.record import RequestRecord
from proxy.telemetry.request_line import FinishedRequest, LineForm, RequestLines, group_by_form
from proxy.telemetry.request_metrics import RequestMetrics
from proxy.telemetry.trace import Trace

log = structlog.get_logger()

DELAY_S = 0.05
"""How long a request waits at most, in seconds."""
MOST_WAITING = 64
"""How many wait at most: the event loop answers no other request while these are worked on."""
PROBES = frozenset({"/healthz", "/readyz"})
"""Templates of requests that say nothing of calls: they are not among the recent ones."""


class FinishedRequests:
    """The requests that have ended in this process and are not logged yet."""

    def __init__(self, put_lines: Callable[[bytes], None] | None = None) -> None:
        """`put_lines` takes their log lines as JSON; None: lines are of another format, and structlog makes them."""
        self.metrics: RequestMetrics | None = None
        """What they are added to; None: nothing is measured."""
        self.add_up_usage: Callable[[], None] | None = None
        """Adds up what the requests that wait have used; None: usage is not counted."""
        self._put_lines = put_lines
        self._lines = RequestLines()
        self._waiting: list[FinishedRequest] = []
        self._unmeasured: deque[tuple[LineForm, Sequence[FinishedRequest]]] = deque()
        """Those that are logged and not measured yet, by the form of their lines."""
        self._is_due = False

    def add(
        self, event: str, request_id: str, record: RequestRecord, trace: Trace, template: str | None = None
    ) -> None:
        """Note that a request has ended now; its record is complete. `event` is that of its log line."""
        record.trace_id = trace.trace_id
        listed = trace.listed() if trace.is_listed and template not in PROBES else None
        ended_at, duration_s, steps = time.time(), trace.elapsed_s(), trace.durations
        if not record.stream:
            steps = []  # they are not measured, and would take as much memory as the rest of a request
        waiting = self._waiting
        waiting.append((event, request_id, record, template, ended_at, duration_s, steps, listed))
        if len(waiting) >= MOST_WAITING:
            self.write()
        elif not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_later(DELAY_S, self._write_due)

    def write(self) -> None:
        """Count, log, measure and list those that wait. Call it before anything of it is read, and at the end."""
        if self.add_up_usage is not None:
            self.add_up_usage()
        if self._waiting:
            ended, self._waiting = self._waiting, []
            self._log(ended)
        while self._unmeasured and self.metrics is not None:
            form, requests = self._unmeasured.popleft()
            _, _, records, templates, _, durations_s, steps, _ = zip(*requests, strict=True)
            if form.plan is None:
                form.plan = self.metrics.plan(records[0], templates[0])
            self.metrics.add(form.plan, records, durations_s, steps)

    def _write_due(self) -> None:
        self._is_due = False
        self.write()

    def _log(self, ended: list[FinishedRequest]) -> None:
        """Log and list requests; group those that are to be measured by the forms of their lines."""
        if self._put_lines is not None or self.metrics is not None:
            forms = [*map(self._lines.form_of, ended)]
            groups = group_by_form(ended, forms)
            lines = self._lines.encode(forms, groups)
        if self._put_lines is not None:
            self._put_lines(lines)
        else:
            for request in ended:
                _log(request)
        if self.metrics is not None:
            self._unmeasured.extend(groups.items())
            self.metrics.recent.add(lines, [request[7] for request in ended])


def _log(request: FinishedRequest) -> None:
    """Log a request in another format than JSON."""
    if not log.is_enabled_for(logging.INFO):
        return
    event, name, record, _, ended_at, duration_s, _, _ = request
    ended, duration_ms = datetime.fromtimestamp(ended_at, UTC), round(duration_s * 1e5) / 100
    fields = record.known()
    with suppress(OSError, ValueError):  # a full disk or a closed stderr must not fail anything
        log.info(event, timestamp=ended, request_id=name, **fields, duration_ms=duration_ms)
