"""The body of an answer of an upstream, by whichever transport it arrives, and its limits."""

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

from backends.upstream.decode import Decoder
from backends.upstream.dialects.repairs import Repair
from backends.upstream.errors import invalid_answer
from backends.upstream.headers import HeaderFilter
from backends.upstream.scrub import Scrubber

PLAIN = Decoder("")
"""Decodes chunks that are not compressed: it keeps nothing of them, so all such answers share it."""


@dataclass(frozen=True, slots=True)
class AnswerLimits:
    """How large the body of an answer may be, what is removed from it, and which headers are forwarded."""

    max_bytes: int
    scrubber: Scrubber
    headers: HeaderFilter
    repairs: Collection[Repair] = ()
    """What is mended in streams."""


class UpstreamAnswer(Protocol):
    """An answer whose head has arrived, by whichever transport."""

    @property
    def status(self) -> int: ...

    @property
    def fields(self) -> Mapping[str, str]:
        """Its headers; names in lower case."""

    @property
    def content_type(self) -> str: ...

    @property
    def is_complete(self) -> bool:
        """Whether the whole body has arrived."""

    def take(self) -> bytes:
        """Return what has arrived of the body since the last read, without waiting: b"" if that is nothing."""

    def read(self) -> Awaitable[bytes]:
        """Return what has arrived of the body since the last read; b"" at its end. Raises HeadgateError."""

    def offer_chunks(self, taker: Callable[[bytes], bool]) -> None:
        """Offer what arrives while `read` waits for it to a taker, which returns whether it has taken it."""

    def count_events(self) -> None:
        """Limit the time between events, which `note_event` notes, and not that between parts of the body."""

    def note_event(self) -> None:
        """Note that an event has arrived."""

    def close(self) -> None:
        """Give up what was not read."""


def decoder_of(answer: UpstreamAnswer) -> Decoder:
    if (coding := answer.fields.get("content-encoding")) is None:  # almost always
        return PLAIN
    try:
        return Decoder(coding)
    except ValueError as error:
        raise invalid_answer(str(error)) from error


async def read_chunk(answer: UpstreamAnswer, decoder: Decoder) -> bytes:
    """Return what the network brings next, decompressed; b"" at the end."""
    try:
        while chunk := await answer.read():
            if decoder.is_plain:
                return chunk
            if data := await decoder.decode(chunk):
                return data
        decoder.close()
    except ValueError as error:
        raise invalid_answer(str(error)) from error
    return b""
