"""Any valid answer, in any pieces, means what it means to `h11`; any bytes mean the same in any pieces."""

import itertools
import re
from typing import NamedTuple

import h11
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.upstream.http1.head import InvalidHttp
from backends.upstream.http1.parser import ResponseParser

TOKEN = st.text("abcXYZ019!#$%&'*+-.^_`|~", min_size=1, max_size=12).map(str.encode)
VISIBLE = [*range(0x21, 0x7F), *range(0x80, 0x100)]
PRINTED = bytes([*VISIBLE, *b" " * (256 - len(VISIBLE))])  # an eighth of all bytes becomes a space
VALUE = st.binary(max_size=26).map(lambda raw: raw.translate(PRINTED).strip(b" "))
FRAMING = (b"content-length", b"transfer-encoding", b"connection", b"upgrade", b"keep-alive")
FIELDS = st.lists(st.tuples(TOKEN.filter(lambda name: name.lower() not in FRAMING), VALUE), max_size=6)
SPACES = st.sampled_from([*itertools.product([b"", b" ", b"\t", b" \t "], repeat=2)])
"""What may stand before a value, and after it."""


class Meaning(NamedTuple):
    """What a receiver understands of an answer."""

    status: int
    fields: dict[bytes, bytes]
    body: bytes
    is_complete: bool
    has_surplus: bool


@st.composite
def heads(draw: st.DrawFn, status: int, fields: list[tuple[bytes, bytes]]) -> bytes:
    """Return the head of an answer, spelled in one of the ways that are allowed."""
    reason = draw(st.sampled_from([b"OK", b"", b"Not \t Found", b"n\xe9ant"]))
    lines = [b"HTTP/1.1 %d %b" % (status, reason)]
    for name, value in fields:
        before, after = draw(SPACES)
        lines.append(b"%b:%b%b%b" % (name, before, value, after))
    return b"\r\n".join([*lines, b"", b""])


@st.composite
def chunked(draw: st.DrawFn, body: bytes) -> bytes:
    """Return a body in chunks of any sizes, some with an extension, perhaps with trailers."""
    encoded = b""
    while body:
        size = draw(st.integers(1, len(body)))
        spelling = draw(st.sampled_from([b"%x", b"%X", b"0%x"])) % size
        encoded += (
            spelling + draw(st.sampled_from([b"", b";a", b";a=b", b';a="b c"'])) + b"\r\n" + body[:size] + b"\r\n"
        )
        body = body[size:]
    fields = draw(st.lists(st.tuples(TOKEN, VALUE), max_size=2)) if draw(st.booleans()) else []
    trailers = b"".join(b"%b: %b\r\n" % field for field in fields)
    return encoded + draw(st.sampled_from([b"0", b"00"])) + b"\r\n" + trailers + b"\r\n"


@st.composite
def answers(draw: st.DrawFn) -> bytes:
    """Return a valid answer, perhaps after interim ones: with a length, in chunks, or until the connection ends."""
    interim = [
        draw(heads(draw(st.sampled_from([100, 102, 103])), draw(FIELDS))) for _ in range(draw(st.integers(0, 2)))
    ]
    status = draw(st.integers(200, 599))
    fields, body = draw(FIELDS), draw(st.binary(max_size=300))
    place = draw(st.integers(0, len(fields)))
    kind = draw(st.sampled_from(["length", "chunks", "open"]))
    if status in (204, 304):
        body = b""
    elif kind == "length":
        fields.insert(place, (draw(st.sampled_from([b"Content-Length", b"content-length"])), b"%d" % len(body)))
    elif kind == "chunks":
        fields.insert(place, (b"Transfer-Encoding", b"chunked"))
        body = draw(chunked(body))
    return b"".join([*interim, draw(heads(status, fields)), body])


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    """Return the pieces of some bytes between cuts, taken modulo their length."""
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in itertools.pairwise(places)]


def split_at_lines(data: bytes, cuts: list[int]) -> list[bytes]:
    """Return the pieces of some bytes between some line ends: many pieces are whole chunks."""
    ends = [line.end() for line in re.finditer(rb"\r\n", data)] or [0]
    return split(data, [ends[cut % len(ends)] for cut in cuts])


def read_with_ours(pieces: list[bytes]) -> Meaning:
    """Return what our parser understands, once the connection has ended. Raises InvalidHttp."""
    parser = ResponseParser()
    body = b"".join([parser.feed(piece) for piece in pieces])
    is_complete = parser.finish()
    status, fields = (0, {}) if parser.head is None else parser.head
    encoded = {name.encode(): value.encode("utf-8", "surrogateescape") for name, value in fields.items()}
    return Meaning(status, encoded, body, is_complete, parser.has_surplus)


def read_with_h11(data: bytes) -> Meaning:
    """Return what h11 understands, once the connection has ended. Raises h11.RemoteProtocolError."""
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="POST", target="/", headers=[("Host", "x"), ("Content-Length", "0")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(data)
    connection.receive_data(b"")
    status, fields, body = 0, {}, b""
    while True:
        match connection.next_event():
            case h11.Response(status_code=status, headers=pairs):
                for name, value in pairs:
                    fields[name] = fields[name] + b", " + value if name in fields else value
            case h11.Data(data=piece):
                body += piece
            case h11.EndOfMessage():
                return Meaning(
                    status, fields, bytes(body), is_complete=True, has_surplus=bool(connection.trailing_data[0])
                )


@given(answers(), st.lists(st.integers(0, 2000), max_size=8))
@settings(max_examples=300, deadline=None)
def test_a_valid_answer_means_what_it_means_to_h11(data: bytes, cuts: list[int]):
    """Status, fields, body and end are the same, wherever the network cuts the answer."""
    meaning = read_with_h11(data)

    assert read_with_ours(split(data, cuts)) == meaning
    for lines in (cuts, [*range(0, 2000, 2)], [*range(1, 2000, 2)]):
        assert read_with_ours(split_at_lines(data, lines)) == meaning


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Return a valid answer in which some bytes were replaced, inserted or removed, perhaps with another one behind."""
    data = bytearray(draw(answers()) + (draw(answers()) if draw(st.booleans()) else b""))
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(data)))
        piece = draw(st.sampled_from([b"", b"\r", b"\n", b"\r\n", b"\0", b" ", b":", b"0", b"chunked", b"\x80"]))
        data[place : place + draw(st.integers(0, 2))] = piece
    return bytes(data)


def outcome(pieces: list[bytes]) -> Meaning | None:
    """Return what our parser understands; None if it refuses."""
    try:
        return read_with_ours(pieces)
    except InvalidHttp:
        return None


@given(damaged(), st.lists(st.integers(0, 2000), max_size=8))
@settings(max_examples=500, deadline=None)
def test_a_damaged_answer_means_the_same_in_any_pieces(data: bytes, cuts: list[int]):
    """It is refused or read, in one piece, byte by byte, or cut anywhere; nothing but InvalidHttp is raised."""
    whole = outcome([data])

    assert outcome(split(data, cuts)) == whole
    for lines in (cuts, [*range(0, 2000, 2)], [*range(1, 2000, 2)]):
        assert outcome(split_at_lines(data, lines)) == whole
    assert outcome([data[place : place + 1] for place in range(len(data))]) == whole


@given(damaged())
@settings(max_examples=500, deadline=None)
def test_a_damaged_answer_that_h11_reads_too_means_the_same(data: bytes):
    """Our parser refuses more, but never finds another status or another body."""
    ours = outcome([data])
    try:
        theirs = read_with_h11(data)
    except h11.RemoteProtocolError:
        return

    if ours is not None and ours.is_complete:
        assert (ours.status, ours.body) == (theirs.status, theirs.body)
