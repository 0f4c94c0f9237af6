"""Who is held to account for a call."""

import hashlib
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from policies.safety_identifier import SafetyIdentifier, known_as
from proxy.rules import Mode, Rule, Rules
from proxy.stores import StoreError
from proxy.stores.memory import Memory
from proxy.wire.call import Call, Caller
from proxy.wire.errors import PolicyViolation
from proxy.wire.principal import blocked_key, hashed, identifier_of
from tests.shapes import JSON, PATIENT, call_with, judged_by

ANNA = Caller("anna", "search")
KEY = SecretStr("a key that nobody knows")
BOUND = identifier_of(KEY.get_secret_value().encode(), ANNA)


class Away(Memory):
    """A store that cannot be reached."""

    async def get(self, key: str) -> bytes | None:
        raise StoreError("ConnectionError: nobody there")


async def verdict(policy: SafetyIdentifier, **fields: Any) -> Any:
    """What goes out as the identifier, or the reason of the refusal."""
    try:
        return (await judged_by(policy, call_with(ANNA, **fields))).body.get("safety_identifier")
    except PolicyViolation as violation:
        return violation.reason, violation.param


def refused(reason: str) -> tuple[str, str]:
    return reason, "safety_identifier"


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"safety_identifier": None},
        {"safety_identifier": "u-1"},
        {"safety_identifier": "x" * 64},
        {"safety_identifier": ""},
    ],
)
async def test_by_default_only_the_protocols_limit_holds(fields: dict):
    """The call passes as it came, null as null."""
    call = call_with(**fields)

    assert await judged_by(SafetyIdentifier(), call) is call


@pytest.mark.parametrize(
    ("identifier", "reason"),
    [
        ("x" * 65, "too_long"),
        ("\U0001f600" * 65, "too_long"),
        (7, "not_a_string"),
        (True, "not_a_string"),
        (["u"], "not_a_string"),
        ({}, "not_a_string"),
        (0.5, "not_a_string"),
    ],
)
async def test_what_is_beyond_it_is_refused(identifier: Any, reason: str):
    """The refusal names the field."""
    assert await verdict(SafetyIdentifier(), safety_identifier=identifier) == refused(reason)


@pytest.mark.parametrize(("max_chars", "allowed"), [(8, 8), (128, 128), (10_000, 512)])
async def test_the_length_can_be_set(max_chars: int, allowed: int):
    """Some upstreams allow 128; the message says what holds."""
    policy = SafetyIdentifier(max_chars=max_chars)

    assert await verdict(policy, safety_identifier="x" * allowed) == "x" * allowed
    with pytest.raises(PolicyViolation, match=f"has {allowed + 1} characters; the limit is {allowed}"):
        await judged_by(policy, call_with(safety_identifier="x" * (allowed + 1)))


@pytest.mark.parametrize("fields", [{}, {"safety_identifier": None}])
async def test_one_may_be_required(fields: dict):
    """Null is as good as nothing."""
    assert await verdict(SafetyIdentifier(require=True), **fields) == refused("required")
    assert await verdict(SafetyIdentifier(require=True), safety_identifier="u") == "u"


async def test_the_whole_identifier_must_match_the_pattern():
    """In ASCII classes, and no line end slips through."""
    policy = SafetyIdentifier(pattern=r"u-\d+")

    assert await verdict(policy, safety_identifier="u-17") == "u-17"
    for identifier in ("u-", "xu-1", "u-1x", "u-1\n", "u-\u0661", ""):
        assert await verdict(policy, safety_identifier=identifier) == refused("pattern")
    assert await verdict(policy) is None


PERSONAL = [
    "kim@example.org", "mailto:kim.o@example.co.uk", "+49 30 123456", "030.123.45.67", "tel:4930123456",
    "Kim Oh", "Oh, Kim", "id Kim Oh 7",
]  # fmt: skip
HARMLESS = [
    "u-17", "1234567", "kim", "KIM OH", "kim oh", "Kim", "user_4930123456", "a@b", "@", "",
    hashlib.sha256(b"123").hexdigest(), "6ba7b810-12345678-1234-1234-00c04fd430c8", "00000000000000000000000000000000000000000000",
]  # fmt: skip


@pytest.mark.parametrize("identifier", PERSONAL)
async def test_personal_data_can_be_refused_or_hashed(identifier: str):
    """An address, a telephone number, a name: an upstream need not know them."""
    made = hashed(KEY.get_secret_value().encode(), "search", identifier)

    assert await verdict(SafetyIdentifier(pii="allow"), safety_identifier=identifier) == identifier
    assert await verdict(SafetyIdentifier(pii="reject"), safety_identifier=identifier) == refused("personal")
    assert await verdict(SafetyIdentifier(pii="hash", key=KEY), safety_identifier=identifier) == made


@pytest.mark.parametrize("identifier", HARMLESS)
async def test_what_is_nobodys_data_passes(identifier: str):
    """Numbers of accounts, hashes and UUIDs are what a caller should send."""
    assert await verdict(SafetyIdentifier(pii="reject"), safety_identifier=identifier) == identifier


@PATIENT
@given(st.binary(max_size=8), st.uuids())
async def test_hashes_and_uuids_are_never_personal(text: bytes, uuid: Any):
    """Who follows the advice to hash is not refused for digits that happen to stand in a row."""
    policy = SafetyIdentifier(pii="reject")
    made = [hashlib.sha256(text).hexdigest(), str(uuid), uuid.hex]

    assert [await verdict(policy, safety_identifier=identifier) for identifier in made] == made


async def test_the_refusal_of_personal_data_does_not_repeat_it():
    """Logs hold the message."""
    with pytest.raises(PolicyViolation) as caught:
        await judged_by(SafetyIdentifier(pii="reject"), call_with(safety_identifier="kim@example.org"))

    assert "kim" not in caught.value.message


async def test_the_gate_names_the_authenticated_caller():
    """Whatever the body says, this goes out."""
    policy = SafetyIdentifier(source="caller", key=KEY)

    assert BOUND == await verdict(policy) == await verdict(policy, safety_identifier="mine")
    assert await verdict(policy, safety_identifier=["odd"]) == BOUND
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", BOUND)


async def test_an_identifier_that_is_right_already_changes_nothing():
    """The call passes as it came."""
    call = call_with(ANNA, safety_identifier=BOUND)

    assert await judged_by(SafetyIdentifier(source="caller", key=KEY), call) is call


@PATIENT
@given(body=st.dictionaries(st.sampled_from(["safety_identifier", "user", "metadata", "input", "x"]), JSON))
async def test_nothing_in_a_body_changes_who_is_held_to_account(body: dict[str, Any]):
    """The identifier is the caller's alone; every other field stays."""
    call = Call(ANNA, {"model": "m", **body}, {})
    passed = await judged_by(SafetyIdentifier(source="caller", key=KEY), call)

    assert passed.body["safety_identifier"] == BOUND
    assert passed.without_fields("safety_identifier").encoded == call.without_fields("safety_identifier").encoded


async def test_callers_teams_keys_and_end_users_are_told_apart():
    """Each principal has an identifier of its own."""
    policy = SafetyIdentifier(source="caller", key=KEY, end_user_header="x-end-user")
    other = SafetyIdentifier(source="caller", key=SecretStr("another key"), end_user_header="x-end-user")
    calls = [
        Call(Caller(name, team), {"model": "m"}, {}, received={"x-end-user": user} if user else {})
        for name, team, user in [
            ("anna", "search", ""),
            ("anna", "ads", ""),
            ("ben", "search", ""),
            ("anna", "search", "kim"),
            ("anna", "search", "kam"),
        ]
    ]
    made = [(await judged_by(p, call)).body["safety_identifier"] for p in (policy, other) for call in calls]

    assert len(set(made)) == len(made)
    assert made[0] == BOUND


async def test_a_header_that_was_not_asked_for_is_not_read():
    """Without `end_user_header` no header changes the identifier."""
    call = Call(ANNA, {"model": "m"}, {}, received={"x-end-user": "kim"})

    assert (await judged_by(SafetyIdentifier(source="caller", key=KEY), call)).body["safety_identifier"] == BOUND


@pytest.mark.parametrize("identifier", ["mine", "", 7, False, [], {}])
async def test_another_identifier_can_be_a_mismatch(identifier: Any):
    """The right one, null and none pass."""
    policy = SafetyIdentifier(source="caller", key=KEY, mismatch="reject")

    assert await verdict(policy, safety_identifier=identifier) == refused("mismatch")
    assert await verdict(policy, safety_identifier=BOUND) == BOUND
    assert await verdict(policy, safety_identifier=None) == BOUND
    assert await verdict(policy) == BOUND


@pytest.mark.parametrize(
    ("user", "body", "expected"),
    [
        ("keep", {"user": "kim"}, {"user": "kim"}),
        ("drop", {"user": "kim"}, {}),
        ("drop", {"user": None, "safety_identifier": "u"}, {"safety_identifier": "u"}),
        ("move", {"user": "kim"}, {"safety_identifier": "kim"}),
        ("move", {"user": "kim", "safety_identifier": None}, {"safety_identifier": "kim"}),
        ("move", {"user": "kim", "safety_identifier": "u"}, {"safety_identifier": "u"}),
        ("move", {"user": ["odd"]}, {}),
        ("move", {"user": None}, {}),
        ("move", {}, {}),
        ("drop", {}, {}),
    ],
)
async def test_what_becomes_of_user(user: Any, body: dict, expected: dict):
    """The field that safety_identifier replaced is kept, dropped or moved."""
    passed = await judged_by(SafetyIdentifier(user=user), call_with(**body))

    assert passed.body == {"model": "m", **expected}


async def test_a_user_that_was_moved_is_judged_like_any_identifier():
    """Moving is no way around the rules."""
    policy = SafetyIdentifier(user="move", pii="reject", require=True, blocked=("u-1",))

    assert await verdict(policy, user="kim@example.org") == refused("personal")
    assert await verdict(policy, user="x" * 65) == refused("too_long")
    assert await verdict(policy, user="u-1") == refused("blocked")
    assert await verdict(policy, user=7) == refused("required")


@pytest.mark.parametrize(
    "policy", [SafetyIdentifier(blocked=("u-1",)), SafetyIdentifier(blocked=(BOUND,), source="caller", key=KEY)]
)
async def test_an_identifier_can_be_blocked_by_the_config(policy: SafetyIdentifier):
    """As it goes out: a derived one too."""
    assert await verdict(policy, safety_identifier="u-1") == refused("blocked")


async def test_an_identifier_can_be_blocked_while_the_gate_runs():
    """`headgate block` puts it into the store; all others pass."""
    state = Memory()
    await state.put(blocked_key("u-1"), b"1", ttl_s=60)
    policy = SafetyIdentifier()
    await policy.start(state)

    assert await verdict(policy, safety_identifier="u-1") == refused("blocked")
    assert await verdict(policy, safety_identifier="u-2") == "u-2"
    assert await verdict(policy) is None


@pytest.mark.parametrize("settings", [{"source": "caller"}, {"pii": "hash"}, {"pii": "hash", "user": "move"}])
async def test_who_was_blocked_before_a_rotation_stays_blocked(settings: dict):
    """What would go out under an older key counts as well."""
    before = SafetyIdentifier(key=KEY, **settings)
    fields = {"user" if "user" in settings else "safety_identifier": "kim@example.org"}
    made = await verdict(before, **fields)
    after = SafetyIdentifier(keys=(SecretStr("newer"), KEY), blocked=(made,), **settings)

    assert await verdict(after, **fields) == refused("blocked")
    assert await verdict(SafetyIdentifier(keys=(SecretStr("newer"),), blocked=(made,), **settings), **fields) != made


async def test_an_identifier_that_was_never_made_with_a_key_passes_a_rotation():
    """What the caller sends is known by itself, under every key."""
    policy = SafetyIdentifier(keys=(SecretStr("newer"), KEY), pii="hash", blocked=("u-1",))

    assert await verdict(policy, safety_identifier="u-2") == "u-2"
    assert await verdict(policy, safety_identifier="u-1") == refused("blocked")


async def test_a_store_that_is_away_blocks_nobody_but_whom_the_config_names(logged):
    """One line says so, without the identifier."""
    policy = SafetyIdentifier(blocked=("u-1",))
    await policy.start(Away())

    assert await verdict(policy, safety_identifier="u-2") == "u-2"
    assert await verdict(policy, safety_identifier="u-1") == refused("blocked")
    assert logged == [{"event": "blocklist.failed", "error": "ConnectionError: nobody there", "log_level": "warning"}]


async def test_keys_can_be_rotated():
    """The first signs; an identifier made with an older one is still known as its principal's."""
    older = SafetyIdentifier(source="caller", key=KEY)
    policy = SafetyIdentifier(source="caller", keys=(SecretStr("newer"), KEY))
    made = await verdict(policy)

    assert made != BOUND
    assert [known_as(p, identifier, ANNA, "") for p in (older, policy) for identifier in (BOUND, made)] == [
        True,
        False,
        True,
        True,
    ]
    assert known_as(policy, BOUND, Caller("ben", "search"), "") is False
    assert known_as(policy, BOUND, ANNA, "kim") is False


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"source": "caller"}, 'source = "caller" needs a key: key = "env:NAME"'),
        ({"pii": "hash"}, 'pii = "hash" needs a key: key = "env:NAME"'),
        ({"source": "caller", "key": KEY, "keys": [KEY]}, "give either key or keys, not both"),
        ({"key": "sk-typed-by-itself"}, 'a secret is given as "env:NAME"'),
        ({"pattern": "("}, "not a regular expression"),
        ({"pattern": "(?u)x"}, "ASCII and UNICODE flags are incompatible"),
        ({"pattern": "x{99999999999999999999}"}, "not a regular expression"),
        ({"max_chars": 0}, "greater than 0"),
        ({"source": "header"}, "'request' or 'caller'"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_errors(settings: dict, said: str):
    """They say what is missing, and never what the secret is."""
    with pytest.raises(ValidationError) as caught:
        SafetyIdentifier(**settings)

    assert said in str(caught.value)
    assert "typed-by-itself" not in str(caught.value)


def test_the_key_never_shows():
    """Neither in logs nor in what `check` prints."""
    policy = SafetyIdentifier(source="caller", key=KEY, keys=())
    shown = f"{policy!r} {policy} {policy.model_dump()} {policy.model_dump_json()}"

    assert KEY.get_secret_value() not in shown
    assert policy.all_keys == (KEY.get_secret_value().encode(),)


@PATIENT
@given(identifier=JSON | st.sampled_from(["u-1", "kim@example.org", "x" * 600]), user=JSON)
async def test_no_shape_breaks_the_policy_and_what_passes_is_within_the_limits(identifier: Any, user: Any):
    """Any JSON is refused in one short sentence, or goes out as a string that the rules allow."""
    policy = SafetyIdentifier(pattern="[a-z0-9-]+", max_chars=8, pii="reject", user="move", blocked=("u-1",))
    call, told = call_with(safety_identifier=identifier, user=user), "."
    try:
        passed: Any = (await judged_by(policy, call)).body["safety_identifier"]
    except PolicyViolation as violation:
        passed, told = None, violation.message

    assert passed is None or (re.fullmatch("[a-z0-9-]{1,8}", passed) and passed != "u-1")
    assert told.endswith(".")
    assert len(told) <= 120


@pytest.mark.parametrize(("mode", "expected"), [("enforce", "refused"), ("report", "kept"), ("off", "kept")])
async def test_its_mode_decides_whether_it_changes_or_refuses(mode: Mode, expected: str):
    """A derived identifier is a change like any other."""
    strict = Rules([Rule("safety_identifier", SafetyIdentifier(require=True), mode)])
    bound = Rules([Rule("safety_identifier", SafetyIdentifier(source="caller", key=KEY), mode)])
    try:
        found = "kept" if (await strict.admit(call_with())).body == {"model": "m"} else "changed"
    except PolicyViolation as violation:
        found = "refused" if violation.code == "safety_identifier.required" else str(violation.code)

    assert found == expected
    assert ("safety_identifier" in (await bound.admit(call_with(ANNA))).body) is (mode == "enforce")
