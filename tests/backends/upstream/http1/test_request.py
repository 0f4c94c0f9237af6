"""Where requests go, and how their heads are written."""

import pytest

from backends.upstream.http1 import Origin, encode_head

ORIGINS = {
    "http://a.example": ("a.example", 80, False, "a.example"),
    "https://a.example/v1": ("a.example", 443, True, "a.example"),
    "http://a.example:80": ("a.example", 80, False, "a.example"),
    "http://a.example:8080/v1": ("a.example", 8080, False, "a.example:8080"),
    "https://a.example:80": ("a.example", 80, True, "a.example:80"),
    "http://127.0.0.1:1": ("127.0.0.1", 1, False, "127.0.0.1:1"),
    "http://[::1]:8080/v1": ("::1", 8080, False, "[::1]:8080"),
    "https://[2001:db8::1]": ("2001:db8::1", 443, True, "[2001:db8::1]"),
    "https://bücher.example": ("xn--bcher-kva.example", 443, True, "xn--bcher-kva.example"),
}


@pytest.mark.parametrize(("url", "origin"), ORIGINS.items())
def test_an_origin_has_a_host_a_port_and_a_name(url: str, origin: tuple[str, int, bool, str]):
    """`Host` has the port only where it is not the usual one."""
    assert Origin.of(url) == Origin(*origin)


@pytest.mark.parametrize(
    "url", ["http://", "http://:80", "http://a:0", "http://a:99999", "http://a:b", "http://[::1", "http://a b", "http://a\0b"]
)  # fmt: skip
def test_an_origin_that_cannot_be_reached_is_refused(url: str):
    """The config is then refused at the start."""
    with pytest.raises(ValueError, match=r".+"):
        Origin.of(url)


def test_a_head_is_written_as_it_is_given():
    """Bytes that are not UTF-8 were received as surrogates, and are sent as received."""
    head = encode_head("POST", "/v1/responses?a=%zz", {"Host": "x", "X-A": "b\tc", "x-b": "é\udcff", "x-c": ""})

    assert head == b"POST /v1/responses?a=%zz HTTP/1.1\r\nHost: x\r\nX-A: b\tc\r\nx-b: \xc3\xa9\xff\r\nx-c: \r\n\r\n"


@pytest.mark.parametrize(
    ("target", "fields"),
    [
        ("/a b", {}), ("/a\r\nX: y", {}), ("/a\n", {}), ("/a\0", {}), ("/a\x7f", {}), ("/a\t", {}), ("/", {"X": "a\r\nY: b"}),
        ("/", {"X": "a\n"}), ("/", {"X": "a\r"}), ("/", {"X": "a\0"}), ("/", {"X\r\nY": "a"}), ("/", {"X\n": "a"}),
        ("/", {"X Y": "a"}), ("/", {"X:": "a"}), ("/", {"": "a"}),
    ],
)  # fmt: skip
def test_a_part_that_could_end_its_line_is_refused(target: str, fields: dict[str, str]):
    """Otherwise a value could become a field or a second request."""
    with pytest.raises(ValueError, match="character"):
        encode_head("GET", target, fields)
