"""Which models may be used, and under which names."""

from fnmatch import fnmatchcase
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from policies import PolicyState
from policies.models import Models
from proxy.context import Context
from proxy.wire.call import Call
from proxy.wire.errors import PolicyViolation
from tests.examples import JSON, NO_DEADLINE, apply_policy, make_call, make_context

NAMES = st.sampled_from(
    ["gpt-5.6", "GPT-5.6", "gpt-pro", "gpt-PRO ", "\uff47\uff50\uff54-pro", "gpt-\u200bpro", "fast", "o3", ""]
)
NOT_ALLOWED = ("not_allowed", "model")


def reason_and_param(violation: PolicyViolation) -> tuple[str, str | None]:
    """Return what identifies a refusal, whose message must be short."""
    assert len(violation.message) <= 120
    return violation.reason, violation.param


async def outcome(policy: Models, model: Any, **fields: Any) -> Any:
    """Return the body that passes, or the reason and the param of the refusal."""
    try:
        return (await apply_policy(policy, make_call(model=model, **fields))).body
    except PolicyViolation as violation:
        return reason_and_param(violation)


async def test_every_model_passes_by_default():
    """A policy without keys restricts nothing and changes nothing."""
    call = make_call(model="anything/at:all")

    assert await apply_policy(Models(), call) is call


@pytest.mark.parametrize(
    ("settings", "model", "passes"),
    [
        ({"allow": ["gpt-5", "claude-*"]}, "o3", False),
        ({"allow": ["gpt-5", "claude-*"]}, "my-gpt-5", False),
        ({"allow": ["gpt-5", "claude-*"]}, "gpt-5\nx/o3", False),  # a glob matches the whole name
        ({"allow": ["gpt-5", "claude-*"]}, "claude-4", True),
        ({"allow": ["gpt-?.?-*"]}, "gpt-5.6-mini", True),
        ({"allow": ["gpt-5"]}, "GPT-5", False),  # to routes and upstreams, another case is another model
        ({"allow": []}, "x" * 10_000, False),
        ({"deny": ["*-pro"]}, "gpt-pro", False),
        ({"allow": ["*"], "deny": ["*-pro"]}, "gpt-pro", False),
        ({"deny": ["a?b"]}, "a\u200bb", False),  # a wildcard matches an invisible character too
        ({"deny": ["a?b"]}, "ab", True),
    ],
)
async def test_allow_matches_exactly_and_deny_takes_precedence(settings: dict, model: str, passes: bool):
    """`*` and `?` mean the same as in the selectors of policies and in routes."""
    assert await outcome(Models(**settings), model) == ({"model": model} if passes else NOT_ALLOWED)


@pytest.mark.parametrize(
    "model", ["GPT-PRO", "\uff47\uff50\uff54-pro", "gpt-pro ", "\tgpt-pro", "gpt-\u200bpro", "gpt-pro\u00ad"]
)
async def test_a_denied_name_is_denied_in_any_spelling(model: str):
    """A lenient upstream would serve the denied model under these names."""
    assert await outcome(Models(deny=("Gpt-Pro",)), model) == NOT_ALLOWED


async def test_an_alias_is_replaced_in_its_place():
    """The order of fields and every other field stay the same."""
    call = Call({"a": 1, "model": "fast", "input": "fast"})
    body = (await apply_policy(Models(aliases={"fast": "gpt-mini"}), call)).body

    assert list(body.items()) == [("a", 1), ("model", "gpt-mini"), ("input", "fast")]


async def test_an_alias_stands_for_a_model_and_not_for_another_alias():
    """Aliases are resolved in one step."""
    assert await outcome(Models(aliases={"a": "b", "b": "c"}), "a") == {"model": "b"}


@pytest.mark.parametrize(
    ("alias", "expected"), [("fast", {"model": "gpt-mini"}), ("best", NOT_ALLOWED), ("gpt-x", NOT_ALLOWED)]
)
async def test_allow_and_deny_apply_to_the_model_behind_an_alias(alias: str, expected: Any):
    """The alias itself need not be allowed, and does not help a denied model."""
    policy = Models(allow=("gpt-*",), deny=("gpt-pro",), aliases={"fast": "gpt-mini", "best": "gpt-pro", "gpt-x": "o3"})

    assert await outcome(policy, alias) == expected


async def test_the_message_shows_the_alias_and_not_the_model_behind_it():
    """The names behind aliases are internal."""
    with pytest.raises(PolicyViolation) as caught:
        await apply_policy(Models(deny=("gpt-*",), aliases={"best": "gpt-pro"}), make_call(model="best"))

    assert caught.value.message == "model is 'best'; it is not allowed."


@pytest.mark.parametrize("body", [{"model": value} for value in (None, 7, True, ["gpt-5"], {"id": "gpt-5"})] + [{}])
@pytest.mark.parametrize("policy", [Models(allow=("gpt-*",)), Models(deny=("o*",))])
async def test_a_model_that_is_missing_or_not_a_string_is_refused(policy: Models, body: dict):
    """An upstream's default model is not one that was allowed."""
    with pytest.raises(PolicyViolation) as caught:
        await apply_policy(policy, Call(body | {"input": "Hi"}))

    code = "missing_required_parameter" if body.get("model") is None else None
    assert (caught.value.reason, caught.value.param, caught.value.code) == ("not_a_string", "model", code)


@pytest.mark.parametrize("value", [7, True, ["gpt-5"], {"id": "gpt-5"}])
async def test_a_model_that_is_not_a_string_is_refused_by_every_policy(value: object):
    """Other readers could take it for some model."""
    with pytest.raises(PolicyViolation) as caught:
        await apply_policy(Models(), Call({"model": value}))

    assert caught.value.reason == "not_a_string"


@pytest.mark.parametrize("body", [{}, {"model": None}])
async def test_a_call_without_a_model_passes_where_every_model_is_allowed(body: dict):
    """A prompt template or the default route names the model."""
    call = Call(body)

    assert await apply_policy(Models(aliases={"fast": "gpt-5"}), call) is call


def test_names_are_resolved_like_the_models_of_calls():
    """Lists of models have the names that a caller may send."""
    policy = Models(allow=("gpt-*",), deny=("*-pro",), aliases={"fast": "gpt-5-mini", "best": "gpt-5-pro"})

    assert [*policy.model_names()] == ["fast", "best"]
    assert {name: policy.resolve_model(name) for name in ("fast", "best", "gpt-5", "o5", "gpt-5-pro")} == {
        "fast": "gpt-5-mini", "best": None, "gpt-5": "gpt-5", "o5": None, "gpt-5-pro": None,
    }  # fmt: skip


def test_an_alias_for_an_empty_name_is_a_config_error():
    """An alias stands for a model."""
    with pytest.raises(ValidationError):
        Models(aliases={"fast": ""})


def is_allowed(model: object) -> bool:
    """The rule of the policy below in other words."""
    return isinstance(model, str) and fnmatchcase(model, "gpt-*") and "pro" not in model.lower()


STRICT = Models(allow=("gpt-*",), deny=("*pro*",), aliases={"fast": "gpt-5.6"})


@NO_DEADLINE
@given(JSON | NAMES, JSON)
async def test_what_passes_is_allowed_and_no_other_field_changes(model: Any, other: Any):
    """For any JSON."""
    found = await outcome(STRICT, model, other=other)

    if isinstance(found, tuple):
        assert model != "fast"
        assert not is_allowed(model) or not str(model).isascii()
    else:
        assert is_allowed(found["model"])
        assert found == {"model": "gpt-5.6" if model == "fast" else model, "other": other}


@NO_DEADLINE
@given(JSON | NAMES, JSON, st.booleans())
async def test_the_decision_depends_on_the_model_only(model: Any, other: Any, stream: bool):
    """Not on the order of fields, and not on streaming."""

    async def decide(body: dict[str, Any]) -> Any:
        try:
            return (await apply_policy(STRICT, Call(body))).body["model"]
        except PolicyViolation as violation:
            return violation.reason, violation.message

    first = await decide({"model": model, "other": other})

    assert first == await decide({"stream": stream, "other": other, "model": model})


def test_decisions_that_are_cached_do_not_change():
    """However many names there are; a long name is not cached."""
    check = Models(deny=("*-pro",), aliases={"best": "gpt-5"}).request_check(PolicyState())
    context: Context = make_context()
    calls = [make_call(model=name) for name in [f"model-{number}" for number in range(2000)] + ["x" * 1000]]

    assert [check(call, context) for call in calls] == [check(call, context) for call in calls] == calls
    for _ in range(2):
        assert check(make_call(model="best"), context).body == {"model": "gpt-5"}
        with pytest.raises(PolicyViolation):
            check(make_call(model="gpt-5-pro"), context)


@pytest.mark.parametrize(
    "model", ["gpt-5-pro-2025-10-06", "gpt-5-pro-20251006", "gpt-5-pro@20251006", "GPT-5-Pro-2025-10-06 "]
)
async def test_a_denied_name_denies_its_dated_snapshots(model: str):
    """Providers serve each model under dated names too."""
    with pytest.raises(PolicyViolation):
        await apply_policy(Models(deny=("*-pro",)), make_call(model=model))


@pytest.mark.parametrize("model", ["gpt-5-2025-08-07", "gpt-5-pro-max", "pro-2025-10-06"])
async def test_a_snapshot_of_another_model_is_not_denied(model: str):
    """Only the date is ignored."""
    call = make_call(model=model)

    assert await apply_policy(Models(deny=("*-pro",)), call) is call


@pytest.mark.parametrize("name", ["models", "Models", "fallbacks", "fall_backs", "route", "preset", "extra_body"])
async def test_fields_with_other_models_are_refused_where_models_are_restricted(name: str):
    """Some upstreams take a model from them, which nothing has checked; null is absent."""
    for policy in (Models(deny=("*-pro",)), Models(allow=("gpt-5*",))):
        with pytest.raises(PolicyViolation) as caught:
            await apply_policy(policy, make_call(model="gpt-5", **{name: ["o1-pro"]}))
        assert (caught.value.reason, caught.value.param) == ("alternative_field", name)
        absent = make_call(model="gpt-5", **{name: None})
        assert await apply_policy(policy, absent) is absent
    call = make_call(model="gpt-5", **{name: ["o1-pro"]})
    assert await apply_policy(Models(aliases={"fast": "gpt-5"}), call) is call


def relayed(**fields: Any) -> Call:
    """Return the JSON body of a relayed request."""
    return Call(fields, operation="relay")


async def test_a_relayed_body_need_not_have_a_model():
    """If it has one, that is checked and renamed as in a call; other fields with models are refused."""
    policy = Models(deny=("*-pro",), aliases={"fast": "gpt-5"})
    without = relayed(input="x")

    assert await apply_policy(policy, without) is without
    assert (await apply_policy(policy, relayed(model="fast"))).body == {"model": "gpt-5"}
    for body in (relayed(model="gpt-pro"), relayed(models=["gpt-pro"]), relayed(model=7)):
        with pytest.raises(PolicyViolation):
            await apply_policy(policy, body)
