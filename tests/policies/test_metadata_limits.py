"""What callers may attach to a response, and what the gateway sets in it."""

import random
import re
from fnmatch import fnmatchcase
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from policies.metadata_limits import MetadataLimits
from proxy.wire.errors import PolicyViolation
from tests.examples import JSON, NO_DEADLINE, apply_policy, make_call


async def outcome(policy: MetadataLimits, metadata: Any, **fields: Any) -> Any:
    """Return the metadata that passes, or the reason and the param of the refusal."""
    try:
        return (await apply_policy(policy, make_call(metadata=metadata, **fields))).body["metadata"]
    except PolicyViolation as violation:
        return violation.reason, violation.param


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"metadata": None},
        {"metadata": {}},
        {"metadata": {"project": "x"}},
        {"metadata": {"k" * 64: "v" * 512}},
        {"metadata": {"k" * 64: "v" * 512, "l" * 64: "w" * 512}},
        {"metadata": {f"k{i}": "" for i in range(16)}},
        {"metadata": {"": "the protocol allows empty keys"}},
        {"metadata": {"\u00fc" * 64: "\U0001f600" * 512}},
    ],
)
async def test_the_protocols_own_limits_are_the_default(fields: dict):
    """16 pairs, 64 characters, 512 characters: the call itself is returned."""
    call = make_call(**fields, other=1)

    assert await apply_policy(MetadataLimits(), call) is call


@pytest.mark.parametrize(
    ("metadata", "reason", "param"),
    [
        ({f"k{i}": "" for i in range(17)}, "too_many_pairs", "metadata"),
        ({"k" * 65: "v"}, "key_too_long", "metadata"),
        ({"k": "v" * 513}, "value_too_long", "metadata.k"),
        ({"j": "v" * 512, "k": "v" * 513}, "value_too_long", "metadata.k"),
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
async def test_metadata_beyond_the_limits_is_refused(metadata: Any, reason: str, param: str):
    """One more than allowed, or another type; the param names the pair."""
    assert await outcome(MetadataLimits(), metadata) == (reason, param)


@pytest.mark.parametrize(
    ("limits", "metadata", "reason"),
    [
        ({"max_pairs": 0}, {"k": "v"}, "too_many_pairs"),
        ({"max_key_chars": 3}, {"four": "v"}, "key_too_long"),
        ({"max_value_chars": 0}, {"k": "v"}, "value_too_long"),
    ],
)
async def test_every_limit_can_be_configured(limits: dict, metadata: dict, reason: str):
    """Zero is a limit too."""
    assert (await outcome(MetadataLimits(**limits), metadata))[0] == reason
    assert await outcome(MetadataLimits(**limits), {}) == {}


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("\u00e9" * 64, "v", None),
        ("e\u0301" * 32, "v", None),
        ("e\u0301" * 33, "v", "key_too_long"),  # 33 characters once composed; an upstream counts 66
        ("\U0001f469\u200d\U0001f680" * 21, "v", None),
        ("\U0001f469\u200d\U0001f680" * 22, "v", "key_too_long"),
        ("k", "\ufdfa" * 512, None),  # 9,216 characters in another normal form
        ("k", "\u0301" * 513, "value_too_long"),
        ("k", "\u200b" * 513, "value_too_long"),
    ],
)
async def test_lengths_are_those_of_what_is_forwarded(key: str, value: str, reason: str | None):
    """Code points without normalisation, as an upstream counts them."""
    call, found = make_call(metadata={key: value}), None
    try:
        passed = await apply_policy(MetadataLimits(), call)
    except PolicyViolation as violation:
        passed, found = call, violation.reason

    assert passed is call
    assert found == reason


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"project": "x", "cost_centre": ""}, {"project": "x", "cost_centre": ""}),
        ({"project": "x"}, ("required", "metadata")),
        ({}, ("required", "metadata")),
        (None, ("required", "metadata")),
    ],
)
async def test_required_keys_must_be_present(metadata: Any, expected: Any):
    """Their value may be empty."""
    assert await outcome(MetadataLimits(required=("project", "cost_centre")), metadata) == expected


async def test_the_refusal_names_the_missing_key():
    """The first of the keys that are required."""
    with pytest.raises(PolicyViolation, match=r"^metadata lacks the required key 'project'\.$"):
        await apply_policy(MetadataLimits(required=("project", "cost_centre")), make_call())


@pytest.mark.parametrize(("key", "passes"), [("project", True), ("app_name", True), ("app", False), ("x", False), ("", False)])  # fmt: skip
async def test_only_allowed_keys_pass(key: str, passes: bool):
    """`allowed` has globs."""
    found = await outcome(MetadataLimits(allowed=("project", "app_*")), {key: "v"})

    assert found == ({key: "v"} if passes else ("not_allowed", f"metadata.{key}"))


async def test_an_empty_list_allows_no_key():
    """Only empty metadata passes, and the message says so."""
    policy = MetadataLimits(allowed=())

    assert await outcome(policy, {"k": "v"}) == ("not_allowed", "metadata.k")
    assert await outcome(policy, {}) == {}
    with pytest.raises(PolicyViolation, match="allowed: none"):
        await apply_policy(policy, make_call(metadata={"k": "v"}))


@pytest.mark.parametrize(
    ("key", "is_forbidden"),
    [
        ("secret_a", True),
        ("Secret_a", True),
        ("SECRET_", True),
        (" secret_b", True),
        ("sec\u200bret_c", True),
        ("\uff53ecret_d", True),
        ("\u017fecret_", True),
        ("secret", False),
        ("a\u200bb", True),  # a wildcard matches an invisible character too
        ("ab", False),
    ],
)
async def test_forbidden_keys_are_matched_after_normalisation_and_case_folding(key: str, is_forbidden: bool):
    """A later reader of the metadata may fold the keys it reads."""
    found = await outcome(MetadataLimits(forbidden=("secret_*", "a?b")), {key: "v"})

    assert (found[0] if isinstance(found, tuple) else found) == ("forbidden" if is_forbidden else {key: "v"})


async def test_marks_distinguish_keys_of_other_scripts():
    """Two Japanese words may differ by a mark only."""
    policy = MetadataLimits(required=("\u30ac\u30b9",), forbidden=("\u30d0\u30b9",))
    sent = {"\u30ac\u30b9": "1", "\u30ab\u30b9": "2", "\u30cf\u30b9": "3"}

    assert await outcome(policy, sent) == sent


async def test_values_must_match_the_pattern_of_their_key():
    """The whole value, in ASCII classes; keys without a pattern take any value."""
    policy = MetadataLimits(values={"ticket": r"[A-Z]+-\d+"})

    assert await outcome(policy, {"ticket": "OPS-7", "note": "!"}) == {"ticket": "OPS-7", "note": "!"}
    assert await outcome(policy, {}) == {}
    for value in ("OPS-7 ", "OPS-7\n", "ops-7", "", "OPS-\u0667"):
        assert await outcome(policy, {"ticket": value}) == ("value_pattern", "metadata.ticket")


@pytest.mark.parametrize("key", ["Ticket", "ticket ", "tick\u200bet", "\uff54icket", "Project", "COST", "ti\u0441ket"])
async def test_a_key_that_resembles_a_checked_one_is_refused(key: str):
    """A later reader could take it for the key that is required, has a pattern or is set."""
    policy = MetadataLimits(values={"ticket": r"\d+"}, required=("project",), set={"cost": "1"})
    shown = key if key.isprintable() else ascii(key)[1:-1]

    assert await outcome(policy, {"project": "x", key: "x"}) == ("lookalike", f"metadata.{shown}")


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"by": "another", "k": "v"}, {"by": "anna/search", "k": "v", "model": "m", "gateway": "1"}),
        (None, {"by": "anna/search", "model": "m", "gateway": "1"}),
    ],
)
async def test_set_replaces_what_the_caller_sent(metadata: Any, expected: Any):
    """Placeholders are filled from the call; the caller's other pairs stay."""
    policy = MetadataLimits(set={"by": "{caller.name}/{caller.team}", "model": "{model}", "gateway": "1"})

    assert await outcome(policy, metadata) == expected


async def test_a_pair_that_has_its_value_already_changes_nothing():
    """The call itself is returned."""
    call = make_call(metadata={"k": "v", "by": "anna"})

    assert await apply_policy(MetadataLimits(set={"by": "{caller.name}"}), call) is call


async def test_set_keeps_the_order_of_pairs_and_fields():
    """A replaced pair keeps its place, and the call that was received is not modified."""
    call = make_call(metadata={"a": "1", "team": "mine", "b": "2"}, input="Hi")
    passed = await apply_policy(MetadataLimits(set={"team": "{caller.team}"}), call)

    assert list(passed.body) == ["model", "metadata", "input"]
    assert list(passed.body["metadata"].items()) == [("a", "1"), ("team", "search"), ("b", "2")]
    assert call.body["metadata"]["team"] == "mine"


@NO_DEADLINE
@given(sent=JSON, model=st.text(min_size=1, max_size=8))
async def test_no_input_of_the_caller_changes_a_value_of_set(sent: Any, model: str):
    """Neither another value under its key, nor a model whose name contains a placeholder."""
    policy = MetadataLimits(set={"by": "{caller.name} of {caller.team}", "model": "{model}"})
    name = model + "{caller.team}{model}"
    found = await outcome(policy, {"by": sent, "model": sent, "k": "v"}, model=name)

    assert found == {"by": "anna of search", "model": name, "k": "v"}


async def test_pairs_of_set_count_towards_the_limits():
    """An upstream would count them too."""
    policy = MetadataLimits(max_pairs=2, max_value_chars=4, set={"model": "{model}"})

    assert await outcome(policy, {"a": "", "b": ""}) == ("too_many_pairs", "metadata")
    assert await outcome(policy, None, model="a-long-name") == ("value_too_long", "metadata.model")
    with pytest.raises(PolicyViolation, match="metadata has 3 pairs, 1 of them set by the gateway; the limit is 2"):
        await apply_policy(policy, make_call(metadata={"a": "", "b": ""}))


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"k": "v"}, {"k": "v", "gate_by": "x"}),
        ({"gate_other": "v"}, ("forbidden", "metadata.gate_other")),
        ({"gate_by": "mine"}, {"gate_by": "x"}),
    ],
)
async def test_rules_for_callers_do_not_apply_to_set(metadata: dict, expected: Any):
    """A key that is forbidden to callers can only be written by the gateway."""
    policy = MetadataLimits(forbidden=("gate_*",), allowed=("k",), set={"gate_by": "x"}, values={"gate_by": "y"})

    assert await outcome(policy, metadata) == expected


def test_a_key_of_set_may_be_required_and_forbidden():
    """The gateway provides it."""
    assert MetadataLimits(required=("k",), forbidden=("k",), set={"k": "x"}).set == {"k": "x"}


async def test_a_refusal_shows_little_of_a_key():
    """Long and unprintable keys are cut and escaped; the value is never shown."""
    with pytest.raises(PolicyViolation) as caught:
        await apply_policy(MetadataLimits(), make_call(metadata={"k\n" + "x" * 60: 7}))

    assert caught.value.param == r"metadata.k\nxxxxxxxxxxxxxxxxxxxxxxxxxxxxx..."


KEY = "\u202e" * 10**5
WIDE = {"max_pairs": 10**9, "max_key_chars": 10**9, "max_value_chars": 10**9}


@pytest.mark.parametrize(
    ("settings", "metadata", "reason"),
    [
        ({"max_pairs": 0}, {KEY: ""}, "too_many_pairs"),
        ({**WIDE, "max_pairs": 99, "set": {str(i): "" for i in range(99)}}, {KEY: ""}, "too_many_pairs"),
        ({}, {KEY: ""}, "key_too_long"),
        (WIDE, {KEY: 7}, "value_not_a_string"),
        ({**WIDE, "max_value_chars": 5}, {KEY: "v" * 10**6}, "value_too_long"),
        ({**WIDE, "allowed": ("\u202e" * 500 + "?", "b" * 500)}, {KEY: ""}, "not_allowed"),
        ({**WIDE, "forbidden": ("*",)}, {KEY: ""}, "forbidden"),
        ({**WIDE, "values": {KEY: "a{0,500}" * 50}}, {KEY: "v"}, "value_pattern"),
        ({**WIDE, "required": (KEY,)}, {}, "required"),
        ({**WIDE, "set": {KEY + "K": "x"}}, {KEY + "k": "v"}, "lookalike"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_the_longest_refusals_are_short(settings: dict[str, Any], metadata: dict[str, Any], reason: str):
    """Every message is one printable sentence of at most 120 characters, whatever the keys are."""
    with pytest.raises(PolicyViolation) as caught:
        await apply_policy(MetadataLimits(**settings), make_call(metadata=metadata))

    assert caught.value.reason == reason
    assert caught.value.message.endswith(".")
    assert len(caught.value.message) <= 120
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_pairs": -1}, "greater than or equal to 0"),
        ({"max_pairs": 1, "required": ["a"], "set": {"b": "x"}}, "more keys than max_pairs allows, which is 1"),
        ({"required": ["k" * 65]}, "longer than max_key_chars allows, which is 64"),
        ({"max_key_chars": 1, "set": {"kk": "x"}}, "longer than max_key_chars allows, which is 1"),
        ({"max_value_chars": 2, "set": {"k": "abc{model}"}}, "longer than max_value_chars allows, which is 2"),
        ({"values": {"k": "["}}, "not a regular expression"),
        ({"values": {"k": "a{99999999999}"}}, "not a regular expression"),
        ({"set": {"k": "{caller.key}"}}, "unknown placeholder; known: {caller.name}, {caller.team}, {model}"),
        ({"set": {"k": "{"}}, "unknown placeholder"),
        ({"required": ["k"], "allowed": ["a*"]}, "'k' is required, and allowed or forbidden refuse it"),
        ({"required": ["K"], "forbidden": ["k"]}, "'K' is required, and allowed or forbidden refuse it"),
        ({"maximum": 3}, "Extra inputs are not permitted"),
    ],
    ids=str,
)
def test_settings_that_would_refuse_every_call_are_config_errors(settings: dict, message: str):
    """So are those that would fail at the first call."""
    with pytest.raises(ValidationError) as caught:
        MetadataLimits(**settings)

    assert message in str(caught.value)


STRICT = MetadataLimits(
    max_pairs=4,
    max_key_chars=7,
    max_value_chars=6,
    required=("project", "team"),
    allowed=("project", "x_*", "ticket"),
    forbidden=("x_secret*", "x_gate"),
    values={"ticket": "[A-Z]+-[0-9]+"},
    set={"team": "{caller.team}"},
)
KEYS = st.sampled_from(
    ["project", "Project", "team", "TEAM", "te\u200bam", "ticket", "x_", "x_gate", "x_G\u0251te", "X_GATE", "\uff58_gate", "x_\u017fec", "x" * 8, "", "k", "x" * 70]
) | st.text(max_size=5) | st.text(max_size=3).map("x_".__add__)  # fmt: skip
VALUES = st.sampled_from(["a", "", "OPS-7", "OPS-\u0667", "OPS-7\n", "v" * 7, "e\u0301" * 3, "e\u0301" * 4]) | JSON
METADATA = st.dictionaries(KEYS, VALUES, max_size=6) | st.dictionaries(
    st.sampled_from(["project", "x_1", "x_2", "ticket", "team"]), st.sampled_from(["a", "OPS-7"]), max_size=5
)


def is_allowed(metadata: dict[str, str]) -> bool:
    """The settings of STRICT in other words; nothing is shared with the policy."""
    own = {key: value for key, value in metadata.items() if key != "team"}
    return (
        len(metadata) <= 4
        and metadata["team"] == "search"
        and "project" in own
        and all(isinstance(value, str) and len(value) <= 6 and len(key) <= 7 for key, value in own.items())
        and all(key in ("project", "ticket") or fnmatchcase(key, "x_*") for key in own)
        and not any("secret" in key.lower() or key.lower() == "x_gate" for key in own)
        and re.fullmatch("[A-Z]+-[0-9]+", own.get("ticket", "A-1")) is not None
    )


@NO_DEADLINE
@given(metadata=METADATA | JSON)
async def test_what_passes_satisfies_every_setting(metadata: Any):
    """Any JSON is refused with a reason, or is sent within every limit."""
    found = await outcome(STRICT, metadata)

    assert isinstance(found, tuple) or is_allowed(found)


@NO_DEADLINE
@given(metadata=METADATA | JSON, others=st.dictionaries(st.text(max_size=5).map("x_".__add__), JSON, max_size=3))
async def test_no_other_field_changes(metadata: Any, others: dict[str, Any]):
    """And a refusal is one short sentence."""
    call, message = make_call(metadata=metadata, **others), "."
    try:
        passed = await apply_policy(STRICT, call)
    except PolicyViolation as violation:
        passed, message = call, violation.message

    assert passed.without_fields("metadata").encoded == call.without_fields("metadata").encoded
    assert message.endswith(".")
    assert len(message) <= 120


@NO_DEADLINE
@given(metadata=METADATA, dice=st.randoms())
async def test_the_decision_does_not_depend_on_order_or_streaming(metadata: dict[str, Any], dice: random.Random):
    """The refusal or the pairs are the same in any order of the pairs."""
    first = await outcome(STRICT, metadata, stream=False)
    second = await outcome(STRICT, dict(dice.sample(list(metadata.items()), len(metadata))), stream=True)

    assert first == second


async def test_the_first_fault_in_the_order_of_keys_is_reported():
    """A caller who corrects one fault after the other meets each once."""
    pairs = {"c": 1, "a": "v" * 600, "b": 2}
    found = [await outcome(MetadataLimits(), dict(order)) for order in (pairs.items(), list(pairs.items())[::-1])]

    assert found == [("value_too_long", "metadata.a")] * 2
