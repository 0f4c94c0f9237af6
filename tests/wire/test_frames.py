"""Frames of WebSockets, in pieces of any size."""

import random

import pytest

from proxy.wire import frames as module
from proxy.wire.frame_bytes import (
    close_frame,
    masked_control,
    masked_text,
    ping_frame,
    pong_frame,
    short_frames,
    text_frames,
)
from proxy.wire.frames import (
    CLOSE,
    MAX_TEXTS,
    NO_STATUS,
    PART_BYTES,
    PROTOCOL_ERROR,
    TOO_BIG,
    FrameError,
    FrameParser,
    Message,
)
from tests.sockets import MASK, frames_in, masked


def read(data: bytes, piece: int, limit: int = 1_000_000) -> list[Message]:
    """Return the messages in bytes that arrive in pieces of one size."""
    parser = FrameParser(limit)
    pieces = (data[start : start + piece] for start in range(0, len(data), piece))
    messages: list[Message] = []
    for each in pieces:
        parser.push(each)
        messages += parser.read(len(data) + 1)[0]
    return messages


@pytest.mark.parametrize("piece", [1, 3, 7, 65_536, 10**7])
@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536, 70_003])
def test_a_message_of_any_length_is_read_in_pieces(size: int, piece: int):
    payload = random.Random(size).randbytes(size)

    assert read(masked(1, payload) * 2, piece) == [Message("text", payload)] * 2


@pytest.mark.parametrize("piece", [1, 5, 1000])
def test_fragments_are_one_message_with_control_frames_between_them(piece: int):
    data = masked(2, b"ab", fin=False) + masked(9, b"?") + masked(0, b"", fin=False) + masked(10) + masked(0, b"cd")

    assert read(data, piece) == [Message("ping", b"?"), Message("pong", b""), Message("binary", b"abcd")]


@pytest.mark.parametrize(
    "data",
    [b"\xc1\x80", b"\x83\x80", b"\x81\x00", b"\x09\x80", b"\x89\xfe", b"\x80\x80",
     masked(1, b"a", fin=False) + b"\x81\x80", masked(8, b"a"), masked(8, (1005).to_bytes(2)), masked(8, b"\0\0")],
    ids=["compressed", "unknown opcode", "unmasked", "fragmented ping", "long ping", "nothing to continue",
         "a message in a message", "half a code", "a code that is never sent", "no code"],
)  # fmt: skip
def test_what_breaks_the_protocol_is_refused(data: bytes):
    with pytest.raises(FrameError) as caught:
        read(data, 1)

    assert caught.value.code == PROTOCOL_ERROR


def test_a_message_is_refused_before_it_is_received():
    """By the length in its head, that of the fragments before it included."""
    assert read(masked(1, b"a" * 100), 1, limit=100) == [Message("text", b"a" * 100)]
    for data in (masked(1, b"a" * 101), masked(1, b"a" * 60, fin=False) + masked(0, b"a" * 41)):
        with pytest.raises(FrameError) as caught:
            read(data[:-41], 1, limit=100)
        assert caught.value.code == TOO_BIG
    with pytest.raises(FrameError, match="too large"):
        read(b"\x81\xff" + b"\xff" * 8 + MASK, 1)


def test_a_message_has_a_limit_of_frames(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "MAX_FRAGMENTS", 3)

    assert read(masked(1, fin=False) + masked(0, fin=False) + masked(0), 1) == [Message("text", b"")]
    with pytest.raises(FrameError) as caught:
        read(masked(1, fin=False) + masked(0, fin=False) * 3, 1)
    assert caught.value.code == TOO_BIG


def test_what_is_kept_of_an_incomplete_message_is_counted():
    parser = FrameParser(1000)
    parser.push(masked(1, b"a" * 50, fin=False) + masked(0, b"b" * 50)[:-10])
    assert parser.read(10) == ([], False)
    assert parser.pending_bytes == 90
    parser.push(masked(0, b"b" * 50)[-10:])
    assert parser.read(10) == ([Message("text", b"a" * 50 + b"b" * 50)], False)
    assert parser.pending_bytes == 0


def test_frames_are_read_in_portions():
    """Also those that complete no message."""
    parser = FrameParser(1000)
    parser.push(masked(1, b"a", fin=False) + masked(0, b"b", fin=False) + masked(0, b"c") + masked(9))

    assert parser.read(2) == ([], True)
    assert parser.read(2) == ([Message("text", b"abc"), Message("ping", b"")], True)
    assert parser.read(2) == ([], False)


def test_a_close_has_a_code_and_a_reason_or_neither():
    assert read(masked(CLOSE), 1) == [Message("close", b"", NO_STATUS)]
    assert read(masked(CLOSE, (1001).to_bytes(2) + b"bye"), 1) == [Message("close", b"bye", 1001)]
    assert read(masked(CLOSE, (4000).to_bytes(2)), 1) == [Message("close", b"", 4000)]


def test_frames_of_a_server_are_not_masked():
    assert [*text_frames(b"")] == [b"\x81\x00"]
    assert [*text_frames(b"a")] == [b"\x81\x01a"]
    assert [*text_frames(b"a" * 126)] == [b"\x81\x7e\x00\x7e" + b"a" * 126]
    assert [*text_frames(b"a" * 65_536)] == [b"\x81\x7f" + (65_536).to_bytes(8) + b"a" * 65_536]
    assert (ping_frame(), pong_frame(b"x")) == (b"\x89\x00", b"\x8a\x01x")
    assert close_frame(NO_STATUS) == b"\x88\x00"
    assert close_frame(1001, "é") == b"\x88\x03\x03\xe9?"
    assert len(close_frame(1001, "a" * 200)) == 127


@pytest.mark.parametrize("piece", [1000, 65_536, 10**7])
def test_a_long_message_is_kept_in_parts(piece: int):
    """Joining them takes time; its fragments make no difference, nor do control frames between them."""
    payload = random.Random(piece).randbytes(5 * PART_BYTES)
    whole = masked(1, payload)
    fragments = masked(1, payload[:10], fin=False) + masked(9, b"?") + masked(0, payload[10:])
    (first,), (ping, second) = read(whole, piece, 10**7), read(fragments, piece, 10**7)

    for message in (first, second):
        assert (message.kind, message.data, message.size_bytes) == ("text", b"", len(payload))
        assert b"".join(message.parts or ()) == payload
    assert ping == Message("ping", b"?")


def test_a_long_message_of_a_server_has_several_frames():
    """Pings may come between them."""
    payload = random.Random(1).randbytes(2 * PART_BYTES + 7)
    frames = [frame for data in text_frames(payload) for frame in frames_in(data)]

    assert [first for first, _ in frames] == [0x01, 0x00, 0x80]
    assert b"".join(part for _, part in frames) == payload


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536, PART_BYTES])
def test_short_messages_have_one_frame_each(size: int):
    """The same frames as one by one."""
    payloads = [b"a" * size, b"b" * size]

    assert short_frames(payloads) == b"".join(frame for payload in payloads for frame in text_frames(payload))


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536, 2 * PART_BYTES + 7])
def test_the_frames_of_a_client_are_masked(size: int):
    """They are read as what was sent; each message has a mask of its own."""
    payload = random.Random(size).randbytes(size)
    first, second = (b"".join(masked_text(payload)) for _ in range(2))
    (message,) = read(first, 10**7)

    assert message.data + b"".join(message.parts or ()) == payload
    assert first != second
    assert read(masked_control(pong_frame(b"abcde")) + masked_control(close_frame(1001)), 1) == [
        Message("pong", b"abcde"), Message("close", b"", 1001)
    ]  # fmt: skip


def read_of_server(data: bytes, piece: int, limit: int = 100_000) -> list[Message]:
    """Return the messages of a server in bytes that arrive in pieces of one size."""
    parser = FrameParser(limit, is_masked=False)
    messages: list[Message] = []
    for start in range(0, len(data), piece):
        parser.push(data[start : start + piece])
        has_more = True
        while has_more:
            messages += [Message("text", payload) for payload in parser.read_short_texts(100)]
            more, has_more = parser.read(1)
            messages += more
    assert parser.pending_bytes == 0
    return messages


@pytest.mark.parametrize("piece", [1, 3, 7, 1000, 10**7])
def test_messages_of_a_server_are_read_in_pieces(piece: int):
    """Of any length, whole or in fragments, with control frames between them."""
    texts = [b"a" * size for size in (0, 1, 125, 126, 300, 65_535, 65_536)]
    whole = b"".join(frame for text in texts for frame in text_frames(text))
    fragments = b"\x01\x01a" + ping_frame() + b"\x80\x01b" + b"\x82\x01c"
    expected = [Message("text", text) for text in texts]
    others = [Message("ping", b""), Message("text", b"ab"), Message("binary", b"c")]

    assert read_of_server(whole + fragments + whole, piece) == [*expected, *others, *expected]


@pytest.mark.parametrize(
    ("data", "code"),
    [(b"\x81\x80abcd", 1002), (b"\xc1\x00", 1002), (b"\x80\x00", 1002), (b"\x01\x00\x81\x00", 1002),
     (b"\x89\x7e\x00\x80", 1002), (b"\x81\x7f" + b"\xff" * 8, 1009), (b"\x81\x7e\x00\x65", 1009),
     (b"\x01\x32" + b"a" * 50 + b"\x80\x33", 1009)],
    ids=["masked", "compressed", "nothing to continue", "a message in a message", "long ping", "huge", "too large",
         "too large together"],
)  # fmt: skip
def test_what_a_server_must_not_send_is_refused(data: bytes, code: int):
    """Also behind messages that are valid."""
    for piece in (1, 1000):
        with pytest.raises(FrameError) as caught:
            read_of_server(b"\x81\x01a" + data, piece, limit=100)
        assert caught.value.code == code


def test_short_messages_of_a_server_are_read_in_portions():
    """By their bytes and by their number."""
    parser = FrameParser(1000, is_masked=False)
    parser.push(b"\x81\x02{}" * (MAX_TEXTS + 150))

    assert [len(parser.read_short_texts(size)) for size in (400, 10**6, 10**6)] == [100, MAX_TEXTS, 50]
