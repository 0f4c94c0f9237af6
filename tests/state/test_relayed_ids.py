"""The owners of what backends create on relayed paths."""

from typing import Any

import pytest

from proxy.context import Caller
from proxy.state.ownership import Ownership
from proxy.state.references import Reference
from proxy.state.relayed_ids import RelayedIds
from proxy.stores import StoreError
from proxy.stores.memory import MemoryStore
from proxy.wire.call import Call
from proxy.wire.errors import RequestError, Unavailable
from proxy.wire.relay import RelayRequest
from tests.examples import ANNA, make_context

BEN = Caller("ben", "rival")


class BrokenStore(MemoryStore):
    """A store that cannot be reached."""

    async def get(self, key: str) -> bytes | None:
        raise StoreError("no connection")

    async def put(self, key: str, value: bytes, *, ttl_s: float, if_absent: bool = False, group: str = "") -> bool:
        raise StoreError("no connection")


def make_request(path: str = "files", query: str = "", **fields: Any) -> RelayRequest:
    call = Call(fields, operation="relay")
    return RelayRequest("POST", path, query, call=call, body=call.encoded)


async def create(ids: RelayedIds, caller: Caller = ANNA, **answer: Any) -> None:
    """Let a caller create an object."""
    await ids.bind(answer, make_request(), "openai", make_context(caller))


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


@pytest.mark.parametrize("kind", ["file", "vector_store", "container"])
async def test_ids_that_calls_name_are_bound_under_their_own_kind_too(kind: str):
    """A call names them in tools and items."""
    ownership = Ownership(MemoryStore())
    await create(RelayedIds(ownership), id="x_1", object=kind)
    (owner,) = await ownership.owners([Reference(kind, "x_1", None)], make_context())

    assert owner is not None
    assert (owner.team, owner.target) == (ANNA.team, "openai")


@pytest.mark.parametrize("value", [None, 7, "", "x" * 300, {"id": "a"}])
async def test_what_is_no_id_is_not_bound(value: Any):
    """The answer passes."""
    ids = RelayedIds(Ownership(MemoryStore()))
    await create(ids, id=value)

    assert await is_allowed(ids, make_request("files/x"), BEN)


async def test_owners_that_cannot_be_read_refuse_the_request(logged):
    """Those that cannot be written are logged, and the answer passes."""
    ids = RelayedIds(Ownership(BrokenStore()))
    await create(ids, id="file-1", object="file")
    with pytest.raises(Unavailable):
        await ids.check(make_request("files/file-1"), make_context())

    assert "ownership.write_failed" in {line["event"] for line in logged}
