"""Sends spans in a thread, from a bounded queue. The SDK's own waits 30 s for a dead collector, and counts no losses.

Source: https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/#batch-span-processor
"""

import os
from collections import deque

import structlog
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import TraceFlags

from proxy.telemetry.export_thread import ExportThread

log = structlog.get_logger()


class SpanQueue(ExportThread, SpanProcessor):
    """Exports sampled spans in batches. What does not fit into the queue, or cannot be sent, is lost and counted."""

    def __init__(self, exporter: SpanExporter) -> None:
        self.lost_spans = 0
        self._is_flushing = False
        self._exporter = exporter
        self._spans: deque[ReadableSpan] = deque()
        self._max_spans = _variable("OTEL_BSP_MAX_QUEUE_SIZE", 2048)
        self._batch_spans = min(self._max_spans, _variable("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512))
        super().__init__("span-queue", exporter, delay_s=_variable("OTEL_BSP_SCHEDULE_DELAY", 5000) / 1000)

    def count_lost(self) -> int:
        return self.lost_spans

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Nothing is done with a span that has begun."""

    def on_end(self, span: ReadableSpan) -> None:
        """Queue a span."""
        _, _, _, flags, _, _ = span.context
        if not flags & TraceFlags.SAMPLED:
            return
        if len(self._spans) >= self._max_spans:
            self.lost_spans += 1
            return
        self._spans.append(span)
        if len(self._spans) >= self._batch_spans:
            self._has_work.set()

    def shutdown(self) -> None:
        """Send what waits, for a second at most."""
        if not self.close():
            self.lost_spans += len(self._spans)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Spans are sent by the thread only."""
        del timeout_millis
        self._is_flushing = True
        self._has_work.set()
        return not self._spans

    def send_waiting(self, *, is_due: bool) -> None:
        """Send full batches, and the rest if it is due: a request to the collector costs as much as sixty spans."""
        least = 1 if is_due or self._is_flushing else self._batch_spans
        self._is_flushing = False
        while len(self._spans) >= least:
            batch = [self._spans.popleft() for _ in range(min(len(self._spans), self._batch_spans))]
            if not self._send(batch):
                self.lost_spans += len(batch)

    def _send(self, batch: list[ReadableSpan]) -> bool:
        raised = None
        try:
            is_sent = self._exporter.export(batch) is SpanExportResult.SUCCESS
        except Exception as error:  # noqa: BLE001  whatever an exporter raises, the next batch is tried
            is_sent, raised = False, type(error).__name__
        if self.note_outcome(is_sent=is_sent):
            log.warning("traces.export_failed", error=raised)
        return is_sent


def _variable(name: str, default: int) -> int:
    """Return a positive number from the environment."""
    text = os.environ.get(name, "").strip()
    return int(text) if text.isdecimal() and int(text) else default
