"""The body of a request: its size, type and encoding, and clients that wait for 100 Continue."""

import functools
import gc
import gzip
import random
import tracemalloc
import zlib

import pytest
from aiohttp.streams import EMPTY_PAYLOAD

from proxy.http.request import Request
from proxy.wire.lifting import SENTENCES
from tests.conftest import tables_for
from tests.http.conftest import LIMIT, of_size
from tests.raw import ask, no_tasks_left, post, serves, until, wire  # noqa: F401
from tests.upstream import FakeUpstream, canonical

BODY = b'{"model":"m"}'


def in_chunks(body: bytes, size: int) -> bytes:
    chunks = [body[i : i + size] for i in range(0, len(body), size)]
    head = post(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    return head + b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"


@functools.cache
def compressed_spaces(megabytes: int) -> bytes:
    """A body of so many million bytes and a few more, compressed to a thousandth of that."""
    start, block, end = b'{"model":"m","input":"', b" " * 1_000_000, b'"}'
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    compressed = [
        compressor.compress(part) + compressor.flush(mode)
        for part, mode in ((start, zlib.Z_FULL_FLUSH), (block, zlib.Z_FULL_FLUSH), (end, zlib.Z_FINISH))
    ]
    checksum = functools.reduce(lambda crc, part: zlib.crc32(part, crc), [start, *[block] * megabytes, end], 0)
    size = megabytes * len(block) + len(start) + len(end)
    head, tail = gzip.compress(b"")[:10], checksum.to_bytes(4, "little") + size.to_bytes(4, "little")
    return head + compressed[0] + compressed[1] * megabytes + compressed[2] + tail


@pytest.mark.parametrize("framed", [post, lambda body: in_chunks(body, 7000)], ids=["by length", "in chunks"])
async def test_the_limit_is_the_largest_body_that_passes(limited_gateway: str, upstream: FakeUpstream, framed):
    """One byte more is a 413, with either framing."""
    passed = await ask(limited_gateway, framed(of_size(LIMIT)))
    refused = await ask(limited_gateway, framed(of_size(LIMIT + 1)))

    assert (passed.status, refused.status) == (200, 413)
    assert refused.error["message"] == f"The body is too large; the limit is 100000 bytes. {SENTENCES['operator']}"
    assert len(upstream.requests) == 1
    assert await serves(limited_gateway)


async def test_a_length_over_the_limit_is_refused_before_the_body_is_sent(limited_gateway: str):
    """The client need not send a body that will not be read."""
    async with wire(limited_gateway) as connection:
        await connection.send(post(of_size(LIMIT + 1))[:-LIMIT])
        answer = await connection.answer()

        assert (answer.status, answer.headers["connection"]) == (413, "close")


async def test_chunks_over_the_limit_are_refused_before_they_end(limited_gateway: str):
    """The bytes of a body without a length are counted as they arrive."""
    async with wire(limited_gateway) as connection:
        await connection.send(in_chunks(of_size(LIMIT + 1), 7000).removesuffix(b"0\r\n\r\n"))

        assert (await connection.answer()).status == 413


async def test_a_body_of_many_tiny_chunks_is_read(gateway: str, upstream: FakeUpstream):
    """One byte per chunk is slow but valid."""
    assert (await ask(gateway, in_chunks(of_size(5000), 1))).status == 200
    assert len(upstream.requests[0].body["input"]) == 5000 - 24


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "application/json; charset=utf-8",
        "Application/JSON",
        "application/vnd.api+json",
        "text/json",
    ],
)
async def test_every_json_type_is_read(gateway: str, content_type: str):
    """Parameters of the media type, such as a charset, are ignored."""
    assert (await ask(gateway, post().replace(b"application/json", content_type.encode()))).status == 200


async def test_a_body_without_a_type_is_json_to_a_gateway_with_callers(start_gateway, upstream: FakeUpstream):
    """Some clients omit the header; a key proves that the request does not come from a web page."""
    sha256 = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"  # of "secret"
    gateway = await start_gateway(tables_for(upstream, caller=[{"name": "a", "key_sha256": sha256}]))
    untyped = post(authorization="Bearer secret").replace(b"Content-Type: application/json\r\n", b"")

    assert (await ask(gateway, untyped)).status == 200


async def test_a_body_without_a_type_is_refused_without_callers(gateway: str, upstream: FakeUpstream):
    """It is a 415, because a web page can send such a request to another site without a preflight."""
    answer = await ask(gateway, post().replace(b"Content-Type: application/json\r\n", b""))

    assert (answer.status, answer.error["type"]) == (415, "invalid_request_error")
    assert upstream.requests == []


@pytest.mark.parametrize("charset", ["utf-7", "utf-16", "cp037"])
async def test_a_charset_changes_nothing(gateway: str, upstream: FakeUpstream, charset: str):
    """The body is always read as UTF-8; otherwise policies could check other names than the upstream reads."""
    read = await ask(gateway, post().replace(b"json\r\n", f"json; charset={charset}\r\n".encode()))
    refused = await ask(gateway, post('{"model":"m"}'.encode("cp037")).replace(b"json\r\n", b"json; charset=cp037\r\n"))

    assert (read.status, refused.status) == (200, 400)
    assert [received.body["model"] for received in upstream.requests] == ["m"]


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/jsonp",
        "a",
        "",
    ],
)
async def test_other_types_are_refused(gateway: str, upstream: FakeUpstream, content_type: str):
    """The status is 415; a web page can send the first three to another site without a preflight."""
    answer = await ask(gateway, post().replace(b"application/json", content_type.encode()))

    assert (answer.status, answer.error["type"]) == (415, "invalid_request_error")
    assert upstream.requests == []


def raw_deflate(body: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(body) + compressor.flush()


def stored_deflate(body: bytes) -> bytes:
    compressor = zlib.compressobj(0, wbits=-zlib.MAX_WBITS)
    return compressor.compress(body) + compressor.flush()


DIGITS = random.Random(1).randbytes(1_500_000).hex().encode()  # compressed to a half
ENCODERS = {
    "gzip": ("gzip", functools.partial(gzip.compress, compresslevel=1)),
    "gzip in upper case": ("GZIP", functools.partial(gzip.compress, compresslevel=1)),
    "deflate": ("deflate", zlib.compress),
    "deflate without its zlib header": ("deflate", raw_deflate),
    "deflate that only stores": ("deflate", stored_deflate),
    "identity": ("identity", bytes),
}


@pytest.mark.parametrize(("name", "encode"), ENCODERS.values(), ids=ENCODERS)
@pytest.mark.parametrize("size", [30, 300_000, 3_000_000])
async def test_a_compressed_body_is_decompressed(gateway: str, upstream: FakeUpstream, name: str, encode, size: int):
    """The upstream receives the JSON, without a Content-Encoding, whether one step decompresses it or many."""
    body = b'{"model":"m","input":"%b"}' % DIGITS[:size]
    answer = await ask(gateway, post(encode(body), content_encoding=name))

    assert answer.status == 200
    assert upstream.requests[0].body["input"].encode() == body[22:-2]
    assert "Content-Encoding" not in upstream.requests[0].headers


@pytest.mark.parametrize("name", ["zstd", "br", "compress", "gzip, gzip", "zstd, gzip", "rot13"])
async def test_other_encodings_are_refused(gateway: str, upstream: FakeUpstream, name: str):
    """The 415 names the supported ones."""
    answer = await ask(gateway, post(b"compressed", content_encoding=name))

    assert (answer.status, answer.error["type"]) == (415, "invalid_request_error")
    assert answer.headers["accept-encoding"] == "gzip, deflate"
    assert answer.headers["x-request-id"].startswith("req_")
    assert upstream.requests == []
    assert await serves(gateway)


BROKEN = {
    "not gzip": ("gzip", b"compressed"),
    "nothing": ("gzip", b""),
    "truncated": ("gzip", gzip.compress(of_size(5000))[:-40]),
    "truncated in its checksum": ("gzip", gzip.compress(BODY)[:-1]),
    "a wrong checksum": ("gzip", gzip.compress(BODY)[:-8] + b"\0" * 8),
    "trailing bytes": ("gzip", gzip.compress(BODY) + b"junk"),
    "many trailing bytes": ("gzip", gzip.compress(BODY) + b"j" * 3_000_000),
    "two members": ("gzip", gzip.compress(BODY) + gzip.compress(BODY)),
    "an empty second member": ("gzip", gzip.compress(BODY) + gzip.compress(b"")),
    "not deflate": ("deflate", b"\xff" * 20),
    "truncated deflate": ("deflate", zlib.compress(BODY)[:-1]),
    "truncated raw deflate": ("deflate", raw_deflate(BODY)[:-1]),
    "raw deflate and trailing bytes": ("deflate", raw_deflate(BODY) + b"junk"),
}


@pytest.mark.parametrize(("name", "compressed"), BROKEN.values(), ids=BROKEN)
async def test_a_broken_encoding_is_a_400(gateway: str, upstream: FakeUpstream, name: str, compressed: bytes):
    """A body that cannot be decompressed completely is not used at all, nor is one with more than one member."""
    answer = await ask(gateway, post(compressed, content_encoding=name))

    assert (answer.status, answer.error["type"]) == (400, "invalid_request_error")
    assert answer.error["message"] == "The body is incomplete, or not encoded as its headers say."
    assert upstream.requests == []
    assert await serves(gateway)


async def peak_memory_of(address: str, data: bytes) -> tuple[int, object, int]:
    """Return the answer's status and error, and the peak of memory allocated while it was produced."""
    tracemalloc.start()
    try:
        answer = await ask(address, data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return answer.status, answer.error, peak


async def test_a_bomb_is_refused_before_it_is_decompressed(limited_gateway: str, upstream: FakeUpstream):
    """120 MB in fewer bytes than the limit: the limit applies to the decompressed size and bounds the memory."""
    status, error, peak = await peak_memory_of(limited_gateway, post(compressed_spaces(120), content_encoding="gzip"))

    assert (status, error["code"]) == (413, None)
    assert error["message"] == f"The body is too large; the limit is 100000 bytes. {SENTENCES['operator']}"
    assert peak < 8_000_000
    assert upstream.requests == []
    assert await serves(limited_gateway)


async def test_a_ratio_of_a_thousand_is_refused_below_the_limit(gateway: str, upstream: FakeUpstream):
    """120 MB of spaces in 117 KB are within the limit for bodies, but no real JSON compresses that well."""
    bomb = compressed_spaces(120)
    status, error, peak = await peak_memory_of(gateway, post(bomb, content_encoding="gzip"))

    assert len(bomb) < 125_000
    assert (status, error["type"]) == (413, "invalid_request_error")
    assert error["message"] == "The body is more than 200 times as large as it was compressed; the limit is 200."
    assert peak < 2 * 200 * len(bomb)
    assert upstream.requests == []
    assert await serves(gateway)


async def test_a_small_body_may_have_any_ratio(gateway: str, upstream: FakeUpstream):
    """The ratio is not checked up to 1 MiB."""
    answer = await ask(gateway, post(gzip.compress(of_size(1_000_000)), content_encoding="gzip"))

    assert answer.status == 200
    assert len(upstream.requests[0].body["input"]) == 1_000_000 - 24


@pytest.fixture
def without_collector():
    """Measures memory that is freed without the cyclic garbage collector."""
    gc.collect()
    gc.disable()
    tracemalloc.start()
    yield
    tracemalloc.stop()
    gc.enable()


async def test_an_unfinished_body_is_freed_when_its_client_disconnects(gateway: str, without_collector):
    """Its share of the memory budget is free for other calls as soon as the client disconnects."""
    async with wire(gateway) as connection:
        await connection.send(post(of_size(8_000_000))[:-4_000_000])
        await until(lambda: tracemalloc.get_traced_memory()[0] > 3_500_000)

    await until(lambda: tracemalloc.get_traced_memory()[0] < 1_500_000)


async def test_a_refused_body_is_freed_when_it_is_refused(gateway: str, without_collector):
    """The memory is freed for every reason of a refusal."""
    answer = await ask(gateway, post(b'{"input":"%b"}' % (b"a" * 4_000_000)))

    assert answer.status == 400
    await until(lambda: tracemalloc.get_traced_memory()[0] < 1_500_000)


async def test_the_buffer_of_a_body_is_not_kept_while_the_call_is_answered(gateway: str, upstream: FakeUpstream):
    """It takes a kilobyte, of each of a thousand slow streams."""
    contents = []

    async def look(request):
        contents.extend([each.content for each in gc.get_objects() if type(each) is Request])
        return await canonical(request)

    upstream.answer = look

    assert (await ask(gateway, post(BODY))).status == 200
    assert contents == [EMPTY_PAYLOAD]
