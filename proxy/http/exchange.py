"""The state of one request that all handlers need: id, trace, record, and the headers of its answer."""

import msgspec
import orjson
from aiohttp import web

from proxy.context import Caller
from proxy.http.request import Request
from proxy.http.request_head import RequestHead
from proxy.http.send import BODY_HEADERS
from proxy.identity.directory import Directory
from proxy.shares import Shares
from proxy.telemetry.finished import FinishedRequests
from proxy.telemetry.record import RequestRecord
from proxy.telemetry.trace import Trace
from proxy.usage.book import UsageBook
from proxy.wire.errors import HeadgateError, NotFound, Unauthenticated


class TooManyCalls(HeadgateError):
    """The team has its full share of running calls. Source: https://platform.openai.com/docs/guides/rate-limits."""

    type = "requests"


class Exchange(msgspec.Struct, eq=False):
    """A request, its head, id, trace and record, and the headers that steps add to its answer.

    `event` is the event of its log line, `template` the path template that it matches, `values` the number of JSON
    values in its body. `calls` are the teams' shares of running calls; None: there is one team only.
    """

    request: Request
    head: RequestHead
    request_id: str
    trace: Trace
    finished: FinishedRequests
    calls: Shares | None = None
    usage: UsageBook | None = None
    template: str | None = None
    _is_counted: bool = False
    event: str = "request.finished"
    record: RequestRecord = msgspec.field(default_factory=RequestRecord)
    answer_headers: dict[str, str] = msgspec.field(default_factory=dict)
    values: int = 0

    def __repr__(self) -> str:  # the headers have keys
        return f"Exchange({self.request_id!r})"

    def identify(self, directory: Directory) -> Caller:
        """Return the authenticated caller, and record it. Raises Unauthenticated, Unavailable, TooManyCalls."""
        caller = directory.identify(self.request.headers, self.request.protocol, self.head)
        record = self.record
        record.caller, record.team = caller.name, caller.team
        record.key_fingerprint = caller.fingerprint or None
        if caller.key_id or caller.issuer:
            record.key_id, record.issuer = caller.key_id or None, caller.issuer or None
            record.tags = caller.tags or None
        if self.calls is not None:
            self.count_call()
        return caller

    def count_call(self) -> None:
        """Count this as a call of its team until it ends. Raises TooManyCalls."""
        if self.calls is not None:
            self._is_counted = self.calls.take(1, self.record.team or "")
            if not self._is_counted:
                message = "Your team has as many calls in progress as it may have; try again when one has ended."
                raise TooManyCalls(message, status=429, code="too_many_calls", headers={"Retry-After": "1"})
            self.request.protocol.team = self.record.team or ""

    def identify_as(self, caller: Caller, directory: Directory) -> None:
        """Raises Unauthenticated if the key of the request does not belong to this caller any more."""
        if directory.identify(self.request.headers) != caller:
            raise Unauthenticated("The key of this connection belongs to another caller now; connect again.")

    def common_headers(self) -> dict[str, str]:
        """Return the headers that every answer carries: id, timing, and those that steps have added."""
        return self.add_common_headers({})

    def add_common_headers(self, headers: dict[str, str]) -> dict[str, str]:
        """Add the headers that every answer carries to those of one answer, and return them."""
        headers["Server"] = "headgate"
        headers["x-request-id"] = self.request_id
        headers.update(self.answer_headers)
        headers["Server-Timing"] = self.trace.server_timing()
        return headers

    def refusal_headers(self, error: HeadgateError) -> dict[str, str]:
        """Return the headers of an error.

        With NotFound they do not show how far the request came: that would tell a foreign id from an unknown one.
        """
        self.trace.fail_step(error.code)
        headers = self.common_headers()
        if isinstance(error, NotFound):
            headers.pop("Cache-Status", None)
            headers["Server-Timing"] = self.trace.server_timing(has_steps=False)
        return headers

    def json_response(self, body: object, *, status: int = 200) -> web.Response:
        """Return an answer of the gateway's own."""
        return web.Response(status=status, headers={**BODY_HEADERS, **self.common_headers()}, body=orjson.dumps(body))

    def finish(self) -> None:
        """Count the usage, end the span, and queue the log line and the metrics."""
        if self._is_counted and self.calls is not None:
            self._is_counted = False
            self.calls.give_back(1, self.record.team or "")
        if self.usage is not None:
            self.usage.count(self.record)
        self.finished.add(self.event, self.request_id, self.record, self.trace, self.template)
        if self.trace.is_recording:
            self.trace.end(self.record)
