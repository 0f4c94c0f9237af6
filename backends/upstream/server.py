"""The server of an upstream: its address and key, the connections to it, and what is sent on them."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from ssl import SSLContext
from typing import NamedTuple
from urllib.parse import urlencode, urlsplit

from backends.upstream.body import AnswerLimits, UpstreamAnswer
from backends.upstream.credentials import Credentials
from backends.upstream.headers import HeaderFilter
from backends.upstream.http1 import BodySource, Client, Origin, Proxy, Timeouts, create_tls_context, encode_request
from backends.upstream.settings import UpstreamSettings
from backends.upstream.websocket import SocketDialer
from proxy.context import Context
from proxy.wire.headers import HeaderNames, scope_idempotency_key


class Wire(NamedTuple):
    """What every request needs of an upstream: reading a field of a pydantic model takes as long as ten of these."""

    client: Client
    credentials: Credentials
    path: str
    query: str
    headers: Mapping[str, str]
    names: HeaderNames


class UpstreamServer(UpstreamSettings):
    @cached_property
    def _wire(self) -> Wire:
        return Wire(self._client, self._credentials, self._path, self._query, self._default_headers, self.header_names)

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
        forwarded = scope_idempotency_key(self._wire.names.select(received), context.caller.team)
        return {**forwarded, **context.trace.propagation_headers()}

    async def _request(
        self, method: str, path: str, body: bytes | BodySource, headers: Mapping[str, str], query: str = ""
    ) -> UpstreamAnswer:
        """Send a request and return the answer once its head has arrived.

        A body is JSON unless a header says otherwise. Raises BackendError, and what a streamed body raises.
        """
        wire = self._wire
        query = query.partition("#")[0]  # a fragment is not part of a request
        if wire.query:
            query = f"{query}&{wire.query}" if query else wire.query
        target = f"{wire.path}/{path}?{query}" if query else f"{wire.path}/{path}"
        if isinstance(body, BodySource):
            framing = body.framing
        else:
            framing = {"Content-Length": str(len(body))} if body or method == "POST" else {}
        own = wire.credentials.current
        own = await wire.credentials.read() if own is None else own
        fields = {**wire.headers, **headers, **own}
        head = encode_request(method, target, fields, framing)
        answer = await wire.client.request(head, body)
        if answer.status == 401 and isinstance(body, bytes) and (new := await wire.credentials.renew(own)):
            answer.close()  # the key had expired before its time; nothing was done
            return await wire.client.request(encode_request(method, target, {**fields, **new}, framing), body)
        return answer
