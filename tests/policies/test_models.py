"""Which models may be asked, and by what names."""

from fnmatch import fnmatchcase
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from policies.models import Models
from proxy.wire.call import Call, Caller
from proxy.wire.errors import PolicyViolation
from tests.shapes import judged_by

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from(
    ["gpt-5.6", "GPT-5.6", "gpt-pro", "gpt-PRO ", "\uff47\uff50\uff54-pro", "gpt-\u200bpro", "fast", "o3", ""]
)


def call(body: dict[str, Any]) -> Call:
    return Call(Caller("c", "t"), body, {})


def told(violation: PolicyViolation) -> tuple[str, str | None]:
    """The reason and the param of a refusal, whose message is short enough to be read."""
    assert len(violation.message) <= 120
    return violation.reason, violation.param


async def verdict(policy: Models, body: dict[str, Any]) -> Any:
    """The body as it is let through, or the reason and the param of the refusal."""
    try:
        return (await judged_by(policy, call(body))).body
    except PolicyViolation as violation:
        return told(violation)


async def test_every_model_passes_by_default():
    """A policy without keys restricts nothing and changes nothing."""
    asked = call({"model": "anything/at:all"})

    assert await judged_by(Models(), asked) is asked


@pytest.mark.parametrize("model", ["o3", "my-gpt-5", "gpt-5\nx/o3"])
async def test_a_model_that_allow_leaves_out_is_refused(model: str):
    """A glob of `allow` stands for the whole name."""
    assert await verdict(Models(allow=("gpt-5", "claude-*")), {"model": model}) == ("not_allowed", "model")


async def test_globs_of_allow_stand_for_any_characters():
    """`*` and `?` are what they are in the selectors of policies and routes."""
    body = {"model": "gpt-5.6-mini"}

    assert await verdict(Models(allow=("gpt-?.?-*",)), body) == body


async def test_deny_wins():
    """What both lists name is refused."""
    assert await verdict(Models(allow=("*",), deny=("*-pro",)), {"model": "gpt-pro"}) == ("not_allowed", "model")


@pytest.mark.parametrize(
    "model", ["GPT-PRO", "\uff47\uff50\uff54-pro", "gpt-pro ", "\tgpt-pro", "gpt-\u200bpro", "gpt-pro\u00ad"]
)
async def test_a_name_that_only_looks_different_is_denied_all_the_same(model: str):
    """An upstream that forgives more than we do would read the denied name."""
    assert await verdict(Models(deny=("Gpt-Pro",)), {"model": model}) == ("not_allowed", "model")


async def test_deny_takes_its_globs_by_the_letter_too():
    """A glob over an unseen character finds it."""
    assert await verdict(Models(deny=("a?b",)), {"model": "a\u200bb"}) == ("not_allowed", "model")


async def test_allow_takes_names_by_the_letter():
    """A name in another case is another name to routes and upstreams."""
    assert await verdict(Models(allow=("gpt-5",)), {"model": "GPT-5"}) == ("not_allowed", "model")


async def test_an_alias_is_replaced_where_the_name_stood():
    """The order of fields stays, and so does everything else."""
    body = await verdict(Models(aliases={"fast": "gpt-mini"}), {"a": 1, "model": "fast", "input": "fast"})

    assert list(body.items()) == [("a", 1), ("model", "gpt-mini"), ("input", "fast")]


async def test_an_alias_stands_for_one_model_and_not_for_another_alias():
    """Aliases are looked up once."""
    assert await verdict(Models(aliases={"a": "b", "b": "c"}), {"model": "a"}) == {"model": "b"}


async def test_the_real_name_is_judged():
    """An alias is no way around the lists, and it need not stand in them."""
    policy = Models(allow=("gpt-*",), deny=("gpt-pro",), aliases={"fast": "gpt-mini", "best": "gpt-pro", "gpt-x": "o3"})

    assert await verdict(policy, {"model": "fast"}) == {"model": "gpt-mini"}
    assert await verdict(policy, {"model": "best"}) == ("not_allowed", "model")
    assert await verdict(policy, {"model": "gpt-x"}) == ("not_allowed", "model")


async def test_the_message_shows_what_was_asked_and_not_what_stands_behind_it():
    """The organisation's real names are its own."""
    with pytest.raises(PolicyViolation) as refused:
        await judged_by(Models(deny=("gpt-*",), aliases={"best": "gpt-pro"}), call({"model": "best"}))

    assert refused.value.message == "model is 'best'; it is not allowed."


@pytest.mark.parametrize("model", [None, 7, True, ["gpt-5"], {"id": "gpt-5"}])
async def test_a_model_that_is_no_string_is_refused(model: object):
    """Nothing but a string names a model."""
    assert await verdict(Models(), {"model": model}) == ("not_a_string", "model")


async def test_a_model_that_is_missing_is_refused():
    """An upstream's default is not what was allowed."""
    assert await verdict(Models(), {"input": "Hi"}) == ("not_a_string", "model")


async def test_a_long_name_is_shortened_in_the_message():
    """The caller's text is shown, not echoed whole."""
    assert await verdict(Models(allow=()), {"model": "x" * 10_000}) == ("not_allowed", "model")


def test_an_alias_for_nothing_is_a_mistake():
    """An alias stands for a name."""
    with pytest.raises(ValidationError):
        Models(aliases={"fast": ""})


def may_be_asked(model: object) -> bool:
    """The rule of the policy below, said another way."""
    return isinstance(model, str) and fnmatchcase(model, "gpt-*") and "pro" not in model.lower()


@settings(deadline=None)
@given(JSON | NAMES, JSON)
async def test_what_passes_is_allowed_and_nothing_else_changes(model: Any, other: Any):
    """No JSON makes the policy stumble."""
    policy = Models(allow=("gpt-*",), deny=("*pro*",), aliases={"fast": "gpt-5.6"})
    body = {"model": model, "other": other}
    found = await verdict(policy, body)

    if isinstance(found, tuple):
        assert model != "fast"
        assert not may_be_asked(model) or not str(model).isascii()
    else:
        assert may_be_asked(found["model"])
        assert found == body | {"model": "gpt-5.6" if model == "fast" else model}


@settings(deadline=None)
@given(JSON | NAMES, JSON, st.booleans())
async def test_the_decision_depends_on_the_model_alone(model: Any, other: Any, stream: bool):
    """Neither the order of fields nor streaming moves it."""
    policy = Models(allow=("gpt-*",), deny=("*pro*",), aliases={"fast": "gpt-5.6"})
    one = await verdict(policy, {"model": model, "other": other})
    two = await verdict(policy, {"stream": stream, "other": other, "model": model})

    assert two == (one if isinstance(one, tuple) else one | {"stream": stream})


def test_names_that_passed_pass_again_however_many_there_are():
    """Only some are remembered, and none that is no name; what is denied or renamed is so each time."""
    judge = Models(deny=("*-pro",), aliases={"best": "gpt-5"}).judging()
    names = [f"model-{number}" for number in range(2000)] + ["x" * 1000]
    asked = [call({"model": name}) for name in names]

    assert [judge(each) for each in asked] == [judge(each) for each in asked] == asked
    for _ in range(2):
        assert judge(call({"model": "best"})).body == {"model": "gpt-5"}
        with pytest.raises(PolicyViolation):
            judge(call({"model": "gpt-5-pro"}))
