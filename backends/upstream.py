"""Asks a server that speaks the Responses protocol, and hands on what it says, byte for byte.

Answers: the upstream's status, body, frames and headers, less what belongs to one connection only.
Fails: 502 `upstream_unreachable`, `upstream_reset`, `upstream_invalid_response`, `upstream_auth` (it refused the gate's
    own key, which is not the caller's fault), and 504 `upstream_timeout`.
Source: https://platform.openai.com/docs/api-reference/responses
"""

import asyncio
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import cached_property
from io import BytesIO
from typing import Self

import aiohttp
import orjson
from pydantic import Field, PositiveFloat, PositiveInt
from yarl import URL

from backends import Backend
from proxy.config.secrets import Secret
from proxy.wire.call import Call
from proxy.wire.errors import BackendError, RequestError, envelope
from proxy.wire.event import DONE, TERMINALS, Event, Once, Reply, body_events
from proxy.wire.sse import SSEParser

# Headers of an answer that concern one connection, or that the gate writes itself. Source: RFC 9110, 7.6.1.
NOT_HANDED_ON = frozenset({
    "alt-svc", "cache-control", "cache-status", "connection", "content-encoding", "content-length", "content-type",
    "date", "keep-alive", "proxy-authenticate", "proxy-connection", "server", "server-timing", "set-cookie",
    "strict-transport-security", "te", "trailer", "transfer-encoding", "upgrade", "x-headgate-policy", "x-request-id",
})  # fmt: skip
REST_OF_ANSWER_S = 0.5
LARGE_BYTES = 1_048_576  # a larger body is written piece by piece, so that others are served in between
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


class Upstream(Backend):
    base_url: str = Field(pattern=r"^https?://[^?#@]+$")
    """Where it is, the version included: https://api.openai.com/v1"""
    api_key: Secret | None = None
    """The gate's own key there; left out: none is sent. A caller's key is never sent."""
    connect_timeout_s: PositiveFloat = 5
    """How long connecting may take, TLS included, in seconds."""
    first_byte_timeout_s: PositiveFloat = 600
    """How long it may think before it answers, in seconds."""
    between_bytes_timeout_s: PositiveFloat = 300
    """How long it may be silent in the middle of an answer, in seconds. There is no limit on the whole."""
    max_answer_bytes: PositiveInt = 268_435_456
    """How large an answer that is not streamed may be, in bytes."""

    @cached_property
    def _base(self) -> str:
        return self.base_url.rstrip("/")

    @cached_property
    def _own_headers(self) -> Mapping[str, str]:
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if self.api_key is not None:
            headers["Authorization"] = f"Bearer {self.api_key.get_secret_value()}"
        return headers

    @cached_property
    def _session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),  # the 101st stream must not queue behind a hundred others
            cookie_jar=aiohttp.DummyCookieJar(),  # one caller's cookies are not another's
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self.connect_timeout_s),
            trust_env=False,
            max_line_size=16_384,
            max_field_size=16_384,
        )

    async def start(self) -> None:
        _ = self._session

    async def close(self) -> None:
        await self._session.close()

    @asynccontextmanager
    async def respond(self, call: Call) -> AsyncIterator[Reply]:
        answer = await self._opened("POST", "responses", call.encoded, call.headers, call.query)
        try:
            reply = await self._reply(call, answer)
            yield reply
            if isinstance(reply.batches, _Stream) and reply.batches.complete:
                await _read_rest(answer)
        finally:
            answer.close()

    async def models(self) -> Sequence[str]:
        answer = await self._opened("GET", "models", b"", {})
        try:
            listed = orjson.loads(await _body(answer, self))
            return [str(model["id"]) for model in listed["data"]]
        except (ValueError, TypeError, KeyError) as error:
            raise _invalid("a list of models that cannot be read") from error
        finally:
            answer.close()

    async def ready(self) -> bool:
        try:
            answer = await asyncio.wait_for(self._opened("GET", "models", b"", {}), self.connect_timeout_s)
        except (BackendError, TimeoutError):
            return False
        answer.close()
        return True

    async def _opened(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str], query: str = ""
    ) -> aiohttp.ClientResponse:
        data = BytesIO(body) if len(body) > LARGE_BYTES else body or None
        url = URL(f"{self._base}/{path}?{query}" if query else f"{self._base}/{path}", encoded=True)
        try:
            async with asyncio.timeout(self.first_byte_timeout_s):
                return await self._session.request(
                    method, url, data=data, headers={**headers, **self._own_headers}, allow_redirects=False
                )
        except TimeoutError as error:  # aiohttp's own connect timeout is one of these too
            raise _silent() from error
        except aiohttp.ClientConnectorError as error:
            raise BackendError("The upstream cannot be reached.", code="upstream_unreachable") from error
        except (aiohttp.ClientResponseError, aiohttp.InvalidURL) as error:
            raise _invalid("an answer that is not HTTP as it should be") from error
        except (aiohttp.ClientError, OSError) as error:
            raise _reset() from error

    async def _reply(self, call: Call, answer: aiohttp.ClientResponse) -> Reply:
        headers = _handed_on(answer)
        if answer.status != 200:
            return await self._refusal(answer, headers)
        if answer.content_type == "text/event-stream":
            return Reply(200, headers, _Stream(answer, call, self), streamed=True)
        try:
            events = body_events(await _body(answer, self))
            _ = events[-1].response["id"]
        except (ValueError, KeyError) as error:
            raise _invalid(f"200 with {answer.content_type} that is no response") from error
        return Reply(200, headers, Once(events), streamed=False)

    async def _refusal(self, answer: aiohttp.ClientResponse, headers: dict[str, str]) -> Reply:
        """The upstream's own refusal; a body that no client could read gets the envelope, the status stays."""
        if answer.status == 401:
            told = "The upstream refused the gate's own credentials."
            raise BackendError(told, code="upstream_auth", headers={"x-should-retry": "false"})
        if not 400 <= answer.status < 600:  # redirects are not followed: the prompt would go where nobody sent it
            raise _invalid(f"status {answer.status}")
        body = await _body(answer, self)
        if not _is_envelope(body):
            told = f"The upstream answered {answer.status} with {answer.content_type}."
            kind = RequestError if answer.status < 500 else BackendError
            body = orjson.dumps(envelope(kind(told, status=answer.status, code="upstream_error")))
        return Reply(answer.status, headers, Once([Event("", body)]), streamed=False)


class _Stream:
    """The batches of a streamed answer: what one read brought goes on together. Owns nothing; `respond` closes."""

    def __init__(self, answer: aiohttp.ClientResponse, call: Call, settings: Upstream) -> None:
        self._answer = answer
        self._parser = SSEParser(call.watched)
        self._silence_s = settings.between_bytes_timeout_s
        self._ended = False
        self.complete = False  # whether the response's last event came

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Sequence[Event]:
        while not self._ended:
            chunk = await _read(self._answer, self._silence_s)
            self._ended = not chunk
            try:
                events = self._parser.feed(chunk) if chunk else self._parser.close()
                _read_all(events)
            except ValueError as error:
                raise _invalid(f"a stream that cannot be read: {error}") from error
            if events:
                self.complete = any(event.type in TERMINALS for event in events)
                return events
        raise StopAsyncIteration


async def _read(answer: aiohttp.ClientResponse, silence_s: float) -> bytes:
    """What the network brings next; b"" at the end. Only reads are wrapped: a caller that leaves is not to blame."""
    try:
        if chunk := answer.content.read_nowait():
            return chunk  # it was there already: no timer is needed
        if answer.content.is_eof():
            return b""
        async with asyncio.timeout(silence_s):
            return await answer.content.readany()
    except TimeoutError as error:
        raise _silent() from error
    except (aiohttp.ClientError, OSError) as error:
        raise _reset() from error


async def _body(answer: aiohttp.ClientResponse, settings: Upstream) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while chunk := await _read(answer, settings.between_bytes_timeout_s):
        size += len(chunk)
        if size > settings.max_answer_bytes:
            raise BackendError("The upstream's answer is too large.", code="upstream_too_large")
        chunks.append(chunk)
    return b"".join(chunks)


async def _read_rest(answer: aiohttp.ClientResponse) -> None:
    """Read what stands behind the last event, so that the connection can serve the next call."""
    with suppress(aiohttp.ClientError, OSError, TimeoutError):
        answer.content.read_nowait()
        if answer.content.is_eof():
            return
        async with asyncio.timeout(REST_OF_ANSWER_S):
            while await answer.content.readany():
                pass
            answer.release()


def _read_all(events: Sequence[Event]) -> None:
    """Read what somebody further on will look at. Raises ValueError, here, where the upstream is to blame."""
    for event in events:
        if event.type not in ("", DONE):
            _ = event.data


def _handed_on(answer: aiohttp.ClientResponse) -> dict[str, str]:
    """The headers that callers get: not those of one connection, nor those that no HTTP may contain."""
    own = NOT_HANDED_ON
    if named := answer.headers.get("connection"):
        own = own.union(name.strip().lower() for name in named.split(","))
    headers: dict[str, str] = {}
    for name, value in answer.headers.items():
        if name.lower() not in own:
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
    if upstream_id := answer.headers.get("x-request-id"):
        headers["x-upstream-request-id"] = upstream_id
    return {name: value for name, value in headers.items() if not _CONTROL.search(value)}


def _is_envelope(body: bytes) -> bool:
    try:
        refusal = orjson.loads(body)
    except ValueError:
        return False
    return isinstance(refusal, dict) and isinstance(refusal.get("error"), dict)


def _silent() -> BackendError:
    return BackendError("The upstream did not answer in time.", status=504, code="upstream_timeout")


def _reset() -> BackendError:
    return BackendError("The upstream broke off the connection.", code="upstream_reset")


def _invalid(found: str) -> BackendError:
    return BackendError(f"The upstream sent {found}.", code="upstream_invalid_response")
