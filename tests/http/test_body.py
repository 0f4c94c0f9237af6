"""The body of a request: its size, its kind, its encoding, and the caller that asks first."""

import asyncio
import gzip
import tracemalloc
import zlib
from pathlib import Path

import pytest

from tests.conftest import tables_for
from tests.raw import ask, no_tasks_left, post, serves, wire  # noqa: F401
from tests.upstream import FakeUpstream

BODY = b'{"model":"m"}'
LIMIT = 100_000


@pytest.fixture
async def small(start_gate, upstream: FakeUpstream) -> str:
    """A gate that reads bodies up to 100,000 bytes."""
    return await start_gate(tables_for(upstream, server={"max_body_bytes": LIMIT}))


def of_size(size: int) -> bytes:
    return b'{"model":"m","input":"%b"}' % (b"a" * (size - 24))


def in_chunks(body: bytes, size: int) -> bytes:
    chunks = [body[i : i + size] for i in range(0, len(body), size)]
    head = post(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    return head + b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"


@pytest.mark.parametrize("framed", [post, lambda body: in_chunks(body, 7000)], ids=["by length", "in chunks"])
async def test_the_limit_is_the_largest_body_that_passes(small: str, upstream: FakeUpstream, framed):
    """One byte more is 413, however it is framed."""
    passed = await ask(small, framed(of_size(LIMIT)))
    refused = await ask(small, framed(of_size(LIMIT + 1)))

    assert (passed.status, refused.status) == (200, 413)
    assert refused.error["message"] == "The body is too large; the limit is 100000 bytes."
    assert len(upstream.requests) == 1
    assert await serves(small)


async def test_a_length_over_the_limit_is_refused_before_the_body_is_sent(small: str):
    """Nobody has to send what will not be read."""
    async with wire(small) as connection:
        await connection.send(post(of_size(LIMIT + 1))[:-LIMIT])
        answer = await connection.answer()

        assert (answer.status, answer.headers["connection"]) == (413, "close")


async def test_chunks_over_the_limit_are_refused_before_they_end(small: str):
    """What has no length is counted as it comes."""
    async with wire(small) as connection:
        await connection.send(in_chunks(of_size(LIMIT + 1), 7000).removesuffix(b"0\r\n\r\n"))

        assert (await connection.answer()).status == 413


async def test_a_body_of_many_tiny_chunks_is_read(gate: str, upstream: FakeUpstream):
    """One byte a chunk is slow, not wrong."""
    assert (await ask(gate, in_chunks(of_size(5000), 1))).status == 200
    assert len(upstream.requests[0].body["input"]) == 5000 - 24


@pytest.mark.parametrize(
    "kind",
    [
        "application/json",
        "application/json; charset=utf-8",
        "Application/JSON",
        "application/vnd.api+json",
        "text/json",
    ],
)
async def test_every_kind_of_json_is_read(gate: str, kind: str):
    """What follows the kind, a charset for one, is passed over."""
    assert (await ask(gate, post().replace(b"application/json", kind.encode()))).status == 200


async def test_a_body_without_a_kind_is_json(gate: str):
    """Some clients of the field leave it out."""
    assert (await ask(gate, post().replace(b"Content-Type: application/json\r\n", b""))).status == 200


@pytest.mark.parametrize("charset", ["utf-7", "utf-16", "cp037"])
async def test_a_charset_changes_nothing(gate: str, upstream: FakeUpstream, charset: str):
    """The body is UTF-8: a charset must not make other names of the bytes that the policies saw."""
    read = await ask(gate, post().replace(b"json\r\n", f"json; charset={charset}\r\n".encode()))
    refused = await ask(gate, post('{"model":"m"}'.encode("cp037")).replace(b"json\r\n", b"json; charset=cp037\r\n"))

    assert (read.status, refused.status) == (200, 400)
    assert [asked.body["model"] for asked in upstream.requests] == ["m"]


@pytest.mark.parametrize(
    "kind",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/jsonp",
        "a",
        "",
    ],
)
async def test_other_kinds_are_refused(gate: str, upstream: FakeUpstream, kind: str):
    """415; a web page could send the first three to a foreign host without being asked."""
    answer = await ask(gate, post().replace(b"application/json", kind.encode()))

    assert (answer.status, answer.error["type"]) == (415, "invalid_request_error")
    assert upstream.requests == []


ENCODERS = {"gzip": gzip.compress, "GZIP": gzip.compress, "deflate": zlib.compress, "identity": bytes}


@pytest.mark.parametrize(("name", "encode"), ENCODERS.items())
async def test_a_packed_body_is_unpacked(gate: str, upstream: FakeUpstream, name: str, encode):
    """The upstream gets what was in it, and no word of how it came."""
    answer = await ask(gate, post(encode(BODY), content_encoding=name))

    assert answer.status == 200
    assert upstream.requests[0].body["model"] == "m"
    assert "Content-Encoding" not in upstream.requests[0].headers


@pytest.mark.parametrize("name", ["zstd", "br", "compress", "gzip, gzip", "zstd, gzip", "rot13"])
async def test_other_packings_are_refused(gate: str, upstream: FakeUpstream, name: str):
    """415 says which ones would be read."""
    answer = await ask(gate, post(b"packed", content_encoding=name))

    assert (answer.status, answer.error["type"]) == (415, "invalid_request_error")
    assert answer.headers["accept-encoding"] == "gzip, deflate"
    assert answer.headers["x-request-id"].startswith("req_")
    assert upstream.requests == []
    assert await serves(gate)


BROKEN_PACKS = {
    "no gzip": b"packed",
    "cut": gzip.compress(of_size(5000))[:-40],
    "bytes behind it": gzip.compress(BODY) + b"junk",
    "two bodies": gzip.compress(BODY) + gzip.compress(BODY),
}


@pytest.mark.parametrize("packed", BROKEN_PACKS.values(), ids=BROKEN_PACKS)
async def test_a_broken_pack_is_the_callers_mistake(gate: str, upstream: FakeUpstream, packed: bytes):
    """400, and nobody is asked what half of it might mean."""
    answer = await ask(gate, post(packed, content_encoding="gzip"))

    assert (answer.status, answer.error["type"]) == (400, "invalid_request_error")
    assert upstream.requests == []
    assert await serves(gate)


async def test_a_bomb_is_refused_before_it_is_unpacked(small: str, upstream: FakeUpstream):
    """A hundred megabytes in a hundred kilobytes: the limit holds for what comes out, and so does the memory."""
    packer = zlib.compressobj(wbits=31)
    packed = packer.compress(b'{"model":"m","input":"')
    packed += b"".join(packer.compress(b" " * 1_000_000) for _ in range(120)) + packer.flush()
    tracemalloc.start()
    try:
        answer = await ask(small, post(packed[: LIMIT - 1], content_encoding="gzip"))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert (answer.status, answer.error["code"]) == (413, None)
    assert most < 32_000_000
    assert upstream.requests == []
    assert await serves(small)


async def test_a_caller_that_asks_first_is_told_to_go_on(gate: str, upstream: FakeUpstream):
    """`Expect: 100-continue`: the body is sent after the gate's word, and answered as usual."""
    body = of_size(500_000)
    async with wire(gate) as connection:
        await connection.send(post(body, expect="100-continue").removesuffix(body))
        told = await connection.line() + await connection.line()
        await connection.send(body)
        answer = await connection.answer()

    assert told == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert answer.status == 200
    assert len(upstream.requests[0].body["input"]) == 500_000 - 24


REFUSED_AT_ONCE = {
    413: post(of_size(LIMIT + 1), expect="100-continue"),
    415: post(expect="100-continue", content_encoding="rot13"),
    404: post(target="/nowhere", expect="100-continue"),
}


@pytest.mark.parametrize(("status", "data"), REFUSED_AT_ONCE.items())
async def test_a_caller_that_asks_first_is_refused_at_once(small: str, status: int, data: bytes):
    """A body that will not be read is not asked for: the answer comes instead of the 100."""
    async with wire(small) as connection:
        await connection.send(data.partition(b"\r\n\r\n")[0] + b"\r\n\r\n")
        answer = await connection.answer()

        assert (answer.status, answer.headers["connection"]) == (status, "close")


async def test_a_caller_of_http_1_0_is_never_told_to_go_on(gate: str):
    """RFC 9110, 10.1.1: it would take the 100 for its answer."""
    answer = await ask(gate, post(expect="100-continue").replace(b"HTTP/1.1", b"HTTP/1.0"))

    assert (answer.version, answer.status) == ("HTTP/1.0", 200)


async def test_curl_sends_a_large_body(gate: str, upstream: FakeUpstream, tmp_path: Path):
    """curl asks first on its own, for bodies over a megabyte."""
    (tmp_path / "body.json").write_bytes(of_size(3_000_000))
    try:
        curl = await asyncio.create_subprocess_exec(
            "curl", "-sS", "-m", "20", "-o", "/dev/null", "-w", "%{http_code}", f"{gate}/v1/responses",
            "-H", "Content-Type: application/json", "-H", "Expect: 100-continue", "--data-binary", "@body.json",
            cwd=tmp_path, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
    except FileNotFoundError:
        pytest.skip("curl is not installed")
    told, _ = await curl.communicate()

    assert told == b"200"
    assert len(upstream.requests[0].body["input"]) == 3_000_000 - 24
