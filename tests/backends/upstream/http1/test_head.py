"""Heads of answers: their lines are remembered, and mean the same whether they are or not."""

import pytest

from backends.upstream.http1.head import MAX_CACHED, InvalidHttp, read_head
from backends.upstream.http1.parser import ResponseParser

OK = b"HTTP/1.1 200 OK\r\n"


def test_lines_beyond_those_that_are_remembered_are_read_as_well():
    """Each answer has an id of its own; so many of them displace the lines that are the same in all."""
    for number in range(3 * MAX_CACHED):
        status, fields = read_head(OK + b"Server: a\r\nX-Id: %d\r\n\r\n" % number)

        assert (status, fields) == (200, {"server": "a", "x-id": str(number)})


@pytest.mark.parametrize("repeats", [1, 2])
@pytest.mark.parametrize("line", [b"HTTP/1.1 099 OK", b"HTTP/2 200 OK", b"HTTP/1.1 200 \x00", b""])
def test_a_first_line_that_is_refused_is_refused_again(line: bytes, repeats: int):
    """It is not remembered either."""
    for _ in range(repeats):
        with pytest.raises(InvalidHttp):
            read_head(line + b"\r\nServer: a\r\n\r\n")


def test_first_lines_are_remembered_to_a_limit():
    """A server may send a reason of its own in each answer."""
    for number in range(3 * MAX_CACHED):
        assert read_head(b"HTTP/1.1 200 OK %d\r\n\r\n" % number) == (200, {})


@pytest.mark.parametrize("repeats", [1, 2])
@pytest.mark.parametrize("line", [b"a b: c", b": c", b"a", b"a\xe9: b", b"a: b\0c", b"a: b\nc", b"a: b\rc", b" a: b"])
def test_a_line_that_is_refused_is_refused_again(line: bytes, repeats: int):
    """It is not remembered."""
    for _ in range(repeats):
        with pytest.raises(InvalidHttp):
            read_head(OK + line + b"\r\n\r\n")


@pytest.mark.parametrize(
    ("lines", "can_continue"),
    [
        (b"", True),
        (b"Connection: keep-alive\r\n", True),
        (b"Connection: Keep-Alive\r\n", True),
        (b"Connection: close\r\n", False),
        (b"Connection: keep-alive, close\r\n", False),
        (b"Proxy-Connection: close\r\n", False),
        (b"Upgrade: h2c\r\n", True),
    ],
)
def test_a_connection_is_kept_unless_a_field_says_otherwise(lines: bytes, can_continue: bool):
    """The body has its length either way, and what follows it is surplus."""
    parser = ResponseParser()
    body = parser.feed(OK + lines + b"Content-Length: 2\r\n\r\na")
    body += parser.feed(b"bX")

    assert (body, parser.is_complete, parser.has_surplus) == (b"ab", True, True)
    assert parser.can_continue is can_continue
