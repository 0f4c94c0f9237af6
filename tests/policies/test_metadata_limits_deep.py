"""Properties of what callers may attach to a response: in any order, any script, under any of the settings."""

import random
import re
from fnmatch import fnmatchcase
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.metadata_limits import MetadataLimits
from proxy.wire.call import Call, Caller
from proxy.wire.errors import PolicyViolation
from tests.shapes import JSON, PATIENT, call_with, judged_by

ANNA = Caller("anna", "search")
POLICY = MetadataLimits(
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
    ["project", "Project", "team", "TEAM", "te\u200bam", "ticket", "x_", "x_gate", "x_G\u0251te", "X_GATE", "\uff58_gate", "x_\u017fec", "x" * 8]
) | st.text(max_size=3).map("x_".__add__)  # fmt: skip
VALUES = st.sampled_from(["a", "", "OPS-7", "OPS-\u0667", "OPS-7\n", "v" * 7, "e\u0301" * 3, "e\u0301" * 4]) | JSON
METADATA = st.dictionaries(KEYS, VALUES, max_size=5) | st.dictionaries(
    st.sampled_from(["project", "x_1", "x_2", "ticket", "team"]), st.sampled_from(["a", "OPS-7"]), max_size=5
)


async def fate(metadata: Any, **others: Any) -> Any:
    """The body as it is let through, or the refusal."""
    try:
        return (await judged_by(POLICY, call_with(ANNA, metadata=metadata, **others))).body
    except PolicyViolation as violation:
        return violation.reason, violation.param, violation.message


def is_within_the_limits(metadata: dict[str, str]) -> bool:
    """The settings above in other words, sharing nothing with the policy."""
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


@PATIENT
@given(metadata=METADATA | JSON)
async def test_what_passes_satisfies_every_setting(metadata: Any):
    """Whatever comes, what goes out is right, or the caller is told."""
    found = await fate(metadata)

    assert isinstance(found, tuple) or is_within_the_limits(found["metadata"])


@PATIENT
@given(metadata=METADATA, dice=st.randoms())
async def test_the_decision_depends_on_neither_order_nor_streaming(metadata: dict[str, Any], dice: random.Random):
    """The same refusal, or the same pairs, in whatever order they come."""
    first = await fate(metadata, stream=False)
    other = await fate(dict(dice.sample(list(metadata.items()), len(metadata))), stream=True)

    assert (first if isinstance(first, tuple) else first["metadata"]) == (
        other if isinstance(other, tuple) else other["metadata"]
    )


@PATIENT
@given(sent=JSON, model=st.text(min_size=1, max_size=8))
async def test_no_input_of_the_callers_changes_a_stamp(sent: Any, model: str):
    """Neither another value under its key, nor a model that looks like a placeholder."""
    policy = MetadataLimits(set={"by": "{caller.name} of {caller.team}", "{model}"[1:-1]: "{model}"})
    call = Call(ANNA, {"model": model + "{caller.team}", "metadata": {"by": sent, "model": sent, "k": "v"}}, {})

    stamped = (await judged_by(policy, call)).body["metadata"]

    assert stamped == {"by": "anna of search", "model": model + "{caller.team}", "k": "v"}


async def test_stamps_keep_the_place_of_what_they_replace_and_the_call_its_order():
    """Nothing else moves."""
    call = call_with(ANNA, metadata={"a": "1", "team": "mine", "b": "2"}, input="Hi")
    passed = await judged_by(MetadataLimits(set={"team": "{caller.team}"}), call)

    assert list(passed.body) == ["model", "metadata", "input"]
    assert list(passed.body["metadata"].items()) == [("a", "1"), ("team", "search"), ("b", "2")]
    assert call.body["metadata"]["team"] == "mine"


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
    """Code points, never normalised: what an upstream will count."""
    try:
        found = (
            None if await judged_by(MetadataLimits(), call := call_with(metadata={key: value})) is call else "changed"
        )
    except PolicyViolation as violation:
        found = violation.reason

    assert found == reason


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
    """Every message is one sentence of at most 120 characters, whatever the keys of callers and config."""
    with pytest.raises(PolicyViolation) as caught:
        await judged_by(MetadataLimits(**settings), call_with(metadata=metadata))

    assert caught.value.reason == reason
    assert caught.value.message.endswith(".")
    assert len(caught.value.message) <= 120
    assert caught.value.message.isprintable()
