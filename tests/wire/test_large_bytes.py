"""Bytes of any size are searched and copied in windows, so that other threads run meanwhile."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.upstream.scrub import Scrubber
from backends.upstream.websocket.messages import MessageReader, split_lane
from proxy.wire import large_bytes
from proxy.wire.client_message import in_lane
from proxy.wire.large_bytes import (
    WINDOW_BYTES,
    as_utf8,
    count_text,
    cut_out,
    find_text,
    join_pieces,
    pieces_of,
    replace_text,
    take_all,
)
from proxy.wire.sse import SSEParser
from proxy.wire.sse_frame import LONG_FRAME_BYTES, frame_of, payload_of
from tests.examples import NO_DEADLINE
from tests.wire.watched import WatchedBuffer, WatchedBytes


@NO_DEADLINE
@given(
    text=st.text(st.sampled_from(r"\\u03a:"), max_size=60).map(str.encode), sought=st.sampled_from([rb"\u003a", b":"])
)
def test_texts_are_found_counted_and_replaced_across_windows(text: bytes, sought: bytes):
    """As in one piece, wherever the windows end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(large_bytes, "WINDOW_BYTES", 7)

        assert count_text(text, sought) == text.count(sought)
        assert [find_text(text, sought, start) for start in range(9)] == [text.find(sought, at) for at in range(9)]
        assert replace_text(text, sought, b"-") == text.replace(sought, b"-")


@NO_DEADLINE
@given(text=st.binary(max_size=40), start=st.integers(0, 40), end=st.integers(0, 40))
def test_a_part_is_copied_as_a_slice_is(text: bytes, start: int, end: int):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(large_bytes, "WINDOW_BYTES", 7)

        assert cut_out(text, start, end) == text[start:end]
        assert max(map(len, pieces_of(text, start, end)), default=0) <= 7


@NO_DEADLINE
@given(text=st.binary(max_size=40))
def test_a_buffer_is_emptied(text: bytes):
    buffer = bytearray(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(large_bytes, "WINDOW_BYTES", 7)

        assert (take_all(buffer), buffer) == (text, b"")


def test_pieces_that_were_joined_are_freed_one_by_one():
    """Other threads run in between."""
    pieces: list[bytes] = []
    left: list[int] = []

    class Piece(bytes):
        def __del__(self) -> None:
            left.append(len(pieces))

    pieces += [Piece(b"a"), Piece(b"b"), Piece(b"c")]

    assert join_pieces(pieces) == b"abc"
    assert left == [2, 1, 0]


@NO_DEADLINE
@given(text=st.binary(max_size=30) | st.text(max_size=20).map(str.encode))
def test_invalid_utf_8_is_replaced_across_windows(text: bytes):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(large_bytes, "WINDOW_BYTES", 5)

        assert as_utf8(text) == text.decode(errors="replace").encode()


@pytest.mark.parametrize("text", [b"abcdef\xc3", b"\xff", "ab\ud800".encode(errors="surrogatepass")])
def test_invalid_utf_8_is_an_error_if_that_is_asked_for(text: bytes, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(large_bytes, "WINDOW_BYTES", 5)
    with pytest.raises(UnicodeDecodeError):
        as_utf8(text, "strict")


def read_message(message: bytes) -> list[tuple[str | None, bytes]]:
    read = MessageReader(frozenset(), Scrubber("a-secret-key")).read([message])
    return [(lane, unit.raw) for lane, unit in read]


TEXT = b'{"type":"x","text":"' + b"a" * LONG_FRAME_BYTES
USES: dict[str, tuple[bytes, Callable[[bytes], object]]] = {
    "put into a lane": (TEXT + b'"}', lambda text: in_lane(text, "lane")),
    "put into a lane, with letters of two bytes": (TEXT + b'\xc3\xa9"}', lambda text: in_lane(text, "lane")),
    "taken out of a lane, its last field": (TEXT + b'","stream_id":"lane"}', split_lane),
    "taken out of a lane, its first field": (b'{"stream_id":"lane",' + TEXT[1:] + b'"}', split_lane),
    "the data of a frame": (b"data: " + TEXT + b'"}\n\n', payload_of),
    "a frame of several lines": (TEXT[:-9] + b'\n"}', lambda text: frame_of("x", text)),
    "a message of an upstream": (TEXT + b'"}', read_message),
    "a message of an upstream with a lane": (TEXT + b'","stream_id":"lane"}', read_message),
    "a message of an upstream, of several lines": (TEXT + b'",\n"a":1}', read_message),
    "a key is replaced": (TEXT + b"KEY" + TEXT, lambda text: replace_text(text, b"KEY", b"-")),
}


@pytest.mark.parametrize("use", USES)
def test_no_large_part_is_copied_or_read_in_one_call(use: str):
    """Nor searched for a text, which takes as long as copying."""
    text, function = USES[use]
    watched = WatchedBytes(text)

    result = function(watched)

    assert result == function(text)
    assert max(watched.copied) <= WINDOW_BYTES
    assert max(watched.searched_for_text, default=0) < WINDOW_BYTES + 100


@pytest.mark.parametrize("end", [b'"}\n\n', b'"}\n\ndata: {', b'"}'], ids=["whole", "with another one", "the last one"])
def test_a_long_frame_that_came_in_parts_is_not_copied_in_one_call(end: bytes):
    """Neither from the buffer in which it was put together, nor from what is behind it."""
    parser, buffer = SSEParser(frozenset({"x"})), WatchedBuffer()
    parser.feed(b": begun\n\n")
    parser._tail = buffer
    buffer += b"data: "
    units = [*parser.feed(TEXT), *parser.feed(end)]
    units += parser.close() if end == b'"}' else []

    assert [unit.sse for unit in units] == [b"data: " + TEXT + b'"}\n\n']
    assert max(buffer.copied) <= WINDOW_BYTES
