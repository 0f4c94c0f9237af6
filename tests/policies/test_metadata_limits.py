"""What callers may attach to a response, and what is stamped into it."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from policies.metadata_limits import MetadataLimits
from proxy.rules import Mode, Rule, Rules
from proxy.wire.call import Call, Caller
from proxy.wire.errors import PolicyViolation
from tests.shapes import JSON, PATIENT, call_with, judged_by

ANNA = Caller("anna", "search")


async def verdict(policy: MetadataLimits, metadata: Any) -> Any:
    """The metadata as it is let through, or the reason and the param of the refusal."""
    try:
        return (await judged_by(policy, call_with(ANNA, metadata=metadata))).body["metadata"]
    except PolicyViolation as violation:
        return violation.reason, violation.param


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        None,
        {"project": "x"},
        {"k" * 64: "v" * 512},
        {f"k{i}": "" for i in range(16)},
        {"": "empty keys are the protocol's business"},
        {"\u00fc" * 64: "\U0001f600" * 512},
    ],
)
async def test_the_protocols_own_limits_are_the_default(metadata: Any):
    """16 pairs, 64 characters, 512 characters pass, and not a byte of the call is changed."""
    call = call_with(metadata=metadata, other=1)

    assert await judged_by(MetadataLimits(), call) is call


async def test_a_call_without_metadata_passes():
    """Nothing is added to it."""
    call = call_with()

    assert await judged_by(MetadataLimits(), call) is call


@pytest.mark.parametrize(
    ("metadata", "reason", "param"),
    [
        ({f"k{i}": "" for i in range(17)}, "too_many_pairs", "metadata"),
        ({"k" * 65: "v"}, "key_too_long", "metadata"),
        ({"k": "v" * 513}, "value_too_long", "metadata.k"),
        ({"k": 1}, "value_not_a_string", "metadata.k"),
        ({"k": None}, "value_not_a_string", "metadata.k"),
        ({"k": True}, "value_not_a_string", "metadata.k"),
        ({"k": ["v"]}, "value_not_a_string", "metadata.k"),
        ({"k": {}}, "value_not_a_string", "metadata.k"),
        ([], "not_an_object", "metadata"),
        ([["k", "v"]], "not_an_object", "metadata"),
        ("k=v", "not_an_object", "metadata"),
        ("", "not_an_object", "metadata"),
        (0, "not_an_object", "metadata"),
        (False, "not_an_object", "metadata"),
    ],
)
async def test_what_is_beyond_them_is_refused(metadata: Any, reason: str, param: str):
    """One more than allowed, or another type, is a refusal that names the pair."""
    assert await verdict(MetadataLimits(), metadata) == (reason, param)


@pytest.mark.parametrize(
    ("limits", "metadata", "reason"),
    [
        ({"max_pairs": 0}, {"k": "v"}, "too_many_pairs"),
        ({"max_key_chars": 3}, {"four": "v"}, "key_too_long"),
        ({"max_value_chars": 0}, {"k": "v"}, "value_too_long"),
    ],
)
async def test_every_limit_can_be_set(limits: dict, metadata: dict, reason: str):
    """Also to nothing at all."""
    assert (await verdict(MetadataLimits(**limits), metadata))[0] == reason
    assert await verdict(MetadataLimits(**limits), {}) == {}


async def test_required_keys_must_be_there():
    """With a value that may be empty; nothing else is asked of them."""
    policy = MetadataLimits(required=("project", "cost_centre"))

    assert await verdict(policy, {"project": "x", "cost_centre": ""}) == {"project": "x", "cost_centre": ""}
    for metadata in ({"project": "x"}, {}, None):
        assert await verdict(policy, metadata) == ("required", "metadata")
    with pytest.raises(PolicyViolation, match=r"^metadata lacks the required key 'project'\.$"):
        await judged_by(policy, call_with())


@pytest.mark.parametrize(
    ("key", "verdict_expected"),
    [
        ("project", "passes"),
        ("app_name", "passes"),
        ("app", "not_allowed"),
        ("other", "not_allowed"),
        ("", "not_allowed"),
    ],
)
async def test_only_allowed_keys_may_be_used(key: str, verdict_expected: str):
    """They are globs; the refusal lists them."""
    found = await verdict(MetadataLimits(allowed=("project", "app_*")), {key: "v"})

    assert found == ({key: "v"} if verdict_expected == "passes" else (verdict_expected, f"metadata.{key}"))


async def test_no_key_may_be_allowed():
    """Then no metadata is, but empty."""
    policy = MetadataLimits(allowed=())

    assert await verdict(policy, {"k": "v"}) == ("not_allowed", "metadata.k")
    assert await verdict(policy, {}) == {}
    with pytest.raises(PolicyViolation, match="allowed: none"):
        await judged_by(policy, call_with(metadata={"k": "v"}))


@pytest.mark.parametrize(
    "key", ["secret_a", "Secret_a", "SECRET_", " secret_b", "sec\u200bret_c", "\uff53ecret_d", "\u017fecret_"]
)
async def test_forbidden_keys_are_known_in_every_dress(key: str):
    """Case, width and unseen characters hide nothing."""
    found = await verdict(MetadataLimits(forbidden=("secret_*",)), {key: "v"})

    assert found[0] == "forbidden"


async def test_keys_beside_the_forbidden_ones_pass():
    """A glob forbids what it matches."""
    assert await verdict(MetadataLimits(forbidden=("secret_*",)), {"secret": "v"}) == {"secret": "v"}


async def test_values_must_match_their_pattern():
    """The whole value, in ASCII classes; keys without a pattern are free."""
    policy = MetadataLimits(values={"ticket": r"[A-Z]+-\d+"})

    assert await verdict(policy, {"ticket": "OPS-7", "note": "!"}) == {"ticket": "OPS-7", "note": "!"}
    assert await verdict(policy, {}) == {}
    for value in ("OPS-7 ", "OPS-7\n", "ops-7", "", "OPS-\u0667"):
        assert await verdict(policy, {"ticket": value}) == ("value_pattern", "metadata.ticket")


async def test_marks_of_other_scripts_tell_keys_apart():
    """Two words of Japanese differ by them alone."""
    policy = MetadataLimits(required=("\u30ac\u30b9",), forbidden=("\u30d0\u30b9",))
    sent = {"\u30ac\u30b9": "1", "\u30ab\u30b9": "2", "\u30cf\u30b9": "3"}

    assert await verdict(policy, sent) == sent


@pytest.mark.parametrize("key", ["Ticket", "ticket ", "tick\u200bet", "\uff54icket", "Project", "COST", "ti\u0441ket"])
async def test_a_key_that_only_looks_judged_is_refused(key: str):
    """Somebody downstream could take it for the one that is required, patterned or stamped."""
    policy = MetadataLimits(values={"ticket": r"\d+"}, required=("project",), set={"cost": "1"})

    assert await verdict(policy, {"project": "x", key: "x"}) == (
        "lookalike",
        f"metadata.{key if key.isprintable() else ascii(key)[1:-1]}",
    )


async def test_stamps_stand_over_what_the_caller_sent():
    """Placeholders are filled from the call; everything else the caller sent stays."""
    policy = MetadataLimits(set={"by": "{caller.name}/{caller.team}", "model": "{model}", "gate": "1"})

    assert await verdict(policy, {"by": "somebody", "k": "v"}) == {
        "by": "anna/search",
        "k": "v",
        "model": "m",
        "gate": "1",
    }
    assert await verdict(policy, None) == {"by": "anna/search", "model": "m", "gate": "1"}


async def test_a_stamp_that_is_there_already_changes_nothing():
    """The call passes as it came."""
    call = call_with(ANNA, metadata={"k": "v", "by": "anna"})

    assert await judged_by(MetadataLimits(set={"by": "{caller.name}"}), call) is call


async def test_stamps_are_text_and_no_template():
    """What a caller calls its model cannot reach the other placeholders."""
    policy = MetadataLimits(set={"model": "{model}"})
    call = Call(ANNA, {"model": "{caller.team}{model}"}, {})

    assert (await judged_by(policy, call)).body["metadata"] == {"model": "{caller.team}{model}"}


async def test_stamps_count_and_are_measured():
    """An upstream would count them too."""
    policy = MetadataLimits(max_pairs=2, max_value_chars=4, set={"model": "{model}"})

    assert await verdict(policy, {"a": "", "b": ""}) == ("too_many_pairs", "metadata")
    with pytest.raises(PolicyViolation, match="1 of them set by this gate"):
        await judged_by(policy, call_with(metadata={"a": "", "b": ""}))
    with pytest.raises(PolicyViolation) as caught:
        await judged_by(policy, Call(ANNA, {"model": "a-long-name"}, {}))
    assert (caught.value.reason, caught.value.param) == ("value_too_long", "metadata.model")


async def test_stamps_are_not_bound_by_the_rules_for_callers():
    """A key that only the gate may write is forbidden to callers and stamped all the same."""
    policy = MetadataLimits(forbidden=("gate_*",), allowed=("k",), set={"gate_by": "x"}, values={"gate_by": "y"})

    assert await verdict(policy, {"k": "v"}) == {"k": "v", "gate_by": "x"}
    assert await verdict(policy, {"gate_other": "v"}) == ("forbidden", "metadata.gate_other")
    assert await verdict(policy, {"gate_by": "mine"}) == {"gate_by": "x"}


async def test_the_same_refusal_in_whatever_order_the_pairs_come():
    """A caller who mends one fault after another meets each once."""
    pairs = {"c": 1, "a": "v" * 600, "b": 2}
    found = [await verdict(MetadataLimits(), dict(order)) for order in (pairs.items(), list(pairs.items())[::-1])]

    assert found == [("value_too_long", "metadata.a")] * 2


async def test_a_refusal_shows_no_more_than_a_little():
    """Long and unprintable keys are cut and escaped; the value is never shown."""
    with pytest.raises(PolicyViolation) as caught:
        await judged_by(MetadataLimits(), call_with(metadata={"k\n" + "x" * 60: 7}))

    assert caught.value.param == r"metadata.k\nxxxxxxxxxxxxxxxxxxxxxxxxxxxxx..."


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_pairs": -1}, "greater than or equal to 0"),
        ({"max_pairs": 1, "required": ["a"], "set": {"b": "x"}}, "more keys than max_pairs allows, which is 1"),
        ({"required": ["k" * 65]}, "longer than max_key_chars allows, which is 64"),
        ({"max_key_chars": 1, "set": {"kk": "x"}}, "longer than max_key_chars allows, which is 1"),
        ({"max_value_chars": 2, "set": {"k": "abc{model}"}}, "longer than max_value_chars allows, which is 2"),
        ({"values": {"k": "["}}, "not a regular expression"),
        ({"values": {"k": "a{99999999999}"}}, "not a regular expression"),
        ({"set": {"k": "{caller.key}"}}, "placeholder that is not known"),
        ({"set": {"k": "{"}}, "placeholder that is not known"),
        ({"required": ["k"], "allowed": ["a*"]}, "'k' is required, and allowed or forbidden refuse it"),
        ({"required": ["K"], "forbidden": ["k"]}, "'K' is required, and allowed or forbidden refuse it"),
        ({"maximum": 3}, "Extra inputs are not permitted"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_errors(settings: dict, said: str):
    """Not a policy that refuses every call, nor one that crashes at the first."""
    with pytest.raises(ValidationError) as caught:
        MetadataLimits(**settings)

    assert said in str(caught.value)


def test_a_stamped_key_may_be_required_and_forbidden():
    """The gate itself sees to it."""
    assert MetadataLimits(required=("k",), forbidden=("k",), set={"k": "x"}).set == {"k": "x"}


KEYS = st.sampled_from(["project", "Project", "gate", "secret", "k", "", "\u200bproject", "x" * 70]) | st.text(
    max_size=5
)
METADATA = st.dictionaries(KEYS, st.text(max_size=8) | JSON, max_size=6) | JSON
STRICT = MetadataLimits(
    max_pairs=3,
    max_key_chars=8,
    max_value_chars=5,
    forbidden=("sec*",),
    values={"k": "[a-z]*"},
    set={"gate": "on"},
)


@PATIENT
@given(metadata=METADATA)
async def test_no_shape_breaks_the_policy_and_what_passes_is_within_the_limits(metadata: Any):
    """Any JSON is refused with a reason, or goes out within every limit."""
    found = await verdict(STRICT, metadata)

    assert isinstance(found, tuple) or (
        len(found) <= 3
        and all(isinstance(value, str) and len(value) <= 5 and len(key) <= 8 for key, value in found.items())
        and found["gate"] == "on"
    )


@PATIENT
@given(metadata=METADATA, others=st.dictionaries(st.text(max_size=5).map("x_".__add__), JSON, max_size=3))
async def test_nothing_but_metadata_is_ever_touched(metadata: Any, others: dict[str, Any]):
    """What is let through equals what came in every other field; a refusal is one short sentence."""
    call, told = call_with(ANNA, metadata=metadata, **others), "."
    try:
        passed = await judged_by(STRICT, call)
    except PolicyViolation as violation:
        passed, told = call, violation.message

    assert passed.without_fields("metadata").encoded == call.without_fields("metadata").encoded
    assert told.endswith(".")
    assert len(told) <= 120


@pytest.mark.parametrize(("mode", "told"), [("enforce", "metadata_limits.required"), ("report", None), ("off", None)])
async def test_its_mode_decides_whether_it_refuses(mode: Mode, told: str | None):
    """The policy itself does not know."""
    rules = Rules([Rule("metadata_limits", MetadataLimits(required=("project",)), mode)])
    call = call_with()
    try:
        code = None if (await rules.admit(call)).body == call.body else "changed"
    except PolicyViolation as violation:
        code = violation.code

    assert code == told
