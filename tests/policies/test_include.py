"""What callers may have included in a response."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.include import Include
from proxy.wire.call import Call, Caller
from proxy.wire.errors import PolicyViolation
from tests.shapes import judged_by

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
SOURCES, OUTPUTS, THOUGHTS = (
    "web_search_call.action.sources",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
)
VALUES = st.lists(st.sampled_from([SOURCES, OUTPUTS, THOUGHTS, THOUGHTS.upper(), "reasoning.x", ""]), max_size=5)
QUERIES = st.sampled_from(
    ["", f"include={OUTPUTS}", f"a=b&include%5B%5D={SOURCES}", "include[0]=reasoning.x", "include"]
)
STRICT = Include(allow=("*_call.*", "reasoning.*"), deny=("reasoning.encrypted_content", "*.outputs"))


def call(body: dict[str, Any], query: str = "") -> Call:
    return Call(Caller("c", "t"), {"model": "m", **body}, {}, query)


def told(violation: PolicyViolation) -> tuple[str, str | None]:
    """The reason and the param of a refusal, whose message is short enough to be read."""
    assert len(violation.message) <= 120
    return violation.reason, violation.param


async def verdict(policy: Include, body: dict[str, Any], query: str = "") -> Any:
    """The body as it is let through, or the reason and the param of the refusal."""
    try:
        return (await judged_by(policy, call(body, query))).body
    except PolicyViolation as violation:
        return told(violation)


@pytest.mark.parametrize("body", [{}, {"include": None}, {"include": []}, {"include": [SOURCES, "reasoning.x"]}])
async def test_what_is_allowed_passes_untouched(body: dict[str, Any]):
    """Absent, null and empty ask for nothing."""
    asked = call(body)

    assert await judged_by(STRICT, asked) is asked
    assert await judged_by(Include(), asked) is asked


@pytest.mark.parametrize("value", ["message.output_text.logprobs", "", "x_call", SOURCES.upper()])
async def test_a_value_that_allow_leaves_out_is_refused(value: str):
    """The param says which one."""
    assert await verdict(STRICT, {"include": [SOURCES, value]}) == ("not_allowed", "include[1]")


@pytest.mark.parametrize(
    "value", [OUTPUTS, THOUGHTS, THOUGHTS.title(), f" {THOUGHTS}", "reasoning.\u200bencrypted_content"]
)
async def test_deny_wins_over_allow_and_over_tricks_of_spelling(value: str):
    """An upstream that forgives more than we do would read the denied value."""
    policy = Include(deny=("reasoning.Encrypted_content", "*.outputs"))

    assert await verdict(policy, {"include": [value]}) == ("not_allowed", "include[0]")


async def test_deny_takes_its_globs_by_the_letter_too():
    """A glob over an unseen character finds it."""
    assert await verdict(Include(deny=("a?b",)), {"include": ["a\u200bb"]}) == ("not_allowed", "include[0]")


async def test_denied_values_are_removed_if_the_config_says_so():
    """The call goes on without them, everything else as it was."""
    policy = Include(deny=("reasoning.*",), on_deny="remove")
    body = await verdict(policy, {"include": [THOUGHTS, SOURCES, "reasoning.x", SOURCES], "input": [THOUGHTS]})

    assert body == {"model": "m", "include": [SOURCES, SOURCES], "input": [THOUGHTS]}


@pytest.mark.parametrize("on_deny", ["reject", "remove"])
@pytest.mark.parametrize("asked", [THOUGHTS, 7, True, False, 0, "", {}, {"0": THOUGHTS}])
async def test_what_is_no_list_is_refused(asked: object, on_deny: Any):
    """A forgiving upstream might read a single value as a list of one."""
    assert await verdict(Include(on_deny=on_deny), {"include": asked}) == ("not_an_array", "include")


@pytest.mark.parametrize("on_deny", ["reject", "remove"])
@pytest.mark.parametrize("value", [None, 7, True, [THOUGHTS], {"value": THOUGHTS}])
async def test_an_entry_that_is_no_string_is_refused(value: object, on_deny: Any):
    """Nothing but a string is a value of include."""
    assert await verdict(Include(on_deny=on_deny), {"include": [SOURCES, value]}) == ("not_a_string", "include[1]")


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
    """Queries are sent on as they came; so they are refused, never changed."""
    policy = Include(deny=(OUTPUTS,), on_deny=on_deny)

    assert await verdict(policy, {}, query) == ("not_allowed", "include")


@pytest.mark.parametrize("query", ["", "include=", "include", f"include={SOURCES}", f"included={OUTPUTS}", "%ff&&=;"])
async def test_other_queries_pass(query: str):
    """Only `include` is looked at, and what it allows passes."""
    assert await verdict(STRICT, {}, query) == {"model": "m"}


async def test_a_long_value_is_shortened_in_the_message():
    """The caller's text is shown, not echoed whole."""
    assert await verdict(STRICT, {"include": ["x" * 10_000]}) == ("not_allowed", "include[0]")


def may_be_asked(value: str) -> bool:
    """The rule of STRICT, said another way."""
    return (
        ("_call." in value or value.startswith("reasoning.")) and value.lower() != THOUGHTS and ".outputs" not in value
    )


@settings(deadline=None)
@given(JSON | VALUES, JSON, QUERIES, st.sampled_from(["reject", "remove"]))
async def test_what_passes_is_allowed_and_nothing_else_changes(asked: Any, other: Any, query: str, on_deny: Any):
    """No JSON makes the policy stumble."""
    policy = STRICT.model_copy(update={"on_deny": on_deny})
    body = {"model": "m", "include": asked, "other": other}
    passed = await verdict(policy, body, query)

    if not isinstance(passed, tuple):
        kept = [value for value in asked or [] if may_be_asked(value)]
        assert passed == body | {"include": asked if asked is None else kept}
        assert on_deny == "remove" or kept == (asked or [])
        assert OUTPUTS not in query


@settings(deadline=None)
@given(JSON | VALUES, QUERIES, st.booleans())
async def test_the_decision_depends_on_the_values_alone(asked: Any, query: str, stream: bool):
    """Neither the order of fields nor streaming moves it."""
    one = await verdict(STRICT, {"include": asked, "input": "Hi"}, query)
    two = await verdict(STRICT, {"stream": stream, "input": "Hi", "include": asked}, query)

    assert two == (one if isinstance(one, tuple) else one | {"stream": stream})
