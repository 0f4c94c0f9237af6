"""The body of an upstream's answer, over any transport, and its limits."""

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
    """An answer whose head has arrived, over any transport."""

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
        """Return the part of the body that arrived since the last read, without waiting; b"" if there is none."""

    def read(self) -> Awaitable[bytes]:
        """Return the part of the body that arrived since the last read; b"" at the end. Raises HeadgateError."""

    def offer_chunks(self, taker: Callable[[bytes], bool]) -> None:
        """Offer each chunk that arrives while `read` waits to `taker`, which returns whether it took the chunk."""

    def count_events(self) -> None:
        """Limit the time between calls of `note_event` instead of the time between parts of the body."""

    def note_event(self) -> None:
        """Note that an event has arrived."""

    def close(self) -> None:
        """Discard the unread rest."""


def decoder_of(answer: UpstreamAnswer) -> Decoder:
    if (coding := answer.fields.get("content-encoding")) is None:  # almost always
        return PLAIN
    try:
        return Decoder(coding)
    except ValueError as error:
        raise invalid_answer(str(error)) from error


async def read_chunk(answer: UpstreamAnswer, decoder: Decoder) -> bytes:
    """Return the next chunk from the network, decompressed; b"" at the end."""
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
