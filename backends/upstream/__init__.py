"""Sends calls to a server that speaks the Responses protocol, and forwards its answers byte for byte.

Answers: the upstream's status, body and frames, and the headers that clients of the protocol read.
Fails: 501 `not_supported` (it has no such endpoint), 502 `upstream_unreachable`, `upstream_reset`,
    `upstream_invalid_response`, `upstream_too_large`, `upstream_auth` (it refused the gateway's own key, which is not
    the caller's fault), and 504
    `upstream_connect_timeout`, `upstream_timeout` (no first event), `upstream_stalled` (no other event) and
    `upstream_total_timeout`.
Source: https://platform.openai.com/docs/api-reference/responses
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from ssl import SSLContext
from typing import ClassVar
from urllib.parse import urlsplit

import orjson
from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from backends import Backend, unsupported
from backends.upstream.answer import (
    AnswerLimits,
    Stream,
    UpstreamAnswer,
    names_missing_endpoint,
    read_body,
    read_rest,
    reply_of,
)
from backends.upstream.errors import invalid_answer
from backends.upstream.headers import HeaderFilter
from backends.upstream.http1 import BodySource, Client, Origin, Timeouts, create_tls_context, encode_head
from backends.upstream.relay import relay_reply_of
from backends.upstream.scrub import Scrubber
from backends.upstream.websocket import FixedAnswer, SocketDialer, TurnAnswer, UpstreamLink
from proxy.config.secrets import Secret
from proxy.context import Context
from proxy.lane import LANE_CALL, LaneCall
from proxy.wire.call import MODEL_OPERATIONS, Call, Operation
from proxy.wire.errors import BackendError
from proxy.wire.event import Reply
from proxy.wire.headers import FORWARDED, HeaderNames, scope_idempotency_key
from proxy.wire.large_json import dumps
from proxy.wire.relay import RelayReply, RelayRequest
from proxy.wire.resource import ResourceRequest
from proxy.wire.warm_up import warm_up_response

MAX_LIST_BYTES = 4_194_304  # the largest list of models
PATHS: Mapping[Operation, str] = {
    "create": "responses", "compact": "responses/compact", "input_tokens": "responses/input_tokens",
}  # fmt: skip
ENDPOINTS = ("/responses", "/chat/completions", "/models")


class Upstream(Backend):
    operations: ClassVar[frozenset[Operation]] = MODEL_OPERATIONS
    needs_model: ClassVar[bool] = False
    can_relay: ClassVar[bool] = True

    base_url: str = Field(pattern=r"^https?://[^?#@]+$")
    """The address of the API, version included: https://api.openai.com/v1"""
    api_key: Secret | None = None
    """The gateway's own key for it. Default: none is sent. A caller's key is never sent."""
    connect_timeout_s: PositiveFloat = 5
    """How long connecting may take, TLS included, in seconds."""
    first_event_timeout_s: PositiveFloat = 600
    """How long the first event of its answer, or the answer itself if it is no stream, may take, in seconds."""
    between_events_timeout_s: PositiveFloat = 300
    """How long another event of a stream, or another part of an answer that is none, may take, in seconds."""
    total_timeout_s: PositiveFloat | None = None
    """How long a whole answer may take, in seconds. Default: no limit."""
    slow_start_after_s: PositiveFloat | None = None
    """How late answers may begin, in seconds, before that counts against it in a route with several backends. Default:
    any time is fine."""
    idle_timeout_s: PositiveFloat = 30
    """How long a connection without a call is kept open for the next one, in seconds."""
    ca_file: Path | None = None
    """A file of the authorities (PEM) that sign its certificate. Default: those of the system."""
    max_answer_bytes: PositiveInt = 268_435_456
    """The largest answer that is not a stream, in bytes."""
    websocket: bool = False
    """Whether it speaks WebSocket mode: callers' connections then have one to it each. One that refuses gets POSTs."""
    compaction: bool | None = None
    """Whether it compacts conversations (/responses/compact, `compaction_trigger`); default: as keeps_state says."""
    forward_headers: tuple[str, ...] = FORWARDED
    """The callers' headers that it receives, such as "openai-project"; a name may end in `*`. Replaces the default."""
    forward_answer_headers: tuple[str, ...] = ()
    """More headers of its answers for callers, as names or as beginnings that end in *, such as "x-ms-*".

    Limits, retries, and what SDKs and coding agents read (openai-*, x-ratelimit-*, x-codex-* ...) always are."""

    @field_validator("forward_headers")
    @classmethod
    def _check_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(sorted(HeaderNames(names).names))

    @field_validator("forward_answer_headers")
    @classmethod
    def _may_be_forwarded(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        HeaderFilter(names)
        return names

    @field_validator("base_url")
    @classmethod
    def _check_base_url(cls, base_url: str) -> str:
        """Raises ValueError for an address that no request can be sent to, and for that of one endpoint."""
        for path in ENDPOINTS:
            if base_url.rstrip("/").endswith(path):
                raise ValueError(f"it ends in {path}, which every call adds to it; leave that out")
        encode_head("GET", urlsplit(base_url).path, {"Host": Origin.of(base_url).authority})
        return base_url

    @property
    def slow_start_s(self) -> float | None:
        return self.slow_start_after_s

    @property
    def compacts(self) -> bool:
        return self.keeps_state if self.compaction is None else self.compaction

    def shares_objects(self, other: Backend) -> bool:
        if not isinstance(other, Upstream):
            return False
        return (self._origin, self._path, self.api_key) == (other._origin, other._path, other.api_key)  # noqa: SLF001

    @property
    def speaks_websocket(self) -> bool:
        return self.websocket

    @cached_property
    def header_names(self) -> HeaderNames:
        return HeaderNames(self.forward_headers)

    @cached_property
    def _origin(self) -> Origin:
        return Origin.of(self.base_url)

    @cached_property
    def _path(self) -> str:
        return urlsplit(self.base_url).path.rstrip("/")

    @cached_property
    def _probe_headers(self) -> Mapping[str, str]:
        return {
            "Host": self._origin.authority, "user-agent": "headgate", "Accept": "*/*", "Accept-Encoding": "identity",
        }  # fmt: skip

    @cached_property
    def _default_headers(self) -> Mapping[str, str]:
        return {**self._probe_headers, "Content-Type": "application/json"}

    @cached_property
    def _own_headers(self) -> Mapping[str, str]:
        headers = {"Host": self._origin.authority, "Accept-Encoding": "identity"}
        if self.api_key is not None:
            headers["Authorization"] = f"Bearer {self.api_key.get_secret_value()}"
        return headers

    @cached_property
    def _limits(self) -> AnswerLimits:
        key = None if self.api_key is None else self.api_key.get_secret_value()
        return AnswerLimits(self.max_answer_bytes, Scrubber(key), HeaderFilter(self.forward_answer_headers))

    @cached_property
    def _client(self) -> Client:
        timeouts = Timeouts(
            self.connect_timeout_s, self.first_event_timeout_s, self.between_events_timeout_s, self.idle_timeout_s,
            self.total_timeout_s,
        )  # fmt: skip
        return Client(self._origin, timeouts, self._tls)

    @cached_property
    def _tls(self) -> SSLContext | None:
        return create_tls_context(self.ca_file) if self._origin.is_tls else None

    @cached_property
    def _dialer(self) -> SocketDialer:
        address = f"{'https' if self._origin.is_tls else 'http'}://{self._origin.authority}{self._path}/responses"
        return SocketDialer(self.name, address, self.connect_timeout_s, self._tls)

    def check(self) -> None:
        if self.ca_file is not None:
            create_tls_context(self.ca_file)

    async def start(self) -> None:
        _ = self._client

    async def close(self) -> None:
        await self._dialer.close()
        await self._client.close()

    @asynccontextmanager
    async def respond(self, call: Call, context: Context) -> AsyncIterator[Reply]:
        answer = await self._ask(call, context)
        try:
            reply = await reply_of(answer, context, self._limits, has_id=call.operation == "create")
            if call.operation != "create" and names_missing_endpoint(reply):
                raise unsupported(f"POST /v1/{PATHS[call.operation]}")
            yield reply
            if isinstance(reply.batches, Stream) and reply.batches.is_complete:
                await read_rest(answer)
        finally:
            answer.close()

    @asynccontextmanager
    async def forward(self, request: ResourceRequest, context: Context) -> AsyncIterator[Reply]:
        headers = self._headers(request.headers, context)
        body = await _body_of(request, context)
        answer = await self._request(request.method, request.path, body, headers, request.query)
        try:
            reply = await reply_of(answer, context, self._limits, has_id=False)
            if reply.status == 405:
                raise unsupported(f"{request.method} requests for {request.kind}")
            yield reply
            if isinstance(reply.batches, Stream) and reply.batches.is_complete:
                await read_rest(answer)
        finally:
            answer.close()

    @asynccontextmanager
    async def relay(self, request: RelayRequest, context: Context) -> AsyncIterator[RelayReply]:
        headers = {**self._headers(request.headers, context), **request.types}
        body = request.body if request.stream is None else BodySource(request.stream, request.size)
        answer = await self._request(request.method, request.path, body, headers, request.query)
        try:
            yield await relay_reply_of(answer, self._limits)
        finally:
            answer.close()

    async def models(self) -> Sequence[str]:
        answer = await self._request("GET", "models", b"", {})
        try:
            body = await read_body(answer, replace(self._limits, max_bytes=MAX_LIST_BYTES))
            return [str(model["id"]) for model in orjson.loads(body)["data"]]
        except (ValueError, TypeError, KeyError) as error:
            raise invalid_answer("a list of models that cannot be parsed") from error
        finally:
            answer.close()

    async def ready(self) -> bool:
        """Whether it answers at all. The probe carries no key: anyone may request `/readyz`."""
        try:
            answer = await self._client.request(encode_head("GET", f"{self._path}/models", self._probe_headers), b"")
        except BackendError:
            return False
        answer.close()
        return True

    async def _ask(self, call: Call, context: Context) -> UpstreamAnswer:
        """Send a call and return the answer: by WebSocket if caller and upstream speak it. Raises BackendError."""
        place = context.get(LANE_CALL)
        if place is not None and self.websocket and call.operation == "create":
            answer = await self._ask_by_websocket(call, place, context)
            if answer is not None:
                return answer
            if not place.generates:
                return FixedAnswer(200, {}, warm_up_response(call))
        headers = self._headers(call.headers, context)
        return await self._request("POST", PATHS[call.operation], await context.encode(call), headers, call.query)

    async def _ask_by_websocket(self, call: Call, place: LaneCall, context: Context) -> UpstreamAnswer | None:
        """Return the answer to a call, or the reply that has begun already; None if the upstream refuses upgrades."""
        if isinstance(place.reply, TurnAnswer):
            return place.reply
        link = place.connection.part(
            self.name,
            lambda: UpstreamLink(
                place.connection, self._dialer, self._limits.scrubber.data, first_s=self.first_event_timeout_s,
                between_s=self.between_events_timeout_s,
            ),
        )  # fmt: skip
        headers = {**self._probe_headers, **self._headers(place.connection.headers, context), **self._own_headers}
        return await link.ask(call, place, headers, context)

    def _headers(self, received: Mapping[str, str], context: Context) -> dict[str, str]:
        """Return the headers of a request: the caller's that it may see, and those of the trace."""
        forwarded = scope_idempotency_key(self.header_names.select(received), context.caller.team)
        return {**forwarded, **context.trace.propagation_headers()}

    async def _request(
        self, method: str, path: str, body: bytes | BodySource, headers: Mapping[str, str], query: str = ""
    ) -> UpstreamAnswer:
        """Send a request and return the answer once its head has arrived.

        A body is JSON unless a header says otherwise. Raises BackendError, and what a streamed body raises.
        """
        query = query.partition("#")[0]  # a fragment is not part of a request
        target = f"{self._path}/{path}?{query}" if query else f"{self._path}/{path}"
        if isinstance(body, BodySource):
            framing = body.framing
        else:
            framing = {"Content-Length": str(len(body))} if body or method == "POST" else {}
        head = encode_head(method, target, {**self._default_headers, **headers, **self._own_headers, **framing})
        return await self._client.request(head, body)


async def _body_of(request: ResourceRequest, context: Context) -> bytes:
    """Return the body of a request for something that exists."""
    if not request.body and (request.method, request.rest) != ("POST", ()):
        return b""
    size = context.memory.needed_bytes  # of the body as it was received, and more
    return await context.run(size, dumps, request.body, size)
