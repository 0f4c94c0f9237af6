"""Messages between the gateway and the child process of an engine: JSON lists, each behind its length, over a socket.

    00 00 00 0b ["cancel",7]

    gateway -> child   start EngineSpec | job ... | deliver_at_once id | cancel id | ping | close
    child -> gateway   ready EngineReady | failed reason | steps [...] | pong resident_bytes | log level event fields

Neither side trusts the other: an invalid message ends the connection, which is never reopened.
"""  # fmt: skip

import asyncio
import socket
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self, cast

import orjson

from backends.local.decoding.job import DecodingOptions, DecodingStep, Job, Token
from backends.local.scheduling.costs import Costs

HEADER_BYTES = 4
# Large enough for a prompt of a million tokens with the grammar of a very large schema; noise is usually larger.
MAX_BYTES = 33_554_432
MAX_WAITING_BYTES = 4 * MAX_BYTES
"""How much may wait for the other side to read it: beyond that it is stuck."""
MAX_UNRECEIVED_BYTES = 131_072
"""From how many bytes of messages that nothing has received on no more are read."""
FINISH_REASONS = (None, "stop", "length", "failed", "constraint_failed")
# JSON has no infinity; this is what OpenAI sends for a token that cannot occur.
MIN_LOGPROB = -9999.0


TakeMessage = Callable[[Any], bool]
"""Takes a message and returns True, or does nothing and returns False. Raises IpcError for an invalid one."""


class IpcError(Exception):
    """A message is not one of this protocol."""


class Channel(asyncio.Protocol):
    """Both directions of one connection."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._unread = bytearray()  # the beginning of a message
        self._messages: deque[bytes] = deque()  # that nothing has received
        self._waiting_bytes = 0  # of them
        self._arrival: asyncio.Future[None] | None = None  # what `receive` waits for
        self._take: TakeMessage | None = None
        self._error: Exception | None = None  # that ends the connection
        self._is_paused = False  # whether nothing is read
        self._is_lost = False
        self._writable = asyncio.Event()

    @classmethod
    async def open(cls, end: socket.socket) -> Self:
        """Return the channel over one end of a socket pair, which it closes."""
        _, channel = await asyncio.get_running_loop().create_unix_connection(cls, sock=end)
        return channel

    def send(self, message: bytes) -> None:
        """Write a message. What waits ends the connection beyond a limit, so call `drain` before large messages."""
        transport = self._transport
        if transport.get_write_buffer_size() > MAX_WAITING_BYTES:
            self.close()
        if not transport.is_closing():  # `receive` reports that the connection has ended
            transport.write(len(message).to_bytes(HEADER_BYTES) + message)

    @property
    def is_writable(self) -> bool:
        """Whether `drain` need not wait."""
        return self._writable.is_set()

    async def drain(self) -> None:
        """Wait until the other side has read most of what was sent. Raises OSError when it is gone."""
        await self._writable.wait()
        if self._is_lost or self._transport.is_closing():
            raise ConnectionResetError("the other side of the channel is gone")

    async def receive(self) -> Any | None:
        """Return the next message, or None when the other side is gone. Raises IpcError, or what `take` raised."""
        while not self._messages:
            if self._error is not None:
                raise self._error
            if self._is_lost:
                return None
            self._arrival = asyncio.get_running_loop().create_future()
            await self._arrival
        message = self._messages.popleft()
        self._waiting_bytes -= len(message)
        if self._is_paused and not self._messages and not self._transport.is_closing():
            self._is_paused = False
            self._transport.resume_reading()
        return _decode(message)

    def forward_messages(self, take: TakeMessage) -> None:
        """Give each message to `take` as it arrives, unless others wait, so that no task wakes up for it.

        Those that it does not take are received.
        """
        self._take = take

    def close(self) -> None:
        """Close the connection at once; messages that were not sent are lost."""
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        unread = self._unread
        unread += data
        while self._error is None and len(unread) >= HEADER_BYTES:
            size = int.from_bytes(unread[:HEADER_BYTES])
            if size > MAX_BYTES:
                self._fail(IpcError(f"a message of {size} bytes; the limit is {MAX_BYTES}"))
            end = HEADER_BYTES + size
            if len(unread) < end:
                break
            message = bytes(unread[HEADER_BYTES:end])
            del unread[:end]
            self._accept(message)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_lost = True
        self._writable.set()
        self._wake()

    def _accept(self, message: bytes) -> None:
        """Forward a message, or let it wait until it is received."""
        if self._take is not None and not self._messages:
            try:
                if self._take(_decode(message)):
                    return
            except Exception as error:  # noqa: BLE001  it is raised where messages are received
                self._fail(error)
                return
        self._messages.append(message)
        self._waiting_bytes += len(message)
        if self._waiting_bytes > MAX_UNRECEIVED_BYTES and not (self._is_paused or self._transport.is_closing()):
            self._is_paused = True
            self._transport.pause_reading()
        self._wake()

    def _fail(self, error: Exception) -> None:
        """Close the connection; `receive` raises the error after the messages before it."""
        self._error = error
        self.close()
        self._wake()

    def _wake(self) -> None:
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)


def _decode(message: bytes) -> Any:
    """Return a message. Raises IpcError."""
    try:
        return orjson.loads(message)
    except orjson.JSONDecodeError as error:
        raise IpcError("a message that is not JSON") from error


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What a child process loads, and how it works."""

    path: str
    placement: dict[str, Any]  # the fields of device.Placement
    vocabulary_size: int
    stop_ids: Sequence[int]
    kv_bytes_per_token: int
    prefix_cache_bytes: int
    process_bytes: int | None  # limit of its address space; None: no limit


@dataclass(frozen=True, slots=True)
class EngineReady:
    """What a child process reports when its model is loaded."""

    device: str
    compute_type: str
    costs: Costs


def encode_message(kind: str, *content: object) -> bytes:
    """Return a message of this kind."""
    return orjson.dumps([kind, *content], default=_to_list)


def decode_ready(content: Any) -> EngineReady:
    """Return the content of "ready". Raises IpcError."""
    try:
        return EngineReady(str(content["device"]), str(content["compute_type"]), Costs(**content["costs"]))
    except (TypeError, KeyError) as error:
        raise IpcError('an invalid "ready" message') from error


def encode_job(job: Job) -> bytes:
    """Return a "job" message."""
    return encode_message("job", job.id, job.team, job.prompt, job.options)


def decode_job(content: Sequence[Any]) -> Job:
    """Return the job of a "job" message."""
    job_id, team, prompt, options = content
    options["stop_ids"] = frozenset(options["stop_ids"])
    return Job(job_id, prompt, DecodingOptions(**options), team=team)


def encode_steps(steps: Sequence[DecodingStep]) -> bytes:
    """Return a "steps" message."""
    return encode_message("steps", _rows(steps))


def _rows(steps: Sequence[DecodingStep]) -> list[object]:
    return [
        (
            step.job,
            [token.id if token.logprob is None else _encode_logprobs(token) for token in step.tokens],
            step.finish,
            step.cached_tokens,
            step.message,
        )
        for step in steps
    ]


def encode_shared_steps(handle: int, steps: Sequence[DecodingStep]) -> bytes:
    """Return a "steps" message of an engine that several workers share."""
    return encode_message("steps", handle, _rows(steps))


def decode_steps(content: Sequence[Any], vocabulary_size: int) -> list[DecodingStep]:
    """Return the steps of a "steps" message. Raises IpcError."""
    try:
        (rows,) = content
        steps, size = [], vocabulary_size
        for job, contents, finish, cached, text in rows:
            tokens = [
                Token(each) if type(each) is int and 0 <= each < size else _decode_token(each, size)
                for each in contents
            ]
            if type(job) is not int or finish not in FINISH_REASONS or not (cached is None or type(cached) is int):
                raise IpcError("invalid steps")
            steps.append(DecodingStep(job, tokens, finish, cached, str(text)))
    except (TypeError, ValueError, IndexError) as error:
        raise IpcError("invalid steps") from error
    return steps


def _encode_logprobs(token: Token) -> object:
    """Return a token with its logprobs; most have none, and are bare ids."""
    return token.id, _finite(token.logprob or 0.0), [(token_id, _finite(logprob)) for token_id, logprob in token.top]


def _decode_token(content: Any, vocabulary_size: int) -> Token:
    if isinstance(content, int):
        token = Token(content)
    else:
        token_id, logprob, top = content
        token = Token(token_id, float(logprob), [(_check_id(each, vocabulary_size), float(own)) for each, own in top])
    _check_id(token.id, vocabulary_size)
    return token


def _check_id(token_id: Any, vocabulary_size: int) -> int:
    """Return the id. Raises ValueError for anything else than a token id: later code relies on it."""
    if not isinstance(token_id, int) or not 0 <= token_id < vocabulary_size:
        raise ValueError(f"The token id is {token_id!r}; it must be below {vocabulary_size}.")
    return token_id


def _finite(logprob: float) -> float:
    return max(MIN_LOGPROB, logprob)  # in this order NaN becomes MIN_LOGPROB, too


def _to_list(value: object) -> object:
    """Convert sets and other sequences, which JSON lacks."""
    return list(value)  # type: ignore[call-overload]
