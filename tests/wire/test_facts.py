"""What is remembered of a body where a policy changes a field of it: what remains true, and nothing else."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.support.tools import offers_server_tools
from proxy.cache.entry import echoed_fields
from proxy.cache.key import hash_fields
from proxy.state.references import Reference, find_references
from proxy.wire.call import PLAIN_FIELDS, Call, unaffected_by
from proxy.wire.errors import HeadgateError
from tests.examples import JSON, NO_DEADLINE

FACTS = (find_references, offers_server_tools, hash_fields, echoed_fields)
IDS = st.sampled_from(
    ["resp_1", "file_1", {"id": "conv_1"}, [{"type": "item_reference", "id": "msg_1"}], {"file_id": "a"}, None]
)
TOOLS = st.sampled_from([[{"type": "web_search"}], [{"type": "function", "name": "f"}], [], None])
NAMES = st.sampled_from([*sorted(PLAIN_FIELDS), "input", "tools", "previous_response_id", "conversation", "text", "x"])
BODIES = st.dictionaries(NAMES, IDS | TOOLS | JSON, max_size=5)
CHANGES = st.lists(st.tuples(NAMES, IDS | TOOLS | JSON, st.booleans()), min_size=1, max_size=3)


def remembered(body: Any) -> Call:
    """Return a call whose body has been received before."""
    call = Call(body)
    call.remember()
    return call


def changed(call: Call, name: str, value: Any, *, is_removed: bool) -> Call:
    return call.without_fields(name) if is_removed else call.with_fields(**{name: value})


def outcome(call: Call, function: Any, *, is_remembered: bool) -> Any:
    """Return what a fact is, or the code of the refusal."""
    try:
        return call.fact(function) if is_remembered else function(Call(call.body))
    except HeadgateError as error:
        return error.code


@NO_DEADLINE
@given(BODIES, CHANGES, st.booleans())
def test_a_fact_that_is_kept_is_the_one_that_would_be_found(body: Any, changes: Any, is_known_before: bool):
    """Of every call on the way, whichever was asked first."""
    calls = [remembered({"model": "m", **body})]
    for name, value, is_removed in changes:
        calls.append(changed(calls[-1], name, value, is_removed=is_removed))
    for call in calls if is_known_before else reversed(calls):
        for function in FACTS:
            assert outcome(call, function, is_remembered=True) == outcome(call, function, is_remembered=False)


def test_a_fact_is_found_once_for_calls_that_differ_in_other_fields():
    """Also if the changed call is asked first, as of a body that is received again; with headers of their own."""
    asked = []

    @unaffected_by(PLAIN_FIELDS)
    def fact(call: Call) -> int:
        asked.append(call.body)
        return len(asked)

    first = remembered({"model": "m", "input": "Hi", "user": "u"})
    named = first.with_fields(safety_identifier="s", metadata={"a": "b"}).without_fields("user")
    again = first.with_headers({"user-agent": "x"}).with_fields(max_output_tokens=5)

    assert [call.fact(fact) for call in (named, first, again, named.with_fields(store=False))] == [1] * 4
    assert named.with_fields(input="Hello").fact(fact) == 2
    assert len(asked) == 2


@pytest.mark.parametrize("name", ["max_output_tokens", "user", "store"])
def test_a_value_that_hides_an_id_is_not_overlooked(name: str):
    """An object in a field that has none says more than a plain value: the first call has the id, the other has not."""
    hidden = remembered({"model": "m", name: {"file_id": "file_1"}})
    plain = hidden.with_fields(**{name: 5})

    assert plain.fact(find_references) == []
    assert hidden.fact(find_references) == [Reference("file", "file_1", name)]
    assert plain.with_fields(**{name: {"file_id": "file_1"}}).fact(find_references) != []
