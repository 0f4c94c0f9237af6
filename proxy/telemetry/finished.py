"""Requests that have ended, and are logged, measured and listed soon after: in batches.

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

from proxy.telemetry.recent import CallHistory, EndedRequest
from proxy.telemetry.record import RequestRecord
from proxy.telemetry.request_line import LineForm, RequestLines, is_fit
from proxy.telemetry.request_metrics import RequestMetrics
from proxy.telemetry.trace import Trace

log = structlog.get_logger()

DELAY_S = 0.05
"""How long a request waits at most, in seconds."""
MOST_WAITING = 64
"""How many wait at most: the event loop answers no other request while these are worked on."""
PROBES = frozenset({"/healthz", "/readyz"})
"""Templates of requests that say nothing of calls: they are not among the recent ones."""


FinishedRequest = tuple[
    str, str, RequestRecord, str | None, float, float, Sequence[tuple[str, float]], CallHistory | None
]  # fmt: skip
"""What is known of a request when it has ended: event, id, record, template, when that was in seconds since 1970, how
long it took, steps, history. A tuple without a class of its own is made in a tenth of the time.
"""


class FinishedRequests:
    """The requests that have ended in this process and are not logged yet."""

    def __init__(self, put_lines: Callable[[list[bytes]], None] | None = None) -> None:
        """`put_lines` takes their log lines as JSON; None: lines are of another format, and structlog makes them."""
        self.metrics: RequestMetrics | None = None
        """What they are added to; None: nothing is measured."""
        self._put_lines = put_lines
        self._lines = RequestLines()
        self._waiting: list[FinishedRequest] = []
        self._logged: deque[tuple[FinishedRequest, LineForm, bytes]] = deque()  # those that are not measured yet
        self._is_due = False

    def add(
        self, event: str, request_id: str, record: RequestRecord, trace: Trace, template: str | None = None
    ) -> None:
        """Note that a request has ended now; its record is complete. `event` is that of its log line."""
        record.trace_id = trace.trace_id
        history = None if template in PROBES else trace.history
        duration_s, steps = trace.elapsed_s(), trace.durations
        waiting = self._waiting
        waiting.append((event, request_id, record, template, time.time(), duration_s, steps, history))
        if len(waiting) >= MOST_WAITING:
            self.write()
        elif not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_later(DELAY_S, self._write_due)

    def write(self) -> None:
        """Log, measure and list those that wait. Call it before anything of it is read, and at the end."""
        if self._waiting:
            ended, self._waiting = self._waiting, []
            self._log(ended)
        logged, metrics, listed = self._logged, self.metrics, list[EndedRequest]()
        while logged:
            (_, _, record, template, ended_at, duration_s, steps, history), form, line = logged.popleft()
            if metrics is None:
                continue
            if form.plan is None:
                form.plan = metrics.plan(record, template)
            metrics.add(form.plan, record, duration_s, steps)
            if history is not None:
                listed.append((line, ended_at, duration_s, steps, history))
        if metrics is not None:
            metrics.flush()
            if listed:
                metrics.recent.add(listed)

    def _write_due(self) -> None:
        self._is_due = False
        self.write()

    def _log(self, ended: list[FinishedRequest]) -> None:
        """Log requests; those that are to be measured wait for that with their lines."""
        if self._put_lines is not None or self.metrics is not None:
            forms, lines = self._encode(ended)
            self._logged.extend(zip(ended, forms, lines, strict=True))
        if self._put_lines is not None:
            self._put_lines(lines)
        else:
            for request in ended:
                _log(request)

    def _encode(self, ended: list[FinishedRequest]) -> tuple[list[LineForm], list[bytes]]:
        """Return the lines of requests. Their values are searched for keys together: to begin a search costs most."""
        forms, lines, values = list[LineForm](), list[bytes](), list[bytes]()
        form_of, draft = self._lines.form_of, self._lines.draft
        for event, name, record, template, ended_at, duration_s, _, _ in ended:
            form = form_of(event, record, template)
            line, of_line = draft(form, event, name, record, ended_at, duration_s)
            forms.append(form)
            lines.append(line)
            values.append(of_line)
        if not is_fit(b" ".join(values)):
            for number, (event, name, record, _, ended_at, duration_s, _, _) in enumerate(ended):
                if not is_fit(values[number]):
                    lines[number] = self._lines.encode_whole(event, name, record, ended_at, duration_s)
        return forms, lines


def _log(request: FinishedRequest) -> None:
    """Log a request in another format than JSON."""
    if not log.is_enabled_for(logging.INFO):
        return
    event, name, record, _, ended_at, duration_s, _, _ = request
    ended, duration_ms = datetime.fromtimestamp(ended_at, UTC), round(duration_s * 1e5) / 100
    fields = record.known()
    with suppress(OSError, ValueError):  # a full disk or a closed stderr must not fail anything
        log.info(event, timestamp=ended, request_id=name, **fields, duration_ms=duration_ms)
