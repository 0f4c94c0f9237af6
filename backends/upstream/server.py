"""The server of an upstream: its address and key, and the connections to it."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from ssl import SSLContext
from urllib.parse import urlencode, urlsplit

from backends.upstream.body import AnswerLimits
from backends.upstream.credentials import Credentials
from backends.upstream.headers import HeaderFilter
from backends.upstream.http1 import Client, Origin, Proxy, Timeouts, create_tls_context
from backends.upstream.settings import UpstreamSettings
from backends.upstream.websocket import SocketDialer
from backends.upstream.wire import Wire
from proxy.wire.headers import HeaderNames


class UpstreamServer(UpstreamSettings):
    @cached_property
    def wire(self) -> Wire:
        """Sends requests to it."""
        return Wire(
            self._client, self._credentials, self._limits, path=self._path, query=self._query,
            headers=self._default_headers, names=self.header_names,
            is_plain=not (self.needs_fitting or self.websocket),
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
