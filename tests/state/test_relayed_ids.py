"""The ids in relayed requests."""

from collections.abc import Sequence
from typing import Any

import pytest

from proxy.context import Caller
from proxy.state.ownership import Ownership
from proxy.state.relayed_answers import RelayedAnswers
from proxy.state.relayed_ids import RelayedIds
from proxy.stores import StoreError
from proxy.stores.memory import MemoryStore
from proxy.wire.call import Call
from proxy.wire.errors import RequestError, Unavailable
from proxy.wire.relay import RelayRequest
from tests.examples import ANNA, make_context
from tests.stores.one_by_one import OneByOneStore

BEN = Caller("ben", "rival")


class BrokenStore(OneByOneStore):
    """A store that cannot be reached."""

    async def get(self, key: str) -> bytes | None:
        raise StoreError("no connection")

    async def put(self, key: str, value: bytes, *, ttl_s: float, if_absent: bool = False, group: str = "") -> bool:
        raise StoreError("no connection")

    async def put_new(self, keys: Sequence[str], value: bytes, *, ttl_s: float, group: str = "") -> Sequence[bool]:
        raise StoreError("no connection")


def make_request(path: str = "files", query: str = "", **fields: Any) -> RelayRequest:
    call = Call(fields, operation="relay")
    return RelayRequest("POST", path, query, call=call, body=call.encoded)


async def create(ids: RelayedIds, caller: Caller = ANNA, target: str = "openai", **answer: Any) -> None:
    """Let a caller create an object."""
    await RelayedAnswers(ids._ownership).bind_created(answer, make_request(), target, make_context(caller))


async def is_allowed(ids: RelayedIds, request: RelayRequest, caller: Caller) -> bool:
    try:
        await ids.check(request, make_context(caller))
    except RequestError:
        return False
    return True


@pytest.mark.parametrize(
    ("request_", "allowed"),
    [
        (make_request("files/file-abc1"), True),
        (make_request("files/file-none1"), False),
        (make_request("chat/completions"), True),
        (make_request("fine_tuning/jobs"), True),
        (make_request("vector_stores", file_ids=["file-none1"]), False),
        (make_request("vector_stores", metadata={"file_id": "file-none1"}), True),
        (make_request("vector_stores", name="file-none1"), True),
        (make_request("vector_stores", user_id="anna"), True),
        (make_request("files", "after=file-none1"), False),
        (make_request("files", "limit=10&order=desc"), True),
    ],
)
async def test_unknown_ids_can_be_denied(request_: RelayRequest, allowed: bool):
    """What looks like an id and has no owner is refused; words of a path and of other fields are none."""
    ids = RelayedIds(Ownership(MemoryStore()), denies_unknown=True)
    await create(ids, id="file-abc1", object="file")

    assert await is_allowed(ids, request_, ANNA) == allowed


async def test_an_unknown_id_is_refused_in_the_same_words_as_a_foreign_one():
    ids = RelayedIds(Ownership(MemoryStore()), denies_unknown=True)
    await create(ids, id="file-abc1", object="file")
    refusals = []
    for caller, store in ((BEN, ids), (BEN, RelayedIds(Ownership(MemoryStore()), denies_unknown=True))):
        with pytest.raises(RequestError) as caught:
            await store.check(make_request("files/file-abc1"), make_context(caller))
        refusals.append((caught.value.status, caught.value.message, caught.value.code, caught.value.param))

    assert refusals[0] == refusals[1]


async def test_owners_that_cannot_be_read_refuse_the_request(logged):
    """Those that cannot be written are logged, and the answer passes."""
    ids = RelayedIds(Ownership(BrokenStore()))
    await create(ids, id="file-1", object="file")
    with pytest.raises(Unavailable):
        await ids.check(make_request("files/file-1"), make_context())

    assert "ownership.write_failed" in {line["event"] for line in logged}


LONG = "file-" + "a1" * 300


@pytest.mark.parametrize(
    "request_",
    [
        make_request("vector_stores", file_ids="file-none1, file-abc1"),
        make_request("vector_stores", file_id="file-none1;file-abc1"),
        make_request("vector_stores", file_ids='["file-abc1"]'),
        make_request("files", "ids=file-none1%2Cfile-abc1"),
        make_request("files/file-none1,file-abc1"),
        make_request("files", f"after={LONG}"),
        make_request("vector_stores", file_ids=[LONG]),
        make_request("vector_stores", file_ids="x1 " * 1_000 + "file-abc1"),
    ],
)
async def test_an_id_in_a_list_of_ids_and_a_long_one_are_found(request_: RelayRequest):
    """Whatever separates them, and in whichever part of the request."""
    ids = RelayedIds(Ownership(MemoryStore()))
    await create(ids, id="file-abc1", object="file")
    await create(ids, id=LONG, object="file")

    assert await is_allowed(ids, request_, ANNA)
    assert not await is_allowed(ids, request_, BEN)


async def test_a_text_in_a_field_of_files_is_no_list_of_ids():
    """However many words it has."""
    ids = RelayedIds(Ownership(MemoryStore()), denies_unknown=True)

    assert await is_allowed(ids, make_request("ocr", file="Once upon a time, " * 5_000), ANNA)
    assert await is_allowed(ids, make_request("ocr", file="data:image/png;base64," + "aGk=" * 100_000), ANNA)


@pytest.mark.parametrize(
    ("path", "keeper"),
    [("files/file-abc1/content", "second"), ("vector_stores/vs_x/files/file-abc1", "second"), ("files", None)],
)
async def test_the_keeper_of_the_object_in_the_path_is_known(path: str, keeper: str | None):
    """A request for it goes there."""
    ids = RelayedIds(Ownership(MemoryStore()))
    await create(ids, target="second", id="file-abc1", object="file")

    assert await ids.check(make_request(path, file_id="file-abc1"), make_context()) == keeper
