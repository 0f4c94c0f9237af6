"""What callers may have included in a response."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.include import Include
from tests.examples import JSON, NO_DEADLINE, apply_policy, make_call, outcome_of

SOURCES, OUTPUTS, REASONING = (
    "web_search_call.action.sources",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
)
VALUES = st.lists(st.sampled_from([SOURCES, OUTPUTS, REASONING, REASONING.upper(), "reasoning.x", ""]), max_size=5)
QUERIES = st.sampled_from(
    ["", f"include={OUTPUTS}", f"a=b&include%5B%5D={SOURCES}", "include[0]=reasoning.x", "include"]
)
STRICT = Include(allow=("*_call.*", "reasoning.*"), deny=("reasoning.encrypted_content", "*.outputs"))


async def outcome(policy: Include, body: dict[str, Any], query: str = "") -> Any:
    return await outcome_of(policy, make_call(**body, _query=query))


@pytest.mark.parametrize("policy", [Include(), STRICT])
@pytest.mark.parametrize("body", [{}, {"include": None}, {"include": []}, {"include": [SOURCES, "reasoning.x"]}])
async def test_allowed_values_pass_untouched(body: dict[str, Any], policy: Include):
    """Absent, null and empty request nothing."""
    call = make_call(**body)

    assert await apply_policy(policy, call) is call


@pytest.mark.parametrize("value", ["message.output_text.logprobs", "", "x_call", SOURCES.upper(), "x" * 10_000])
async def test_a_value_that_is_not_in_allow_is_refused(value: str):
    """The param says which one; a long value is cut in the message."""
    assert await outcome(STRICT, {"include": [SOURCES, value]}) == ("not_allowed", "include[1]")


@pytest.mark.parametrize(
    "value", [OUTPUTS, REASONING, REASONING.title(), f" {REASONING}", "reasoning.\u200bencrypted_content", "a\u200bb"]
)
async def test_a_denied_value_is_denied_in_any_spelling(value: str):
    """A lenient upstream would read the denied value; a wildcard matches an invisible character too."""
    policy = Include(deny=("reasoning.Encrypted_content", "*.outputs", "a?b"))

    assert await outcome(policy, {"include": [value]}) == ("not_allowed", "include[0]")


async def test_denied_values_can_be_removed_instead():
    """The call is sent on without them; every other field stays the same."""
    policy = Include(deny=("reasoning.*",), on_deny="remove")
    body = await outcome(policy, {"include": [REASONING, SOURCES, "reasoning.x", SOURCES], "input": [REASONING]})

    assert body == {"model": "m", "include": [SOURCES, SOURCES], "input": [REASONING]}


@pytest.mark.parametrize("on_deny", ["reject", "remove"])
@pytest.mark.parametrize("value", [REASONING, 7, True, False, 0, "", {}, {"0": REASONING}])
async def test_anything_but_a_list_is_refused(value: object, on_deny: Any):
    """A lenient upstream might read a single value as a list of one."""
    assert await outcome(Include(on_deny=on_deny), {"include": value}) == ("not_an_array", "include")


@pytest.mark.parametrize("on_deny", ["reject", "remove"])
@pytest.mark.parametrize("value", [None, 7, True, [REASONING], {"value": REASONING}])
async def test_an_entry_that_is_not_a_string_is_refused(value: object, on_deny: Any):
    """Only strings are values of include."""
    assert await outcome(Include(on_deny=on_deny), {"include": [SOURCES, value]}) == ("not_a_string", "include[1]")


@pytest.mark.parametrize(
    "query",
    [
        f"include={OUTPUTS}",
        f"include={SOURCES},{OUTPUTS}",
        f"a=b&include%5B%5D={SOURCES}&include%5B%5D={OUTPUTS}",
        f"include[0]={OUTPUTS}",
        f"%69nclude={OUTPUTS}",
    ],
)
@pytest.mark.parametrize("on_deny", ["reject", "remove"])
async def test_a_denied_value_in_the_query_is_refused(query: str, on_deny: Any):
    """A query is sent on as received, so nothing is removed from it."""
    policy = Include(deny=(OUTPUTS,), on_deny=on_deny)

    assert await outcome(policy, {}, query) == ("not_allowed", "include")


@pytest.mark.parametrize("query", ["", "include=", "include", f"include={SOURCES}", f"included={OUTPUTS}", "%ff&&=;"])
async def test_other_queries_pass(query: str):
    """Only `include` is checked, and its allowed values pass."""
    assert await outcome(STRICT, {}, query) == {"model": "m"}


def is_allowed(value: str) -> bool:
    """The rule of STRICT in other words."""
    return (
        ("_call." in value or value.startswith("reasoning.")) and value.lower() != REASONING and ".outputs" not in value
    )


@NO_DEADLINE
@given(JSON | VALUES, JSON, QUERIES, st.sampled_from(["reject", "remove"]))
async def test_what_passes_is_allowed_and_no_other_field_changes(value: Any, other: Any, query: str, on_deny: Any):
    """For any JSON."""
    policy = STRICT.model_copy(update={"on_deny": on_deny})
    body = {"model": "m", "include": value, "other": other}
    passed = await outcome(policy, body, query)

    if not isinstance(passed, tuple):
        kept = [entry for entry in value or [] if is_allowed(entry)]
        assert passed == body | {"include": value if value is None else kept}
        assert on_deny == "remove" or kept == (value or [])
        assert OUTPUTS not in query


@NO_DEADLINE
@given(JSON | VALUES, QUERIES, st.booleans())
async def test_the_decision_depends_on_the_values_only(value: Any, query: str, stream: bool):
    """Not on the order of fields, and not on streaming."""
    first = await outcome(STRICT, {"include": value, "input": "Hi"}, query)
    second = await outcome(STRICT, {"stream": stream, "input": "Hi", "include": value}, query)

    assert second == (first if isinstance(first, tuple) else first | {"stream": stream})
