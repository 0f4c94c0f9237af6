"""Whose the objects in relayed answers are, and what is left of a list."""

from typing import Any

import pytest

from proxy.context import Caller
from proxy.state.ownership import Ownership
from proxy.state.references import Kind, Reference
from proxy.state.relayed_answers import RelayedAnswers, last_id, next_page
from proxy.stores.memory import MemoryStore
from proxy.wire.errors import BackendError
from proxy.wire.relay import RelayRequest
from tests.examples import ANNA, make_context

BEN = Caller("ben", "rival")
POST = RelayRequest("POST", "files")


@pytest.fixture
def ownership() -> Ownership:
    return Ownership(MemoryStore())


async def owner(ownership: Ownership, kind: Kind, value: str) -> tuple[str, str] | None:
    """Return team and target of what an id names."""
    (found,) = await ownership.owners([Reference(kind, value, None)], make_context())
    return None if found is None else (found.team, found.target)


@pytest.mark.parametrize("kind", ["file", "vector_store", "container", "skill"])
async def test_ids_that_calls_name_are_bound_under_their_own_kind_too(ownership: Ownership, kind: Any):
    """A call names them in tools and items."""
    created = {"id": "x_1", "object": kind}
    await RelayedAnswers(ownership).bind_created(created, POST, "openai", make_context())

    assert await owner(ownership, kind, "x_1") == await owner(ownership, "object", "x_1") == (ANNA.team, "openai")


@pytest.mark.parametrize("value", [None, 7, "", {"id": "a"}])
async def test_what_is_no_id_is_not_bound(ownership: Ownership, value: Any):
    """The answer passes."""
    await RelayedAnswers(ownership).bind_created({"id": value, "object": "file"}, POST, "openai", make_context())


async def test_an_id_that_cannot_be_protected_is_refused(ownership: Ownership):
    """No later request would be compared with it."""
    answer = {"id": "x" * 1_025, "object": "file"}
    with pytest.raises(BackendError) as caught:
        await RelayedAnswers(ownership).bind_created(answer, POST, "openai", make_context())

    assert (caught.value.status, caught.value.code) == (502, "upstream_invalid_response")


@pytest.mark.parametrize(
    ("answer", "files"),
    [
        ({"id": "b", "object": "batch", "output_file_id": "f_out", "error_file_id": "f_err"}, ["f_out", "f_err"]),
        ({"id": "b", "object": "batch", "output_file_id": None}, []),
        ({"id": "j", "object": "fine_tuning.job", "result_files": ["f_out", "f_err", 7]}, ["f_out", "f_err"]),
        ({"object": "list", "data": [{"id": "f_out", "object": "vector_store.file"}]}, ["f_out"]),
        ({"object": "list", "data": [{"id": "f_out", "object": "container.file"}]}, ["f_out"]),
        ({"object": "list", "data": [{"id": "b", "object": "batch", "output_file_id": "f_out"}]}, ["f_out"]),
    ],
)
async def test_what_a_server_adds_to_an_object_belongs_to_its_team(ownership: Ownership, answer: Any, files: list[str]):
    """Before the caller can name it."""
    await RelayedAnswers(ownership).bind_inner(answer, "openai", make_context())

    assert [name for name in ("f_out", "f_err") if await owner(ownership, "file", name)] == files


async def test_what_a_caller_can_write_binds_nothing(ownership: Ownership):
    """Otherwise it could take what another team has not received yet."""
    written = {
        "id": "vs_1", "object": "vector_store", "metadata": {"output_file_id": "f_1", "id": "f_1"},
        "output_file_id": "f_1", "input_file_id": "f_1", "name": "f_1",
    }  # fmt: skip
    await RelayedAnswers(ownership).bind_inner(written, "openai", make_context())

    assert await owner(ownership, "object", "f_1") is None


def page(*names: str, has_more: bool = False) -> dict[str, Any]:
    data = [{"id": name, "object": "file"} for name in names]
    first, last = (names[0], names[-1]) if names else (None, None)
    return {"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": has_more}


@pytest.mark.parametrize(
    ("denies", "answer", "left"),
    [
        (False, page("mine", "old", "theirs"), page("mine", "old")),
        (True, page("mine", "old", "theirs"), page("mine")),
        (False, page("theirs", has_more=True), page(has_more=True)),
        (False, page("mine"), None),
        (False, page("container"), page()),
        (False, {"files": [{"id": "mine"}, {"id": "theirs"}]}, {"files": [{"id": "mine"}]}),
        (False, [{"id": "theirs"}, {"id": "mine"}], [{"id": "mine"}]),
        (True, {"id": "old", "object": "file"}, None),
        (True, {"data": ["a", {"name": "b"}]}, None),
    ],
)
async def test_a_list_has_nothing_of_other_teams(ownership: Ownership, denies: bool, answer: Any, left: Any):
    """What no team has received is shown where unknown ids are allowed."""
    await ownership.bind_id("object", "mine", "openai", make_context(ANNA))
    await ownership.bind_id("object", "theirs", "openai", make_context(BEN))
    await ownership.bind_id("container", "container", "openai", make_context(BEN))
    before = str(answer)
    answers = RelayedAnswers(ownership, denies_unknown=denies)
    is_changed = await answers.keep_own(answer, "openai", make_context(ANNA))

    assert is_changed == (left is not None)
    assert answer == left or (left is None and str(answer) == before)


async def test_the_results_of_a_listed_object_are_bound(ownership: Ownership):
    """Of the team's own ones only."""
    await ownership.bind_id("object", "batch_1", "openai", make_context(ANNA))
    answer = {
        "data": [
            {"id": "batch_1", "object": "batch", "output_file_id": "f_1"},
            {"id": "batch_old", "object": "batch", "output_file_id": "f_2"},
        ]
    }
    await RelayedAnswers(ownership).keep_own(answer, "openai", make_context(ANNA))

    assert await owner(ownership, "file", "f_1") == (ANNA.team, "openai")
    assert await owner(ownership, "file", "f_2") is None


@pytest.mark.parametrize(
    ("answer", "last"),
    [
        (page("a", "b", has_more=True), "b"),
        (page("a", "b"), None),
        (page(has_more=True), None),
        ({"data": ["a"], "has_more": True}, None),
        ({"data": [{"id": 7}], "has_more": True}, None),
        ([{"id": "a"}], None),
    ],
)
def test_the_next_page_begins_after_the_last_id(answer: Any, last: str | None):
    assert last_id(answer) == last


@pytest.mark.parametrize(
    ("query", "following"),
    [
        ("", "after=f%201"),
        ("limit=2&after=f_0&order=asc", "limit=2&order=asc&after=f%201"),
        ("before=f_9&%61fter=f_0", "after=f%201"),
    ],
)
def test_a_page_is_asked_for_with_its_other_parameters(query: str, following: str):
    assert next_page(query, "f 1") == following
