"""Answers of a Redis that no real one gives: every verb fails with StoreError, or reads them as nothing."""

import asyncio
from contextlib import suppress

import pytest
import redis

from proxy.stores import Grant, StoreError
from proxy.stores._redis_faults import FAULTS
from proxy.stores.redis import RedisStore

SECRET = "hunter2-is-the-password"
ANSWERS = {
    "number": b":1\r\n",
    "huge number": b":%b\r\n" % (b"9" * 4000),
    "no number": b":x\r\n",
    "status": b"+OK\r\n",
    "text": b"$3\r\nabc\r\n",
    "nothing": b"$-1\r\n",
    "empty list": b"*0\r\n",
    "short list": b"*1\r\n:1\r\n",
    "list of texts": b"*4\r\n$1\r\na\r\n$1\r\nb\r\n$1\r\nc\r\n$1\r\nd\r\n",
    "list of nothing": b"*4\r\n$-1\r\n$-1\r\n$-1\r\n$-1\r\n",
    "nested list": b"*1\r\n*2\r\n:5\r\n*1\r\n*2\r\n:7\r\n:8\r\n",
    "deep list": b"*1\r\n" * 5000 + b":1\r\n",
    "pair of numbers": b"*2\r\n:0\r\n*1\r\n:1000000000000\r\n",
    "error": b"-ERR unknown user %b\r\n" % SECRET.encode(),
    "error of another kind": b"-%b\r\n" % SECRET.encode(),
    "no protocol": b"!%b\r\n" % SECRET.encode(),
    "half": b"$5\r\nab",
}


async def start_server(answer: bytes) -> asyncio.Server:
    """Start a server that gives this answer to every command but those that open a connection."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while header := await reader.readline():
                parts = []
                for _ in range(int(header[1:])):
                    size = int((await reader.readline())[1:])
                    parts.append((await reader.readexactly(size + 2))[:-2])
                writer.write(b"+OK\r\n" if parts[0] in (b"CLIENT", b"SELECT", b"HELLO") else answer)
        writer.close()

    return await asyncio.start_server(serve, "127.0.0.1", 0)


async def first_key(store: RedisStore) -> str | None:
    return await anext(store.scan("a"), None)


VERBS = {
    "get": (lambda store: store.get("k"), (bytes, type(None))),
    "put": (lambda store: store.put("k", b"v", ttl_s=1), (bool,)),
    "put_new": (lambda store: store.put_new(["k", "l"], b"v", ttl_s=1), (list,)),
    "delete": (lambda store: store.delete("k"), (type(None),)),
    "take": (lambda store: store.take("k", 1, limit=2, window_s=1), (Grant,)),
    "give": (lambda store: store.give("k", 1, window=1), (type(None),)),
    "append": (lambda store: store.append("k", b"v", ttl_s=1), (int,)),
    "tail": (lambda store: store.tail("k"), (list,)),
    "claim": (lambda store: store.claim("k", "me", lease_s=1), (bool,)),
    "release": (lambda store: store.release("k", "me"), (type(None),)),
    "scan": (first_key, (str, type(None))),
    "ready": (lambda store: store.ready(), (bool,)),
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
async def test_an_odd_answer_is_an_error_of_the_store(answer: bytes):
    """Its text is not part of the error: that is logged."""
    async with await start_server(answer) as server:
        url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for name, (verb, kinds) in VERBS.items():
            store, failure = RedisStore(url=url, timeout_ms=200), ""
            await store.start()
            try:
                result = await verb(store)
            except StoreError as error:
                failure = str(error)
            await store.close()

            assert SECRET not in failure
            assert len(failure) < 100
            assert failure or isinstance(result, kinds), name


def test_every_exception_of_the_client_is_a_fault():
    """Also those that are no RedisError, such as that of a cluster none of whose nodes can be reached."""
    classes = [each for each in vars(redis.exceptions).values() if isinstance(each, type)]

    assert [each for each in classes if issubclass(each, Exception) and not issubclass(each, FAULTS)] == []


@pytest.mark.parametrize("options", [{}, {"cluster_nodes": ["127.0.0.1:1"]}, {"sentinels": ["127.0.0.1:1"]}])
async def test_a_redis_that_cannot_be_reached_is_an_error_of_the_store(options: dict[str, list[str]]):
    """In each way in which it is run, and of every verb."""
    for name, (verb, _) in VERBS.items():
        store, failure = RedisStore.model_validate({"url": "redis://127.0.0.1:1/0", **options}), ""
        await store.start()
        try:
            failure = "" if await verb(store) else "not ready"
        except StoreError as error:
            failure = str(error)
        await store.close()

        assert failure, name
