"""The server of an upstream: its address and key, the connections to it, and what is sent on them."""

from collections.abc import Awaitable, Mapping
from functools import cached_property
from pathlib import Path
from ssl import SSLContext
from typing import NamedTuple
from urllib.parse import urlencode, urlsplit

from backends.upstream.body import AnswerLimits, UpstreamAnswer
from backends.upstream.credentials import Credentials
from backends.upstream.headers import HeaderFilter
from backends.upstream.http1 import (
    BodySource,
    Client,
    Origin,
    Proxy,
    RequestHeads,
    Timeouts,
    create_tls_context,
    encode_length,
)
from backends.upstream.settings import UpstreamSettings
from backends.upstream.websocket import SocketDialer
from proxy.context import Context
from proxy.wire.headers import IDEMPOTENCY_KEY, HeaderNames, scope_idempotency_key


class Wire(NamedTuple):
    """What every request needs of an upstream: reading a field of a pydantic model takes as long as ten of these."""

    client: Client
    credentials: Credentials
    path: str
    query: str
    heads: RequestHeads
    names: HeaderNames
    limits: AnswerLimits
    needs_fitting: bool
    speaks_websocket: bool


class UpstreamServer(UpstreamSettings):
    @cached_property
    def _wire(self) -> Wire:
        return Wire(
            self._client, self._credentials, self._path, self._query, RequestHeads(self._default_headers),
            self.header_names, self._limits, self.needs_fitting, self.websocket,
        )  # fmt: skip

    @cached_property
    def header_names(self) -> HeaderNames:
        return HeaderNames(self.forward_headers)

    @property
    def _account(self) -> tuple[object, ...]:
        return (self._origin, self._path, self.api_key, self.token_command, self.token_file, self.headers, self.query)

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

    def _headers(self, received: Mapping[str, str], context: Context) -> dict[str, str]:
        """Return the headers of a request: the caller's that it may see, and those of the trace."""
        forwarded = self._wire.names.select(received) if received else {}
        if IDEMPOTENCY_KEY in forwarded:
            forwarded = scope_idempotency_key(forwarded, context.caller.team)
        traced = context.trace.propagation_headers()
        return {**forwarded, **traced} if traced else forwarded

    def _request(
        self, method: str, path: str, body: bytes | BodySource, headers: Mapping[str, str], query: str = ""
    ) -> Awaitable[UpstreamAnswer]:
        """Send a request and return the answer once its head has arrived.

        A body is JSON unless a header says otherwise. Raises BackendError, and what a streamed body raises.
        """
        wire = self._wire
        if query or wire.query:
            query = query.partition("#")[0]  # a fragment is not part of a request
            both = f"{query}&{wire.query}" if query and wire.query else query or wire.query
            path = f"{path}?{both}" if both else path
        target = f"{wire.path}/{path}"
        if not isinstance(body, bytes):
            framing = body.framing
        else:
            framing = encode_length(len(body)) if body or method == "POST" else b""
        if wire.credentials.can_expire:
            return self._request_with_token(method, target, body, headers, framing)
        return wire.client.request(wire.heads.encode(method, target, headers, wire.credentials.headers, framing), body)

    async def _request_with_token(
        self, method: str, target: str, body: bytes | BodySource, headers: Mapping[str, str], framing: bytes
    ) -> UpstreamAnswer:
        """Send a request with a key that expires, and again with a new one if it has expired before its time."""
        client, credentials, heads = self._wire.client, self._wire.credentials, self._wire.heads
        own = credentials.current
        own = await credentials.read() if own is None else own
        answer = await client.request(heads.encode(method, target, headers, own, framing), body)
        if answer.status == 401 and isinstance(body, bytes) and (new := await credentials.renew(own)):
            answer.close()  # nothing was done
            return await client.request(heads.encode(method, target, headers, new, framing), body)
        return answer
