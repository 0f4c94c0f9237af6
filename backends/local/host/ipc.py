"""Messages between the gateway and the child process of an engine: JSON lists, each behind its length, over a socket.

    00 00 00 0b ["cancel",7]

    gateway -> child   start EngineSpec | job ... | cancel id | ping | close
    child -> gateway   ready EngineReady | failed reason | steps [...] | pong resident_bytes | log level event fields

Neither side trusts the other: an invalid message ends the connection, which is never reopened.
"""  # fmt: skip

import asyncio
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import orjson

from backends.local.decoding.job import DecodingOptions, DecodingStep, Job, Token
from backends.local.scheduling.costs import Costs

HEADER_BYTES = 4
# Large enough for a prompt of a million tokens with the grammar of a very large schema; noise is usually larger.
MAX_BYTES = 33_554_432
MAX_WAITING_BYTES = 4 * MAX_BYTES
"""How much may wait for the other side to read it: beyond that it is stuck."""
FINISH_REASONS = (None, "stop", "length", "failed", "constraint_failed")
# JSON has no infinity; this is what OpenAI sends for a token that cannot occur.
MIN_LOGPROB = -9999.0


class IpcError(Exception):
    """A message is not one of this protocol."""


class Channel:
    """Both directions of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, end: socket.socket) -> Self:
        """Return the channel over one end of a socket pair, which it closes."""
        return cls(*await asyncio.open_unix_connection(sock=end))

    def send(self, message: bytes) -> None:
        """Write a message. What waits ends the connection beyond a limit, so call `drain` before large messages."""
        if self._writer.transport.get_write_buffer_size() > MAX_WAITING_BYTES:
            self.close()
        if not self._writer.is_closing():  # the reader reports that the connection has ended
            self._writer.write(len(message).to_bytes(HEADER_BYTES) + message)

    async def drain(self) -> None:
        """Wait until the other side has read most of what was sent. Raises OSError when it is gone."""
        await self._writer.drain()

    async def receive(self) -> Any | None:
        """Return the next message, or None when the other side is gone. Raises IpcError."""
        try:
            size = int.from_bytes(await self._reader.readexactly(HEADER_BYTES))
            if size > MAX_BYTES:
                raise IpcError(f"a message of {size} bytes; the limit is {MAX_BYTES}")
            return orjson.loads(await self._reader.readexactly(size))
        except (asyncio.IncompleteReadError, OSError):
            return None
        except orjson.JSONDecodeError as error:
            raise IpcError("a message that is not JSON") from error

    def close(self) -> None:
        """Close the connection at once; buffered messages are lost."""
        self._writer.transport.abort()


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
