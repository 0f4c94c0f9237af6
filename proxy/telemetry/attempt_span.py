"""The span of one attempt at a backend, and how long backends have worked on a call."""

import time
from collections.abc import Mapping
from functools import lru_cache, partial
from types import TracebackType
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

from msgspec import Struct
from opentelemetry.trace import SpanKind, StatusCode

from proxy.telemetry.http_methods import method_attributes, request_name
from proxy.telemetry.recent import MAX_NOTES
from proxy.telemetry.record import LONGEST_CHARS, RequestRecord
from proxy.telemetry.recorded_span import RecordedSpan
from proxy.wire.errors import HeadgateError
from proxy.wire.loggable import printable

if TYPE_CHECKING:
    from proxy.telemetry.trace import Trace

PATHS = {"create": "/responses", "compact": "/responses/compact", "input_tokens": "/responses/input_tokens"}
PORTS = {"http": 80, "https": 443}


class ModelCall(Struct, eq=False):
    """One attempt, as a context manager for a request that has only one: an HTTP CLIENT span under the model's call.

    What runs in this process has no span of its own. Source: https://opentelemetry.io/docs/specs/semconv/http/http-spans/
    """

    _trace: "Trace"
    _record: RequestRecord
    _target: str | None
    started: float
    request: tuple[str, str, int] | None = None
    """The method and the URL of the request that is its span, and how many were sent before; None without one."""
    span: RecordedSpan | None = None
    status: int | None = None
    """The status of the answer; None without one."""
    error: str | None = None
    """The code of the error with which it has failed."""

    def begin(self) -> None:
        """Start the span: now the backend is sent the request."""
        if self.request is None:
            return
        self.span = self._trace.start_child(request_name(self.request[0]), SpanKind.CLIENT)

    def __enter__(self) -> Self:
        self.begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:  # fmt: skip
        self.end(error)

    def end(self, error: BaseException | None) -> None:
        """End the attempt, with the error that it came to."""
        ended, trace = time.perf_counter(), self._trace
        if trace.waiting is not None:
            trace.end_wait()
        inference_s = ended - (trace.inference_began or self.started)
        self._record.inference_s = int(inference_s * 1e4 + 0.5) / 1e4  # `round` takes three times as long
        if trace.is_listed:
            failed = self.error or (None if error is None else error_type(error))
            began_s, lasted_s = self.started - trace.started, ended - self.started
            made = self._target or "", began_s, lasted_s, self.status, failed
            if trace.attempts is None:
                trace.attempts = [made]
            elif len(trace.attempts) < MAX_NOTES:
                trace.attempts.append(made)
        if self.span is not None and self.request is not None:
            if isinstance(reason := getattr(error, "reason", None), str):
                self.span.set_attribute("headgate.reason", reason)
            if failed := self.error or error_type(error):
                self.span.set_attribute("error.type", printable(failed, LONGEST_CHARS))
                self.span.set_status(StatusCode.ERROR)
            # With neither the error nor the record, which may be large.
            self.span.end(describe=partial(_describe, request=self.request, target=self._target, status=self.status))


def _describe(span: RecordedSpan, request: tuple[str, str, int], target: str | None, status: int | None) -> None:
    """Set the attributes of the span of an attempt."""
    method, url, resends = request
    span.set_attribute("headgate.target", target or "")
    span.set_attributes(method_attributes(method))
    if server := server_attributes(url):
        span.set_attributes(server)
        span.set_attribute("url.full", url)
    if resends:
        span.set_attribute("http.request.resend_count", resends)
    if status is not None:
        span.set_attribute("http.response.status_code", status)


def error_type(error: BaseException | None) -> str | None:
    """Return the code of an error; None without one. The name of a class would say nothing to an operator."""
    if isinstance(error, HeadgateError):
        return error.code
    if error is None or isinstance(error, GeneratorExit):
        return None
    return "internal_error" if isinstance(error, Exception) else "cancelled"


@lru_cache(maxsize=256)
def server_attributes(url: str) -> Mapping[str, str | int]:
    """Return the attributes of the server that a URL names; none for one that cannot be read."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or PORTS.get(parts.scheme, 0)
    except ValueError:
        return {}
    return {"server.address": host[:LONGEST_CHARS], "server.port": port}
