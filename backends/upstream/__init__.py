"""Sends calls to a server that speaks the Responses protocol, and forwards its answers byte for byte.

Answers: the upstream's status, body, frames and headers, without those of a single connection.
Fails: 502 `upstream_unreachable`, `upstream_reset`, `upstream_invalid_response`, `upstream_too_large`, `upstream_auth`
    (it refused the gateway's own key, which is not the caller's fault), and 504 `upstream_timeout`.
Source: https://platform.openai.com/docs/api-reference/responses
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import cached_property
from io import BytesIO
from typing import ClassVar

import aiohttp
import orjson
from pydantic import Field, PositiveFloat, PositiveInt, field_validator
from yarl import URL

from backends import Backend
from backends.upstream.answer import (
    AnswerLimits,
    Stream,
    invalid_answer,
    read_body,
    read_rest,
    reply_of,
    timed_out,
    was_reset,
)
from backends.upstream.connector import Connector
from backends.upstream.relay import relay_reply_of
from backends.upstream.scrub import Scrubber
from proxy.config.secrets import Secret
from proxy.context import Context
from proxy.wire.call import MODEL_OPERATIONS, Call, Operation
from proxy.wire.errors import BackendError
from proxy.wire.event import Reply
from proxy.wire.headers import FORWARDED, HeaderNames, scope_idempotency_key
from proxy.wire.relay import RelayReply, RelayRequest

MAX_LIST_BYTES = 4_194_304  # the largest list of models
PATHS: Mapping[Operation, str] = {
    "create": "responses", "compact": "responses/compact", "input_tokens": "responses/input_tokens",
}  # fmt: skip
LARGE_BYTES = 1_048_576  # a larger body is written in pieces, so that other calls are served in between


class Upstream(Backend):
    operations: ClassVar[frozenset[Operation]] = MODEL_OPERATIONS
    can_relay: ClassVar[bool] = True

    base_url: str = Field(pattern=r"^https?://[^?#@]+$")
    """The address of the API, version included: https://api.openai.com/v1"""
    api_key: Secret | None = None
    """The gateway's own key for it. Default: none is sent. A caller's key is never sent."""
    connect_timeout_s: PositiveFloat = 5
    """How long connecting may take, TLS included, in seconds."""
    first_byte_timeout_s: PositiveFloat = 600
    """How long it may take to begin its answer, in seconds."""
    between_bytes_timeout_s: PositiveFloat = 300
    """How long it may be silent within an answer, in seconds. The whole answer has no limit."""
    max_answer_bytes: PositiveInt = 268_435_456
    """The largest answer that is not a stream, in bytes."""
    compaction: bool | None = None
    """Whether it compacts conversations (/responses/compact, `compaction_trigger`); default: as keeps_state says."""
    forward_headers: tuple[str, ...] = FORWARDED
    """The callers' headers that it receives, such as "openai-project"; a name may end in `*`. Replaces the default."""

    @field_validator("forward_headers")
    @classmethod
    def _check_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(sorted(HeaderNames(names).names))

    @cached_property
    def _base(self) -> str:
        return self.base_url.rstrip("/")

    @property
    def compacts(self) -> bool:
        return self.keeps_state if self.compaction is None else self.compaction

    @cached_property
    def header_names(self) -> HeaderNames:
        return HeaderNames(self.forward_headers)

    @cached_property
    def _own_headers(self) -> Mapping[str, str]:
        headers = {"Accept-Encoding": "identity"}
        if self.api_key is not None:
            headers["Authorization"] = f"Bearer {self.api_key.get_secret_value()}"
        return headers

    @cached_property
    def _limits(self) -> AnswerLimits:
        key = None if self.api_key is None else self.api_key.get_secret_value()
        return AnswerLimits(self.between_bytes_timeout_s, self.max_answer_bytes, Scrubber(key))

    @cached_property
    def _session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=Connector(limit=0),  # aiohttp's default would queue the 101st stream
            cookie_jar=aiohttp.DummyCookieJar(),  # cookies set for one caller must not reach another
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self.connect_timeout_s),
            trust_env=False,
            auto_decompress=False,  # on the event loop, without a bound on the ratio
            max_line_size=16_384,
            max_field_size=16_384,
        )

    async def start(self) -> None:
        _ = self._session

    async def close(self) -> None:
        await self._session.close()

    @asynccontextmanager
    async def respond(self, call: Call, context: Context) -> AsyncIterator[Reply]:
        headers = self._headers(call.headers, context)
        answer = await self._request("POST", PATHS[call.operation], call.encoded, headers, call.query)
        try:
            reply = await reply_of(answer, context, self._limits, has_id=call.operation == "create")
            yield reply
            if isinstance(reply.batches, Stream) and reply.batches.is_complete:
                await read_rest(answer)
        finally:
            answer.close()

    @asynccontextmanager
    async def relay(self, request: RelayRequest, context: Context) -> AsyncIterator[RelayReply]:
        headers = {**self._headers(request.headers, context), **request.types}
        body: bytes | AsyncIterator[bytes] = request.body
        if request.stream is not None:
            body = request.stream
            if request.size is not None:
                headers["Content-Length"] = str(request.size)
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
            async with self._session.get(URL(f"{self._base}/models", encoded=True), allow_redirects=False):
                return True
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False

    def _headers(self, received: Mapping[str, str], context: Context) -> dict[str, str]:
        """Return the headers of a request: the caller's that it may see, and those of the trace."""
        forwarded = scope_idempotency_key(self.header_names.select(received), context.caller.team)
        return {**forwarded, **context.trace.propagation_headers()}

    async def _request(
        self, method: str, path: str, body: bytes | AsyncIterator[bytes], headers: Mapping[str, str], query: str = ""
    ) -> aiohttp.ClientResponse:
        """Send a request and return the answer once its head has arrived.

        A body is JSON unless a header says otherwise. Raises BackendError.
        """
        data: object = body or None
        if isinstance(body, bytes) and len(body) > LARGE_BYTES:
            data = BytesIO(body)
        sent = {"Content-Type": "application/json", **headers, **self._own_headers}
        url = URL(f"{self._base}/{path}?{query}" if query else f"{self._base}/{path}", encoded=True)
        try:
            async with asyncio.timeout(self.first_byte_timeout_s):
                return await self._session.request(method, url, data=data, headers=sent, allow_redirects=False)
        except (aiohttp.ConnectionTimeoutError, aiohttp.ClientConnectorError) as error:
            raise _unreachable(error) from error
        except TimeoutError as error:
            raise timed_out() from error
        except aiohttp.InvalidURL as error:
            message = "The upstream's address is not a valid URL."
            raise BackendError(message, code="upstream_unreachable", source="gateway", sent=False) from error
        except aiohttp.ClientResponseError as error:
            raise invalid_answer("an answer that is not valid HTTP") from error
        except (aiohttp.ClientError, OSError) as error:
            raise was_reset() from error


def _unreachable(error: Exception) -> BackendError:
    """No byte of the request was sent."""
    if isinstance(error, TimeoutError):
        return timed_out(sent=False)
    is_refused_certificate = isinstance(error, aiohttp.ClientConnectorCertificateError)  # as refused the next time
    return BackendError(
        "The upstream cannot be reached.", code="upstream_unreachable", source="network",
        retryable=not is_refused_certificate, sent=False,
    )  # fmt: skip
