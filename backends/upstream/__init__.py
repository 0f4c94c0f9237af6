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
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from ssl import SSLContext
from typing import ClassVar
from urllib.parse import urlencode, urlsplit

import orjson

from backends import Backend, unsupported
from backends.upstream.again import ask_again
from backends.upstream.answer import (
    AnswerLimits,
    UpstreamAnswer,
    read_body,
    reply_of,
)
from backends.upstream.credentials import Credentials
from backends.upstream.dialects.repairs import mended, terminals_of
from backends.upstream.errors import invalid_answer
from backends.upstream.headers import HeaderFilter
from backends.upstream.http1 import BodySource, Client, Origin, Proxy, Timeouts, create_tls_context, encode_head
from backends.upstream.opening import Opening
from backends.upstream.refusals import names_missing_endpoint
from backends.upstream.relay import relay_reply_of
from backends.upstream.settings import UpstreamSettings
from backends.upstream.websocket import LAST, FixedAnswer, SocketDialer, TurnAnswer, UpstreamLink
from proxy.context import Context
from proxy.lane import LANE_CALL, LaneCall
from proxy.wire.call import MODEL_OPERATIONS, Call, Operation
from proxy.wire.errors import BackendError
from proxy.wire.event import Reply, response_reply
from proxy.wire.headers import HeaderNames, scope_idempotency_key
from proxy.wire.ignored import ignored_header
from proxy.wire.large_json import dumps
from proxy.wire.relay import RelayReply, RelayRequest
from proxy.wire.resource import ResourceRequest
from proxy.wire.warm_up import warm_up_response

MAX_LIST_BYTES = 4_194_304  # the largest list of models
PATHS: Mapping[Operation, str] = {
    "create": "responses", "compact": "responses/compact", "input_tokens": "responses/input_tokens",
}  # fmt: skip


class Upstream(UpstreamSettings):
    operations: ClassVar[frozenset[Operation]] = MODEL_OPERATIONS
    needs_model: ClassVar[bool] = False
    can_relay: ClassVar[bool] = True

    def shares_objects(self, other: Backend) -> bool:
        if not isinstance(other, Upstream):
            return False
        return self._account == other._account  # noqa: SLF001  the same class

    @property
    def _account(self) -> tuple[object, ...]:
        return (self._origin, self._path, self.api_key, self.token_command, self.token_file, self.headers, self.query)

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
        return urlsplit(self.base_url).path.rstrip("/") or self.path.rstrip("/")

    @cached_property
    def _query(self) -> str:
        return urlencode(self.query)

    @cached_property
    def _probe_headers(self) -> Mapping[str, str]:
        return {
            "Host": self._origin.authority, "user-agent": "headgate", "Accept": "*/*", "Accept-Encoding": "identity",
        }  # fmt: skip

    @cached_property
    def _default_headers(self) -> Mapping[str, str]:
        return {**self._probe_headers, "Content-Type": "application/json"}

    @cached_property
    def _credentials(self) -> Credentials:
        return Credentials(self, {"Host": self._origin.authority, "Accept-Encoding": "identity"})

    @cached_property
    def _limits(self) -> AnswerLimits:
        more = HeaderFilter(self.forward_answer_headers)
        return AnswerLimits(self.max_answer_bytes, self._credentials.scrubber, more, self.repairs)

    @cached_property
    def _client(self) -> Client:
        timeouts = Timeouts(
            self.connect_timeout_s, self.first_event_timeout_s, self.between_events_timeout_s, self.idle_timeout_s,
            self.total_timeout_s,
        )  # fmt: skip
        return Client(self._origin, timeouts, self._tls, self._proxy)

    @cached_property
    def _proxy(self) -> Proxy | None:
        auth = None if self.proxy_auth is None else self.proxy_auth.get_secret_value()
        return None if self.proxy is None else Proxy.of(self.proxy, auth)

    @cached_property
    def _tls(self) -> SSLContext | None:
        return create_tls_context(*self._tls_files) if self._origin.is_tls else None

    @property
    def _tls_files(self) -> tuple[Path | None, Path | None, Path | None]:
        return self.ca_file, self.client_cert_file, self.client_key_file

    @cached_property
    def _dialer(self) -> SocketDialer:
        path = f"{self._path}/responses"
        return SocketDialer(self.name, self._client.dialer, path, self.connect_timeout_s, query=self._query)

    def check(self) -> None:
        if self.ca_file is not None or self.client_cert_file is not None:
            create_tls_context(*self._tls_files)

    async def start(self) -> None:
        _ = self._client

    async def close(self) -> None:
        await self._dialer.close()
        await self._client.close()

    def respond(self, call: Call, context: Context) -> AbstractAsyncContextManager[Reply]:
        headers: Mapping[str, str] = {}
        if self.needs_fitting:
            call, ignored = self.fitted(call, context)
            headers = ignored_header(ignored)

        async def read(answer: UpstreamAnswer | TurnAnswer) -> Reply:
            if isinstance(answer, TurnAnswer):
                return Reply(200, headers, batches=mended(answer, self.repairs, context) if self.repairs else answer)
            reply = await reply_of(answer, context, self._limits, has_id=call.operation == "create")
            if headers:
                reply = replace(reply, headers={**reply.headers, **headers})
            if call.operation != "create" and names_missing_endpoint(reply):
                raise unsupported(f"POST /v1/{PATHS[call.operation]}")
            return reply

        return Opening(partial(self._ask, call, context), read)

    def forward(self, request: ResourceRequest, context: Context) -> AbstractAsyncContextManager[Reply]:
        async def ask() -> UpstreamAnswer:
            headers = self._headers(request.headers, context)
            body = await _body_of(request, context)
            send = partial(self._request, request.method, request.path, body, headers, request.query)
            return await ask_again(send, request.method, self.name, context)

        async def read(answer: UpstreamAnswer) -> Reply:
            if request.method == "DELETE" and answer.status == 204:
                return response_reply(request.deleted, {})
            # A stream that is resumed begins in the middle: it is not mended.
            reply = await reply_of(answer, context, replace(self._limits, repairs=()), has_id=False)
            if reply.status == 405:
                raise unsupported(f"{request.method} requests for {request.kind}")
            return reply

        return Opening(ask, read)

    @asynccontextmanager
    async def relay(self, request: RelayRequest, context: Context) -> AsyncIterator[RelayReply]:
        headers = {**self._headers(request.headers, context), **request.types}
        body = request.body if request.stream is None else BodySource(request.stream, request.size)
        send = partial(self._request, request.method, request.path, body, headers, request.query)
        answer = await ask_again(send, request.method, self.name, context)
        try:
            yield await relay_reply_of(answer, self._limits)
        finally:
            answer.close()

    async def models(self) -> Sequence[str]:
        answer = await ask_again(partial(self._request, "GET", "models", b"", {}), "GET", self.name)
        try:
            body = await read_body(answer, replace(self._limits, max_bytes=MAX_LIST_BYTES))
            return [str(model["id"]) for model in orjson.loads(body)["data"]]
        except (ValueError, TypeError, KeyError) as error:
            raise invalid_answer("a list of models that cannot be parsed") from error
        finally:
            answer.close()

    async def reach(self) -> str | None:
        """Return why calls would not be answered, in words for the operator; None if they are."""
        try:
            answer = await self._request("GET", "models", b"", {})
        except BackendError as error:
            return error.reason or error.message
        answer.close()
        if answer.status in (401, 403):
            return f"its key was refused ({answer.status})"
        return f"it answers with {answer.status}" if answer.status >= 500 else None

    async def ready(self) -> bool:
        """Whether it answers at all. The probe carries no key: anyone may request `/readyz`."""
        try:
            answer = await self._client.request(encode_head("GET", f"{self._path}/models", self._probe_headers), b"")
        except BackendError:
            return False
        answer.close()
        return True

    async def _ask(self, call: Call, context: Context) -> UpstreamAnswer | TurnAnswer:
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

    async def _ask_by_websocket(self, call: Call, place: LaneCall, context: Context) -> TurnAnswer | FixedAnswer | None:
        """Return the answer to a call, or the reply that has begun already; None if the upstream refuses upgrades."""
        begun, place.reply = place.reply, None  # another attempt asks for a response of its own
        if isinstance(begun, TurnAnswer):
            return begun
        if place.brief is not None and self.needs_fitting:
            place = replace(place, brief=self.fitted(place.brief, context)[0])
        link = place.connection.part(
            self.name,
            lambda: UpstreamLink(
                place.connection, self._dialer, self._limits.scrubber, ends=LAST | terminals_of(self.repairs),
                first_s=self.first_event_timeout_s, between_s=self.between_events_timeout_s,
            ),
        )  # fmt: skip

        async def headers() -> Mapping[str, str]:
            own = self._credentials.current
            own = await self._credentials.read() if own is None else own
            return {**self._probe_headers, **self._headers(place.connection.headers, context), **own}

        answer = await link.ask(call, place, headers, context)
        if isinstance(answer, TurnAnswer) and self.total_timeout_s is not None:
            answer.end_within(self.total_timeout_s)
        return answer

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
        if self._query:
            query = f"{query}&{self._query}" if query else self._query
        target = f"{self._path}/{path}?{query}" if query else f"{self._path}/{path}"
        if isinstance(body, BodySource):
            framing = body.framing
        else:
            framing = {"Content-Length": str(len(body))} if body or method == "POST" else {}
        own = self._credentials.current
        own = await self._credentials.read() if own is None else own
        fields = {**self._default_headers, **headers, **own, **framing}
        head = encode_head(method, target, fields)
        answer = await self._client.request(head, body)
        if answer.status == 401 and isinstance(body, bytes) and (new := await self._credentials.renew(own)):
            answer.close()  # the key had expired before its time; nothing was done
            return await self._client.request(encode_head(method, target, {**fields, **new}), body)
        return answer


async def _body_of(request: ResourceRequest, context: Context) -> bytes:
    """Return the body of a request for something that exists."""
    if not request.body and (request.method, request.rest) != ("POST", ()):
        return b""
    size = context.memory.needed_bytes  # of the body as it was received, and more
    return await context.run(size, dumps, request.body, size)
