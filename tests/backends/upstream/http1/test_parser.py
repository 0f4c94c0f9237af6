"""Answers as bytes, in one piece, in pieces of seven bytes, and byte by byte: what they mean, and what is refused."""

import gc
from itertools import product

import httptools
import pytest

from backends.upstream.http1.head import MAX_FIELDS, MAX_HEAD_BYTES, MAX_LINE_BYTES, InvalidHttp
from backends.upstream.http1.parser import MAX_FRAMING_BYTES, MAX_INTERIM_ANSWERS, ResponseParser

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
ANSWER = OK + b"Content-Length: 2\r\n\r\nab"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
SIZES = [1, 7, 2**30]
PIECES = pytest.mark.parametrize("size", SIZES, ids=["bytes", "sevens", "whole"])


def feed(data: bytes, size: int) -> tuple[ResponseParser, bytes]:
    """Return a parser that received these bytes in pieces of a size, and the body that it returned."""
    parser = ResponseParser()
    body = b"".join([parser.feed(data[start : start + size]) for start in range(0, len(data), size)])
    return parser, body


VALID = {
    "a length": (ANSWER, 200, b"ab", True),
    "a length in HTTP/1.0": (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nab", 200, b"ab", False),
    "a length of 0": (OK + b"Content-Length: 0\r\n\r\n", 200, b"", True),
    "a length with spaces around": (OK + b"Content-Length: \t 2 \r\n\r\nab", 200, b"ab", True),
    "no reason": (b"HTTP/1.1 404\r\nContent-Length: 0\r\n\r\n", 404, b"", True),
    "an empty reason": (b"HTTP/1.1 404 \r\nContent-Length: 0\r\n\r\n", 404, b"", True),
    "a reason in Latin-1": (b"HTTP/1.1 404 n\xe9ant\r\nContent-Length: 0\r\n\r\n", 404, b"", True),
    "204": (b"HTTP/1.1 204 No\r\n\r\n", 204, b"", True),
    "204 with a length": (b"HTTP/1.1 204 No\r\nContent-Length: 5\r\n\r\n", 204, b"", True),
    "304": (b"HTTP/1.1 304 No\r\n\r\n", 304, b"", True),
    "the connection is not kept, in chunks": (
        OK + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n", 200, b"ab", False,
    ),
    "the connection is kept, in chunks": (
        OK + b"Connection: Keep-Alive\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n", 200, b"ab", True,
    ),
    "the connection is not kept": (OK + b"Connection: close\r\nContent-Length: 2\r\n\r\nab", 200, b"ab", False),
    "chunks": (CHUNKED + b"2\r\nab\r\n3\r\ncde\r\n0\r\n\r\n", 200, b"abcde", True),
    "chunks in capitals": (OK + b"transfer-encoding: CHUNKED\r\n\r\nA\r\n0123456789\r\n0\r\n\r\n", 200, b"0123456789", True),
    "chunks with extensions": (CHUNKED + b'2;a=b\r\nab\r\n0;c="d"\r\n\r\n', 200, b"ab", True),
    "spaces after the size of a chunk": (CHUNKED + b"2  \r\nab\r\n0\r\n\r\n", 200, b"ab", True),
    "leading zeros of the size of a chunk": (CHUNKED + b"002\r\nab\r\n000\r\n\r\n", 200, b"ab", True),
    "trailers": (CHUNKED + b"2\r\nab\r\n0\r\nX-A: b\r\nX-C: d\r\n\r\n", 200, b"ab", True),
    "spaces around chunked": (OK + b"Transfer-Encoding: \t chunked \t\r\n\r\n2\r\nab\r\n0\r\n\r\n", 200, b"ab", True),
    "no chunks": (CHUNKED + b"0\r\n\r\n", 200, b"", True),
    "interim answers": (CONTINUE * MAX_INTERIM_ANSWERS + ANSWER, 200, b"ab", True),
    "an interim answer with fields": (b"HTTP/1.1 103 Early\r\nLink: </x>\r\nX-Early: 1\r\n\r\n" + ANSWER, 200, b"ab", True),
    "as many fields as allowed": (OK + b"X: y\r\n" * (MAX_FIELDS - 1) + ANSWER[len(OK) :], 200, b"ab", True),
    "a field as long as allowed": (OK + b"X: %b\r\n" % (b"y" * (MAX_LINE_BYTES - 1)) + ANSWER[len(OK) :], 200, b"ab", True),
}  # fmt: skip


@PIECES
@pytest.mark.parametrize(("data", "status", "body", "can_continue"), VALID.values(), ids=VALID)
def test_a_valid_answer_means_the_same_in_any_pieces(data, status, body, can_continue, size):
    """It is complete with its last byte, nothing is left over, and the next answer on the connection is read as well."""
    parser, found = feed(data, size)

    assert (parser.head[0], found, parser.is_complete) == (status, body, True)
    assert (parser.can_continue, parser.has_surplus) == (can_continue, False)
    assert "x-early" not in parser.head[1]
    if can_continue:
        parser.reset()
        assert (parser.has_begun, parser.feed(ANSWER), parser.is_complete) == (False, b"ab", True)


@PIECES
def test_no_answer_is_complete_before_its_last_byte(size: int):
    """Neither `feed` nor the end of the connection completes it."""
    for data, *_ in VALID.values():
        parser, _ = feed(data[:-1], size)

        assert not parser.is_complete
        assert not parser.finish()


@PIECES
@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_a_body_without_a_length_ends_with_the_connection(size: int, version: bytes):
    """The connection cannot be used again."""
    parser, body = feed(b"HTTP/%b 200 OK\r\nConnection: keep-alive\r\n\r\nabc" % version, size)

    assert (body, parser.is_complete, parser.can_continue) == (b"abc", False, False)
    assert parser.finish()


@PIECES
def test_fields_have_names_in_lower_case_and_joined_values(size: int):
    """Spaces around values are removed; trailers are not among the fields; bytes beyond ASCII survive."""
    lines = b"X-A: 1\r\nx-a:2 \r\nX-B:\tb\t\r\nX-C:\r\nX-D: \xc3\xa9\xff\r\nX-E: a\x01\x7f\r\n"
    parser, _ = feed(CHUNKED[:-2] + lines + b"\r\n0\r\nX-T: t\r\n\r\n", size)

    assert parser.head[1] == {
        "transfer-encoding": "chunked", "x-a": "1, 2", "x-b": "b", "x-c": "", "x-d": "é\udcff", "x-e": "a\x01\x7f",
    }  # fmt: skip


def with_field(line: bytes) -> bytes:
    return OK + line + b"\r\nContent-Length: 0\r\n\r\n"


def with_framing(*lines: bytes) -> bytes:
    return OK + b"\r\n".join([*lines, b"", b""]) + b"0\r\n\r\n"


INVALID = {
    "no HTTP": b"hello\r\n\r\n",
    "HTTP/0.9": b"<html></html>",
    "an empty line first": b"\r\n" + ANSWER,
    "another protocol": b"ICE/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    "another version": b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    "version 1.2": b"HTTP/1.2 200 OK\r\nContent-Length: 0\r\n\r\n",
    "a version in lower case": b"http/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "no status": b"HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
    "a status of two digits": b"HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n",
    "a status of four digits": b"HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n",
    "a status of letters": b"HTTP/1.1 2xx OK\r\nContent-Length: 0\r\n\r\n",
    "a status below 100": b"HTTP/1.1 099 OK\r\nContent-Length: 0\r\n\r\n",
    "a signed status": b"HTTP/1.1 +20 OK\r\nContent-Length: 0\r\n\r\n",
    "two spaces before the status": b"HTTP/1.1  200 OK\r\nContent-Length: 0\r\n\r\n",
    "a reason without a space": b"HTTP/1.1 200OK\r\nContent-Length: 0\r\n\r\n",
    "a NUL in the reason": b"HTTP/1.1 200 O\0K\r\nContent-Length: 0\r\n\r\n",
    "a control character in the reason": b"HTTP/1.1 200 O\x01K\r\nContent-Length: 0\r\n\r\n",
    "a reason that is too long": b"HTTP/1.1 200 %b\r\nContent-Length: 0\r\n\r\n" % (b"x" * (MAX_LINE_BYTES + 1)),
    "LF after the status line": b"HTTP/1.1 200 OK\nContent-Length: 0\r\n\r\n",
    "LF after a field": with_field(b"X: a\nY: b"),
    "LF alone everywhere": b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    "LF at the end of the head": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\n",
    "CR in a field": with_field(b"X: a\rY: b"),
    "CR CR LF": with_field(b"X: a\r"),
    "NUL in a field": with_field(b"X: a\0b"),
    "NUL in a name": with_field(b"X\0: a"),
    "a folded field": with_field(b"X: a\r\n b"),
    "a field folded with a tab": with_field(b"X: a\r\n\tb"),
    "a folded first field": OK + b" X: a\r\nContent-Length: 0\r\n\r\n",
    "a space before the colon": with_field(b"X : a"),
    "a space in a name": with_field(b"X Y: a"),
    "a control character in a name": with_field(b"X\x01: a"),
    "a byte beyond ASCII in a name": with_field(b"X\xe9: a"),
    "an empty name": with_field(b": a"),
    "a name that is too long": with_field(b"%b: a" % (b"x" * 257)),
    "no colon": with_field(b"X"),
    "a field that is too long": with_field(b"X: %b" % (b"y" * MAX_LINE_BYTES)),
    "too many fields": with_field(b"\r\n".join([b"X: y"] * MAX_FIELDS)),
    "a head that is too large": OK + b"X: %b\r\n" % (b"y" * 16_000) * 9 + b"\r\n",
    "a head without an end": OK + b"X: y\r\n" * (MAX_HEAD_BYTES // 6),
    "a length twice": with_framing(b"Content-Length: 5", b"Content-Length: 5"),
    "two lengths": with_framing(b"Content-Length: 5", b"Content-Length: 6"),
    "two lengths in a list": with_framing(b"Content-Length: 5, 5"),
    "a signed length": with_framing(b"Content-Length: +5"),
    "a negative length": with_framing(b"Content-Length: -5"),
    "a hexadecimal length": with_framing(b"Content-Length: 0x5"),
    "an empty length": with_framing(b"Content-Length:"),
    "a length with a space inside": with_framing(b"Content-Length: 5 5"),
    "a length with a control character": with_framing(b"Content-Length: 5\x0b"),
    "a length with an underscore": with_framing(b"Content-Length: 1_0"),
    "a length beyond 64 bits": with_framing(b"Content-Length: 99999999999999999999"),
    "chunks and a length": with_framing(b"Transfer-Encoding: chunked", b"Content-Length: 5"),
    "a length and chunks": with_framing(b"Content-Length: 5", b"Transfer-Encoding: chunked"),
    "another coding": with_framing(b"Transfer-Encoding: gzip"),
    "a coding under chunks": with_framing(b"Transfer-Encoding: gzip, chunked"),
    "a coding over chunks": with_framing(b"Transfer-Encoding: chunked, gzip"),
    "chunks twice": with_framing(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
    "chunks and identity": with_framing(b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity"),
    "identity": with_framing(b"Transfer-Encoding: identity"),
    "no coding": with_framing(b"Transfer-Encoding:"),
    "chunks with a control character": with_framing(b"Transfer-Encoding: \x0bchunked"),
    "chunks in HTTP/1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a negative size of a chunk": CHUNKED + b"-2\r\nab\r\n0\r\n\r\n",
    "a prefix of the size of a chunk": CHUNKED + b"0x2\r\nab\r\n0\r\n\r\n",
    "a space before the size of a chunk": CHUNKED + b" 2\r\nab\r\n0\r\n\r\n",
    "no size of a chunk": CHUNKED + b"\r\nab\r\n0\r\n\r\n",
    "letters as the size of a chunk": CHUNKED + b"xy\r\nab\r\n0\r\n\r\n",
    "a size of a chunk beyond 64 bits": CHUNKED + b"fffffffffffffffff\r\nab\r\n0\r\n\r\n",
    "LF after the size of a chunk": CHUNKED + b"2\nab\r\n0\r\n\r\n",
    "LF after a chunk": CHUNKED + b"2\r\nab\n0\r\n\r\n",
    "LF at the end of the chunks": CHUNKED + b"2\r\nab\r\n0\n\n",
    "LF in an extension": CHUNKED + b"2;a\nb\r\nab\r\n0\r\n\r\n",
    "a chunk longer than its size": CHUNKED + b"2\r\nabc\r\n0\r\n\r\n",
    "extensions that are too large": CHUNKED + b"2;%b\r\nab\r\n0\r\n\r\n" % (b"x" * (2 * MAX_FRAMING_BYTES)),
    "trailers that are too large": CHUNKED + b"0\r\n" + b"X: %b\r\n" % (b"y" * 1000) * 140,
    "a NUL in the name of a trailer": CHUNKED + b"0\r\nX\0: a\r\n\r\n",
    "LF after a trailer": CHUNKED + b"0\r\nX: a\nY: b\r\n\r\n",
    "a switch of protocols": b"HTTP/1.1 101 Go\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
    "101 without an upgrade": b"HTTP/1.1 101 Go\r\n\r\n",
    "too many interim answers": CONTINUE * (MAX_INTERIM_ANSWERS + 1) + ANSWER,
    "an interim answer that is not valid": CONTINUE.replace(b"\r\n\r\n", b"\n\n") + ANSWER,
}  # fmt: skip


@pytest.mark.parametrize("data", INVALID.values(), ids=INVALID)
def test_an_invalid_answer_is_refused_in_any_pieces(data: bytes):
    """This includes what other clients repair: each repair is a way to smuggle a second answer."""
    for size in SIZES:
        with pytest.raises(InvalidHttp):
            feed(data, size)


RESTS = [b"x", b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n", ANSWER, b"\0", CONTINUE]


@pytest.mark.parametrize("name", VALID)
def test_bytes_after_an_answer_are_noticed(name: str):
    """They are no part of the body, and the next answer on the connection must not contain them."""
    data, _, body, _ = VALID[name]
    for rest, size in product(RESTS, SIZES):
        parser, found = feed(data + rest, size)

        assert (found, parser.is_complete, parser.has_surplus) == (body, True, True), (rest, size)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_long_stream_of_tiny_chunks_is_not_too_much_framing(size: int):
    """The size of a chunk, its data and its end may each arrive alone."""
    parser = ResponseParser()
    parser.feed(CHUNKED)
    chunk = b"%x\r\n%b\r\n" % (size, b"x" * size)
    for _ in range(40_000):
        assert parser.feed(chunk[:3]) + parser.feed(chunk[3:-2]) + parser.feed(chunk[-2:]) == b"x" * size


@pytest.mark.parametrize("spelling", [b"%x", b"%X"])
@pytest.mark.parametrize("before", [b"", b"3\r\nabc\r\n", b"2;a=b\r\nab\r\n", b"002\r\nab\r\n"])
def test_a_chunk_that_arrives_alone_needs_no_httptools(before: bytes, spelling: bytes, monkeypatch: pytest.MonkeyPatch):
    """Most events of a stream do. What comes before and behind it is read as in any other answer."""
    parser, data = ResponseParser(), b"x" * 250
    begin = parser.feed(CHUNKED + before)
    with monkeypatch.context() as patched:
        patched.setattr(ResponseParser, "_split_body", None)
        alone = [parser.feed(spelling % 250 + b"\r\n" + data + b"\r\n") for _ in range(3)]
    end = parser.feed(b"1\r\ny\r\n0\r\nX: y\r\n\r\n")

    assert (begin, alone, end) == (before.split(b"\r\n")[1] if before else b"", [data] * 3, b"y")
    assert (parser.is_complete, parser.has_surplus) == (True, False)


CHUNK = b"fa\r\n%b\r\n" % (b"x" * 250)
END = b"0\r\n\r\n"


@pytest.mark.parametrize(
    "pieces",
    [
        [CHUNKED + CHUNK + END], [CHUNKED, CHUNK + END], [CHUNKED + CHUNK, END], [CHUNKED, CHUNK, END],
        [CONTINUE + CHUNKED, CHUNK, END],
    ],
)  # fmt: skip
def test_a_body_of_whole_chunks_is_read_to_its_end_without_httptools(
    pieces: list[bytes], monkeypatch: pytest.MonkeyPatch
):
    """The next answer on the connection is read as well, by httptools where it is needed."""
    parser = ResponseParser()
    with monkeypatch.context() as patched:
        patched.setattr(ResponseParser, "_split_body", None)
        body = b"".join(map(parser.feed, pieces))

    assert (body, parser.is_complete, parser.can_continue) == (b"x" * 250, True, True)
    assert not parser.has_surplus
    parser.reset()
    assert (parser.feed(CHUNKED + b"2;a\r\nab\r\n" + END), parser.is_complete) == (b"ab", True)


@pytest.mark.parametrize("answer", [ANSWER, CHUNKED + CHUNK + END])
def test_a_usual_answer_makes_no_parser_of_httptools(answer: bytes):
    """It would take as much memory as all else of a connection."""
    parser, _ = feed(answer, 2**30)
    parser.reset()
    parser.feed(answer)

    assert parser.is_complete
    assert not any(isinstance(each, httptools.HttpResponseParser) for each in gc.get_referents(parser))


@pytest.mark.parametrize("rest", [b"\r\n", b"x", END, ANSWER])
def test_bytes_behind_whole_chunks_are_noticed(rest: bytes):
    """Whether they come with the end or behind it."""
    for pieces in ([CHUNK + END + rest], [CHUNK, END + rest], [CHUNK + END, rest]):
        parser, _ = feed(CHUNKED, len(CHUNKED))
        body = b"".join(map(parser.feed, pieces))

        assert (body, parser.is_complete, parser.has_surplus) == (b"x" * 250, True, True)


def test_the_end_of_a_body_within_a_chunk_is_none():
    """Its size says where a chunk ends."""
    for data in (b"7\r\n\r\n" + END + b"\r\n", b"5\r\n" + END + b"\r\n"):
        parser, body = feed(CHUNKED + data, 2**30)

        assert (body, parser.is_complete) == (data[3:-2], False)


WRONG_CHUNKS = {
    "a size that is too large": b"4\r\nabc\r\n5\r\n",
    "a size that is too small": b"2\r\nabc\r\n",
    "no line end behind it": b"3\r\nabcde",
    "a sign": b"+3\r\nabc\r\n",
    "a prefix": b"0x3\r\nabc\r\n",
    "an underscore": b"1_0\r\n0123456789abcdef\r\n",
    "a space before it": b" 3\r\nabc\r\n",
    "a bare LF": b"3\nabc\r\n",
    "no size": b"\r\nabc\r\n",
    "a line end alone": b"\nabc\r\n",
}


@pytest.mark.parametrize("before", [b"", b"3\r\nabc\r\n"])
@pytest.mark.parametrize("data", WRONG_CHUNKS.values(), ids=WRONG_CHUNKS)
def test_a_chunk_with_wrong_framing_is_refused_where_it_arrives_alone(data: bytes, before: bytes):
    """As in one read with what comes before."""
    pieces = [CHUNKED + before, data, b"\r\n\r\n", b"zz\r\n"]

    with pytest.raises(InvalidHttp):
        [*map(ResponseParser().feed, pieces)]


@pytest.mark.parametrize("status", [204, 304])
def test_a_chunk_that_arrives_alone_is_no_body_of_an_answer_without_one(status: int):
    """It answers nothing that was asked: the connection must not be used again."""
    parser = ResponseParser()
    parser.feed(b"HTTP/1.1 %d No\r\nTransfer-Encoding: chunked\r\n\r\n" % status)

    assert (parser.is_complete, parser.has_surplus) == (True, False)
    assert parser.feed(b"3\r\nabc\r\n") == b""
    assert (parser.is_complete, parser.has_surplus) == (True, True)


def test_trailers_are_bounded_after_many_chunks():
    """A long body earns no unlimited allowance."""
    parser = ResponseParser()
    parser.feed(CHUNKED + b"1\r\nx\r\n" * 100_000 + b"0\r\n")

    with pytest.raises(InvalidHttp):
        parser.feed(b"X: %b\r\n" % (b"y" * 1000) * 200)


@PIECES
@pytest.mark.parametrize("rest", [b"", b"\x81\x01a\r\n\r\n"])
def test_what_follows_an_upgrade_is_passed_on(size: int, rest: bytes):
    """For a request that has asked for it; interim answers may come before."""
    data = CONTINUE + b"HTTP/1.1 101 Go\r\nConnection: x, upgrade\r\nUpgrade: websocket\r\n\r\n" + rest
    parser = ResponseParser(may_upgrade=True)
    found = b"".join([parser.feed(data[start : start + size]) for start in range(0, len(data), size)])

    assert (found, parser.is_upgraded) == (rest, True)
    assert parser.head is not None
    assert (parser.head[0], parser.head[1]["upgrade"]) == (101, "websocket")
