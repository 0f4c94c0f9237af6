"""Sends calls to a server that speaks the Responses protocol, and forwards its answers byte for byte.

Answers: the upstream's status, body and frames, and the headers that clients of the protocol read.
Fails: 501 `not_supported` (it has no such endpoint), 502 `upstream_unreachable`, `upstream_reset`,
    `upstream_invalid_response`, `upstream_too_large`, `upstream_auth` (it refused the gateway's own key, which is not
    the caller's fault), and 504
    `upstream_connect_timeout`, `upstream_timeout` (no first event), `upstream_stalled` (no other event) and
    `upstream_total_timeout`.
Source: https://platform.openai.com/docs/api-reference/responses
"""

from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import ClassVar

import orjson

from backends import Backend, unsupported
from backends.upstream.answer import read_body, read_reply, reply_of
from backends.upstream.body import UpstreamAnswer
from backends.upstream.dialects.repairs import mended, terminals_of
from backends.upstream.errors import invalid_answer
from backends.upstream.http1 import BodySource, encode_head
from backends.upstream.opening import Opening
from backends.upstream.refusals import names_missing_endpoint
from backends.upstream.relay import relay_reply_of
from backends.upstream.retry import send_with_retry
from backends.upstream.server import UpstreamServer
from backends.upstream.websocket import LAST, FixedAnswer, TurnAnswer, UpstreamLink
from backends.upstream.wire import PATHS, Wire
from proxy.context import Context
from proxy.lane import LANE_CALL, LaneCall
from proxy.wire.call import MODEL_OPERATIONS, Call, Operation
from proxy.wire.errors import BackendError
from proxy.wire.event import Reply, response_reply
from proxy.wire.ignored import ignored_header
from proxy.wire.large_json import dumps
from proxy.wire.relay import RelayReply, RelayRequest
from proxy.wire.resource import ResourceRequest
from proxy.wire.warm_up import warm_up_response

MAX_LIST_BYTES = 4_194_304  # the largest list of models
NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class Upstream(UpstreamServer):
    operations: ClassVar[frozenset[Operation]] = MODEL_OPERATIONS
    needs_model: ClassVar[bool] = False
    can_relay: ClassVar[bool] = True

    def shares_objects(self, other: Backend) -> bool:
        if not isinstance(other, Upstream):
            return False
        return self._account == other._account  # noqa: SLF001  the same class

    @property
    def speaks_websocket(self) -> bool:
        return self.websocket

    def respond(self, call: Call, context: Context) -> AbstractAsyncContextManager[Reply]:
        wire = self.wire
        if wire.is_plain:  # almost always
            return _CallOpening(wire, call, context, NO_HEADERS)
        ignored: Sequence[str] = ()
        if self.needs_fitting:
            call, ignored = self.fitted(call, context)
        if self.websocket and call.operation == "create" and (lane_call := context.get(LANE_CALL)) is not None:
            return _LaneOpening(self, call, lane_call, context, ignored_header(ignored))
        return _CallOpening(wire, call, context, ignored_header(ignored))

    def forward(self, request: ResourceRequest, context: Context) -> AbstractAsyncContextManager[Reply]:
        return _ResourceOpening(self, request, context)

    @asynccontextmanager
    async def relay(self, request: RelayRequest, context: Context) -> AsyncIterator[RelayReply]:
        headers = {**self.wire.headers(request.headers, context), **request.types}
        body = request.body if request.stream is None else BodySource(request.stream, request.size)
        send = partial(self.wire.request, request.method, request.path, body, headers, request.query)
        answer = await send_with_retry(send, request.method, self.name, context)
        try:
            yield await relay_reply_of(answer, self.wire.limits)
        finally:
            answer.close()

    async def models(self) -> Sequence[str]:
        answer = await send_with_retry(partial(self.wire.request, "GET", "models", b"", {}), "GET", self.name)
        try:
            body = await read_body(answer, replace(self.wire.limits, max_bytes=MAX_LIST_BYTES))
            return [str(model["id"]) for model in orjson.loads(body)["data"]]
        except (ValueError, TypeError, KeyError) as error:
            raise invalid_answer("a list of models that cannot be parsed") from error
        finally:
            answer.close()

    async def reach(self) -> str | None:
        """Return for the operator why calls would fail; None if they would be answered."""
        try:
            answer = await self.wire.request("GET", "models", b"", {})
        except BackendError as error:
            return error.reason or error.message
        answer.close()
        if answer.status in (401, 403):
            return f"its key was refused ({answer.status})"
        return f"it answers with {answer.status}" if answer.status >= 500 else None

    async def ready(self) -> bool:
        """Return whether it answers at all. The probe has no key, as anyone may request `/readyz`."""
        try:
            answer = await self._client.request(encode_head("GET", f"{self._path}/models", self._probe_headers), b"")
        except BackendError:
            return False
        answer.close()
        return True

    async def send_in_lane(self, call: Call, lane_call: LaneCall, context: Context) -> UpstreamAnswer | TurnAnswer:
        """Send a call in WebSocket mode and return the answer: over WebSocket if the upstream accepts that.

        Raises BackendError.
        """
        answer = await self._send_by_websocket(call, lane_call, context)
        if answer is not None:
            return answer
        if not lane_call.generates:
            return FixedAnswer(200, {}, warm_up_response(call))
        await context.encode(call)
        return await self.wire.post(call, call.encoded, context)

    async def send_resource_request(self, request: ResourceRequest, context: Context) -> UpstreamAnswer:
        """Send a request for a resource and return the answer. Raises BackendError."""
        headers = self.wire.headers(request.headers, context)
        body = await _body_of(request, context)
        send = partial(self.wire.request, request.method, request.path, body, headers, request.query)
        return await send_with_retry(send, request.method, self.name, context)

    async def _send_by_websocket(
        self, call: Call, lane_call: LaneCall, context: Context
    ) -> TurnAnswer | FixedAnswer | None:
        """Return the answer to a call, or the reply that was begun before it; None if the upstream refuses upgrades."""
        begun, lane_call.reply = lane_call.reply, None  # another attempt gets a response of its own
        if isinstance(begun, TurnAnswer):
            return begun
        if lane_call.brief is not None and self.needs_fitting:
            lane_call = replace(lane_call, brief=self.fitted(lane_call.brief, context)[0])
        link = lane_call.connection.part(
            self.name,
            lambda: UpstreamLink(
                lane_call.connection, self._dialer, self._credentials, ends=LAST | terminals_of(self.repairs),
                first_s=self.first_event_timeout_s, between_s=self.between_events_timeout_s,
            ),
        )  # fmt: skip

        def headers() -> Mapping[str, str]:
            return {**self._probe_headers, **self.wire.headers(lane_call.connection.headers, context)}

        answer = await link.ask(call, lane_call, headers, context)
        if isinstance(answer, TurnAnswer) and self.total_timeout_s is not None:
            answer.end_within(self.total_timeout_s)
        return answer


class _CallOpening(Opening[UpstreamAnswer]):
    """Opens the reply to a call. `headers` are added to it."""

    __slots__ = ("_call", "_context", "_headers", "_wire")

    def __init__(self, wire: Wire, call: Call, context: Context, headers: Mapping[str, str]) -> None:
        self._wire = wire
        self._call = call
        self._context = context
        self._headers = headers

    def send(self) -> Awaitable[UpstreamAnswer]:
        call = self._call
        return self._wire.post(call, call.encoded, self._context) if call.is_encoded else self._encode_and_send()

    async def _encode_and_send(self) -> UpstreamAnswer:
        return await self._wire.post(self._call, await self._context.encode(self._call), self._context)

    def read(self, answer: UpstreamAnswer) -> Reply | Awaitable[Reply]:
        if self._headers or self._call.operation != "create":
            return _read_call(answer, self._call, self._wire, self._context, self._headers)
        return reply_of(answer, self._context, self._wire.limits)


class _LaneOpening(Opening[UpstreamAnswer | TurnAnswer]):
    """Opens the reply to a call in WebSocket mode. `headers` are added to it."""

    __slots__ = ("_call", "_context", "_headers", "_lane_call", "_upstream")

    def __init__(
        self, upstream: Upstream, call: Call, lane_call: LaneCall, context: Context, headers: Mapping[str, str]
    ) -> None:  # fmt: skip
        self._upstream = upstream
        self._call = call
        self._lane_call = lane_call
        self._context = context
        self._headers = headers

    def send(self) -> Awaitable[UpstreamAnswer | TurnAnswer]:
        return self._upstream.send_in_lane(self._call, self._lane_call, self._context)

    async def read(self, answer: UpstreamAnswer | TurnAnswer) -> Reply:
        wire, repairs = self._upstream.wire, self._upstream.repairs
        if not isinstance(answer, TurnAnswer):
            return await _read_call(answer, self._call, wire, self._context, self._headers)
        return Reply(200, self._headers, batches=mended(answer, repairs, self._context) if repairs else answer)


async def _read_call(
    answer: UpstreamAnswer, call: Call, wire: Wire, context: Context, headers: Mapping[str, str]
) -> Reply:  # fmt: skip
    """Return the reply to a call, with additional headers. Raises BackendError."""
    reply = await read_reply(answer, context, wire.limits, has_id=call.operation == "create")
    if headers:
        reply = reply.with_fields(headers={**reply.headers, **headers})
    if call.operation != "create" and names_missing_endpoint(reply):
        raise unsupported(f"POST /v1/{PATHS[call.operation]}")
    return reply


class _ResourceOpening(Opening[UpstreamAnswer]):
    """Opens the reply to a request for a resource."""

    __slots__ = ("_context", "_request", "_upstream")

    def __init__(self, upstream: Upstream, request: ResourceRequest, context: Context) -> None:
        self._upstream = upstream
        self._request = request
        self._context = context

    def send(self) -> Awaitable[UpstreamAnswer]:
        return self._upstream.send_resource_request(self._request, self._context)

    async def read(self, answer: UpstreamAnswer) -> Reply:
        request = self._request
        if request.method == "DELETE" and answer.status == 204:
            return response_reply(request.deleted, {})
        # A resumed stream begins in the middle, so it is not repaired.
        reply = await read_reply(answer, self._context, replace(self._upstream.wire.limits, repairs=()), has_id=False)
        if reply.status == 405:
            raise unsupported(f"{request.method} requests for {request.kind}")
        return reply


async def _body_of(request: ResourceRequest, context: Context) -> bytes:
    """Return the encoded body of a request for a resource."""
    if not request.body and (request.method, request.rest) != ("POST", ()):
        return b""
    size = context.memory.needed_bytes  # of the body as it was received, and more
    return await context.run(size, dumps, request.body, size)
