"""Where requests go, and how their heads are written."""

import pytest

from backends.upstream.http1 import Origin, RequestHeads, encode_head, encode_length

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


HEADS = RequestHeads({"Host": "x", "user-agent": "headgate"})
OWN = {"Authorization": "Bearer key"}


@pytest.mark.parametrize("repeats", [1, 2])
def test_a_head_is_the_same_however_often_its_fields_were_sent(repeats: int):
    """What all requests have in common comes first, what differs in each last, before the length of the body."""
    fields = {"user-agent": "sdk", "idempotency-key": "k1", "x-a": "1"}
    for _ in range(repeats):
        head = HEADS.encode("POST", "/v1/responses", fields, OWN, encode_length(3))

    assert head == (
        b"POST /v1/responses HTTP/1.1\r\nHost: x\r\nuser-agent: sdk\r\nx-a: 1\r\nAuthorization: Bearer key\r\n"
        b"idempotency-key: k1\r\nContent-Length: 3\r\n\r\n"
    )


def test_heads_with_other_fields_or_another_key_differ():
    """Neither a target, nor names, nor values, nor what the gateway sends of its own is taken from another request."""
    heads = {
        HEADS.encode("POST", target, fields, own, b"")
        for target in ("/a", "/b")
        for fields in ({}, {"x-a": "1"}, {"x-a": "2"}, {"x-b": "1"}, {"traceparent": "1"}, {"traceparent": "2"})
        for own in (OWN, {"Authorization": "Bearer new"})
    }

    assert len(heads) == 24


def test_a_configured_field_replaces_the_callers():
    """A field that differs in each request, too: it is sent once."""
    head = HEADS.encode("GET", "/", {"x-client-request-id": "a", "user-agent": "b"}, {"x-client-request-id": "c"}, b"")

    assert head == b"GET / HTTP/1.1\r\nHost: x\r\nuser-agent: b\r\nx-client-request-id: c\r\n\r\n"


@pytest.mark.parametrize("name", ["x-a", "traceparent"])
def test_a_field_that_could_be_read_as_more_is_refused_every_time(name: str):
    """Whether it is one of all requests or differs in each."""
    for _ in range(2):
        with pytest.raises(ValueError, match="cannot have"):
            HEADS.encode("GET", "/", {name: "a\r\nx-b: c"}, OWN, b"")
