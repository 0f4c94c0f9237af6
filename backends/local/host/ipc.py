"""One message after another over a socket between the gate and an engine's process: JSON behind its length.

    00 00 00 0b ["cancel",7]

Neither side trusts the other's bytes: what is no message breaks the link, and a link is never mended.
"""  # fmt: skip

import asyncio
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import orjson

from backends.local.decoding.job import Job, Options, Step, Token
from backends.local.scheduling.costs import Costs

HEAD_BYTES = 4
# A prompt of a million tokens and the grammar of a very large schema have room; a length that is noise does not.
MAX_BYTES = 33_554_432


class BrokenLink(Exception):
    """What came is not a message of this protocol."""


class Link:
    """Both directions of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def over(cls, end: socket.socket) -> Self:
        """The link over one end of a socket pair, which it closes."""
        return cls(*await asyncio.open_unix_connection(sock=end))

    def send(self, message: bytes) -> None:
        """Write a message; what the other side does not read waits in memory, so `room` comes before large ones."""
        if not self._writer.is_closing():  # who reads learns that it is over
            self._writer.write(len(message).to_bytes(HEAD_BYTES) + message)

    async def room(self) -> None:
        """Wait until the other side has read most of what was sent. Raises OSError when it is gone."""
        await self._writer.drain()

    async def receive(self) -> Any | None:
        """The next message, None when the other side is gone. Raises BrokenLink."""
        try:
            size = int.from_bytes(await self._reader.readexactly(HEAD_BYTES))
            if size > MAX_BYTES:
                raise BrokenLink(f"a message of {size} bytes; at most {MAX_BYTES} are allowed")
            return orjson.loads(await self._reader.readexactly(size))
        except (asyncio.IncompleteReadError, OSError):
            return None
        except orjson.JSONDecodeError as error:
            raise BrokenLink("a message that is not JSON") from error

    def close(self) -> None:
        """Let go at once; what was not yet read is lost."""
        self._writer.transport.abort()


FINISHES = (None, "stop", "length", "failed", "astray")
# JSON has no infinity; what can never be said is told as others tell it.
LEAST_LOGPROB = -9999.0


@dataclass(frozen=True, slots=True)
class Order:
    """What an engine's process is to load, and how it is to work."""

    path: str
    placement: dict[str, Any]  # as device.Placement has it
    vocabulary_size: int
    stop_ids: Sequence[int]
    kv_bytes_per_token: int
    prefix_cache_bytes: int
    process_bytes: int | None  # of address space; None: as many as the system gives


@dataclass(frozen=True, slots=True)
class Ready:
    """What came of it."""

    device: str
    compute_type: str
    costs: Costs


def message(kind: str, *content: object) -> bytes:
    return orjson.dumps([kind, *content], default=_plain)


def ready_of(given: Any) -> Ready:
    """Raises BrokenLink."""
    try:
        return Ready(str(given["device"]), str(given["compute_type"]), Costs(**given["costs"]))
    except (TypeError, KeyError) as error:
        raise BrokenLink("an answer to its start that is none") from error


def job_message(job: Job) -> bytes:
    return message("job", job.id, job.prompt, job.options)


def job_of(content: Sequence[Any]) -> Job:
    """A job from what came behind "job"."""
    number, prompt, options = content
    return Job(number, prompt, Options(**{**options, "stop_ids": frozenset(options["stop_ids"])}))


def steps_message(steps: Sequence[Step]) -> bytes:
    return message("steps", [_row(step) for step in steps])


def steps_of(content: Sequence[Any], vocabulary_size: int) -> list[Step]:
    """The steps from what came behind "steps". Raises BrokenLink for what no engine of ours says."""
    try:
        (rows,) = content
        steps = [
            Step(number, [_heard(token, vocabulary_size) for token in tokens], finish, cached, str(words))
            for number, tokens, finish, cached, words in rows
        ]
        if all(map(_sound, steps)):
            return steps
    except (TypeError, ValueError, IndexError) as error:
        raise BrokenLink("steps that are none") from error
    raise BrokenLink("steps that are none")


def _sound(step: Step) -> bool:
    return isinstance(step.job, int) and step.finish in FINISHES and isinstance(step.cached_tokens, int | None)


def _row(step: Step) -> Sequence[object]:
    return step.job, [_told(token) for token in step.tokens], step.finish, step.cached_tokens, step.message


def _told(token: Token) -> object:
    """A token in as few words as it takes: most have no logprob."""
    if token.logprob is None:
        return token.id
    return token.id, _finite(token.logprob), [(number, _finite(logprob)) for number, logprob in token.top]


def _heard(given: Any, vocabulary_size: int) -> Token:
    if isinstance(given, int):
        token = Token(given)
    else:
        number, logprob, top = given
        token = Token(number, float(logprob), [(_within(each, vocabulary_size), float(own)) for each, own in top])
    _within(token.id, vocabulary_size)
    return token


def _within(number: Any, vocabulary_size: int) -> int:
    """Raises ValueError for what is not the id of a token: nothing behind this would be ready for it."""
    if not isinstance(number, int) or not 0 <= number < vocabulary_size:
        raise ValueError(f"token {number!r}")
    return number


def _finite(logprob: float) -> float:
    return max(LEAST_LOGPROB, logprob)  # in this order it also stands for what is not a number


def _plain(value: object) -> object:
    """What JSON lacks: sets and other sequences."""
    return list(value)  # type: ignore[call-overload]
