"""The identifier that makes a call attributable to a caller or an end user."""

import hashlib
import re
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from policies import PolicyState, RequestCheck
from policies.safety_identifier import SafetyIdentifier
from policies.support.principal import blocked_key, derive_identifier, hash_value
from proxy.context import Caller
from proxy.stores._measured import MeasuredStore
from proxy.stores.memory import MemoryStore
from proxy.telemetry.instruments import Histogram
from proxy.telemetry.metrics import STORE_DURATION
from proxy.wire.call import Call
from proxy.wire.errors import PolicyViolation
from tests import raw
from tests.conftest import StartGateway, tables_for
from tests.examples import ANNA, JSON, NO_DEADLINE, TEXTS, apply_policy, draw_examples, make_call, make_context
from tests.upstream import FakeUpstream

KEY, NEWER = SecretStr("the key of these tests"), SecretStr("the newer key")
ANNAS = derive_identifier(KEY.get_secret_value().encode(), ANNA)
DERIVED = SafetyIdentifier(source="caller", key=KEY, end_user_header="X-End-User")


async def outcome(
    policy: SafetyIdentifier,
    /,
    *,
    state: PolicyState | None = None,
    caller: Caller = ANNA,
    received: dict[str, str] | None = None,
    **fields: Any,
) -> Any:
    """Return the identifier that is sent, or the reason and the param of the refusal."""
    context = make_context(caller, received=received or {})
    try:
        return (await apply_policy(policy, make_call(**fields), context, state)).body.get("safety_identifier")
    except PolicyViolation as violation:
        return violation.reason, violation.param


def refused(reason: str) -> tuple[str, str]:
    return reason, "safety_identifier"


@pytest.mark.parametrize("identifier", [..., None, "u-1", "x" * 64, "\U0001f600" * 64, ""])
async def test_by_default_only_the_protocols_limit_applies(identifier: Any):
    """The call itself is returned; null stays null."""
    call = make_call() if identifier is ... else make_call(safety_identifier=identifier)

    assert await apply_policy(SafetyIdentifier(), call) is call


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
async def test_a_long_identifier_or_another_type_is_refused(identifier: Any, reason: str):
    """Lengths count characters."""
    assert await outcome(SafetyIdentifier(), safety_identifier=identifier) == refused(reason)


@pytest.mark.parametrize(("max_chars", "allowed"), [(8, 8), (128, 128), (10_000, 512)])
async def test_the_length_can_be_configured(max_chars: int, allowed: int):
    """Up to 512, the most that is searched for personal data; the message has the limit that applies."""
    policy = SafetyIdentifier(max_chars=max_chars)

    assert await outcome(policy, safety_identifier="x" * allowed) == "x" * allowed
    with pytest.raises(PolicyViolation, match=f"has {allowed + 1} characters; the limit is {allowed}"):
        await apply_policy(policy, make_call(safety_identifier="x" * (allowed + 1)))


@pytest.mark.parametrize("fields", [{}, {"safety_identifier": None}])
async def test_an_identifier_can_be_required(fields: dict):
    """Null is the same as none."""
    policy = SafetyIdentifier(require=True)

    assert await outcome(policy, **fields) == refused("required")
    assert await outcome(policy, safety_identifier="u") == "u"


async def test_the_whole_identifier_must_match_the_pattern():
    """In ASCII classes; a line end after the match is refused too. None at all passes."""
    policy = SafetyIdentifier(pattern=r"u-\d+")

    assert await outcome(policy, safety_identifier="u-17") == "u-17"
    for identifier in ("u-", "xu-1", "u-1x", "u-1\n", "u-\u0661", ""):
        assert await outcome(policy, safety_identifier=identifier) == refused("pattern")
    assert await outcome(policy) is None


PERSONAL = [
    "kim@example.org", "ada@example.com", "Ada.Lovelace+work@mail.example.co.uk", "mailto:kim.o@example.co.uk",
    "<ada@example.com>", "ada@ex\u00e4mple.de", "user ada@example.com", "ada@\u200bexample.com",
    "\uff41\uff44\uff41\uff20example.com",
    "+49 30 123456", "+49 30 1234567", "+1 (555) 123-4567", "(030) 123-4567", "555-123-4567", "555.123.4567",
    "030.123.45.67", "0049301234567", "tel:4930123456", "tel:+493012345678", "call +49-30-1234567 now",
    "\uff0b\uff14\uff19 \uff13\uff10 1234567",
    "Kim Oh", "Oh, Kim", "id Kim Oh 7", "Ada Lovelace", "Lovelace, Ada", "Lovelace,Ada", "Ada B. Lovelace",
    "Dr. Ada King", "Jos\u00e9 Garc\u00eda", "Zoe\u0308 Kravitz", "Ada\u00a0Lovelace", "A\u00add\u00ada Lovelace",
]  # fmt: skip
IMPERSONAL = [
    "u-17", "user_1", "1234567", "kim", "KIM OH", "kim oh", "Kim", "Ada.Lovelace", "ADA_LOVELACE", "user_4930123456",
    "u-4930123456x", "a@b", "@", "@ada", "", "10.0.0.1", ANNAS,
    hashlib.sha256(b"123").hexdigest(), hashlib.sha256(b"ada@example.com").hexdigest(),
    "6ba7b810-12345678-1234-1234-00c04fd430c8", "00000000-1111-2222-3333-44444444444f", "0" * 44,
]  # fmt: skip


@pytest.mark.parametrize("identifier", PERSONAL)
async def test_personal_data_can_be_refused_or_hashed(identifier: str):
    """An address, a telephone number, a name, in any width, with or without accents and invisible characters."""
    made = hash_value(KEY.get_secret_value().encode(), "search", identifier)

    assert await outcome(SafetyIdentifier(), safety_identifier=identifier) == identifier
    assert await outcome(SafetyIdentifier(pii="reject"), safety_identifier=identifier) == refused("personal")
    assert await outcome(SafetyIdentifier(pii="hash", key=KEY), safety_identifier=identifier) == made


@pytest.mark.parametrize("pii", ["allow", "reject", "hash"])
@pytest.mark.parametrize("identifier", IMPERSONAL)
async def test_identifiers_that_are_not_personal_data_pass(identifier: str, pii: Any):
    """Account numbers, hashes and UUIDs are what a caller should send."""
    assert await outcome(SafetyIdentifier(pii=pii, key=KEY), safety_identifier=identifier) == identifier


@NO_DEADLINE
@given(st.binary(max_size=8), st.uuids())
async def test_hashes_and_uuids_are_never_personal(text: bytes, uuid: Any):
    """A caller who hashes is not refused for digits that happen to be in a row."""
    policy = SafetyIdentifier(pii="reject")
    made = [hashlib.sha256(text).hexdigest(), str(uuid), uuid.hex]

    assert [await outcome(policy, safety_identifier=identifier) for identifier in made] == made


async def test_the_refusal_of_personal_data_does_not_repeat_it():
    """Messages are logged."""
    with pytest.raises(PolicyViolation) as caught:
        await apply_policy(SafetyIdentifier(pii="reject"), make_call(safety_identifier="kim@example.org"))

    assert "kim" not in caught.value.message


@pytest.mark.parametrize(
    ("identifier", "expected"),
    [
        (f"{'x' * 60}@example.com", "a hash"),
        (f"{'x' * 600}@example.com", refused("too_long")),  # not searched
        ("x" * 65, refused("too_long")),
        ("\U0001f600" * 64, "\U0001f600" * 64),
    ],
)
async def test_the_length_of_a_hashed_identifier_is_that_of_the_hash(identifier: str, expected: Any):
    """At most 64 characters are sent upstream."""
    found = await outcome(SafetyIdentifier(pii="hash", key=KEY), safety_identifier=identifier)

    assert found == expected or (expected == "a hash" and len(found) == 43)


async def test_a_team_shares_its_hashes_with_no_other_team():
    """The same value from two callers of one team is one person to the upstream."""
    policy, mail = SafetyIdentifier(pii="hash", key=KEY), "ada@example.com"
    callers = [ANNA, Caller("ben", "search"), Caller("carol", "shop")]
    anna, ben, carol = [await outcome(policy, caller=caller, safety_identifier=mail) for caller in callers]

    assert anna == ben != carol


@pytest.mark.parametrize("identifier", [..., None, "mine", ["odd"], ANNAS])
async def test_the_identifier_is_derived_from_the_authenticated_caller(identifier: Any):
    """It replaces whatever the body has."""
    fields = {} if identifier is ... else {"safety_identifier": identifier}

    assert await outcome(SafetyIdentifier(source="caller", key=KEY), **fields) == ANNAS
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", ANNAS)


async def test_a_correct_identifier_passes_untouched():
    """The call itself is returned."""
    call = make_call(safety_identifier=ANNAS)

    assert await apply_policy(DERIVED, call) is call


FIELDS = st.sampled_from([
    "safety_identifier", "user", "metadata", "input", "x", "caller", "team", "x-end-user", "end_user",
    "safety-identifier", "prompt", "previous_response_id",
])  # fmt: skip
CHOSEN = JSON | st.sampled_from(["ben", "u-1", "kim@example.org", ANNAS, ANNAS[:-1], "-", "x" * 900])


@NO_DEADLINE
@given(st.dictionaries(FIELDS | TEXTS, CHOSEN, max_size=5), TEXTS, st.sampled_from(["keep", "move"]))
async def test_no_field_of_the_body_changes_a_derived_identifier(body: dict[str, Any], end_user: str, user: Any):
    """It depends on caller and header only; every other field stays the same."""
    policy, call = DERIVED.model_copy(update={"user": user}), make_call(**{**body, "model": "m"})
    passed = await apply_policy(policy, call, make_context(received={"x-end-user": end_user}))
    changed = ["safety_identifier"] if user == "keep" else ["safety_identifier", "user"]

    assert passed.body["safety_identifier"] == derive_identifier(KEY.get_secret_value().encode(), ANNA, end_user)
    assert passed.without_fields(*changed).encoded == call.without_fields(*changed).encoded
    assert ("user" in passed.body) == (user == "keep" and "user" in body)


@NO_DEADLINE
@given(st.tuples(TEXTS, TEXTS, TEXTS), st.tuples(TEXTS, TEXTS, TEXTS))
async def test_different_principals_never_share_an_identifier(one: tuple[str, str, str], other: tuple[str, str, str]):
    """A principal is a caller, its team and its end user. Identifiers fit what every upstream accepts."""
    made = [
        await outcome(DERIVED, caller=Caller(name, team), received={"x-end-user": end_user})
        for name, team, end_user in (one, other)
    ]

    assert (made[0] == made[1]) == (one == other)
    assert all(re.fullmatch("[A-Za-z0-9_-]{1,64}", identifier) for identifier in made)


async def test_callers_teams_end_users_and_keys_have_identifiers_of_their_own():
    """Without an end user, the identifier is the caller's."""
    principals = [("anna", "search", ""), ("anna", "ads", ""), ("ben", "search", ""), ("anna", "search", "kim"), ("anna", "search", "kam")]  # fmt: skip
    other = DERIVED.model_copy(update={"key": NEWER})
    made = [
        await outcome(policy, caller=Caller(name, team), received={"x-end-user": user} if user else {})
        for policy in (DERIVED, other)
        for name, team, user in principals
    ]

    assert len(set(made)) == len(made)
    assert made[0] == ANNAS


async def test_only_the_configured_header_is_read():
    """Without `end_user_header` no header changes the identifier."""
    policy = SafetyIdentifier(source="caller", key=KEY)

    assert await outcome(policy, received={"x-end-user": "kim"}) == ANNAS
    assert await outcome(DERIVED, received={"x-enduser": "kim"}) == ANNAS


@pytest.mark.parametrize(
    ("fields", "expected"),
    [({"safety_identifier": value}, refused("mismatch")) for value in ("ben", "", 7, 0, False, [], {}, [ANNAS], ANNAS.lower())]
    + [({"user": "ben"}, refused("mismatch"))]
    + [(fields, ANNAS) for fields in ({}, {"safety_identifier": None}, {"safety_identifier": ANNAS}, {"user": ANNAS})],
)  # fmt: skip
async def test_another_identifier_can_be_refused(fields: dict, expected: Any):
    """The correct one, null and none pass; a `user` that is moved is treated like the field."""
    policy = SafetyIdentifier(source="caller", key=KEY, mismatch="reject", user="move")

    assert await outcome(policy, **fields) == expected


@pytest.mark.parametrize(
    ("user", "body", "expected"),
    [
        ("keep", {"user": "kim"}, {"user": "kim"}),
        ("keep", {"user": "kim", "safety_identifier": "u"}, {"user": "kim", "safety_identifier": "u"}),
        ("drop", {"user": "kim"}, {}),
        ("drop", {"user": 7}, {}),
        ("drop", {"user": None, "safety_identifier": "u"}, {"safety_identifier": "u"}),
        ("drop", {"user": "kim", "safety_identifier": "u"}, {"safety_identifier": "u"}),
        ("move", {"user": "kim"}, {"safety_identifier": "kim"}),
        ("move", {"user": "kim", "safety_identifier": None}, {"safety_identifier": "kim"}),
        ("move", {"user": "kim", "safety_identifier": "u"}, {"safety_identifier": "u"}),
        ("move", {"user": ["odd"]}, {}),
        ("move", {"user": {"id": "u"}}, {}),
        ("move", {"user": None}, {}),
        ("move", {}, {}),
        ("drop", {}, {}),
    ],
)
async def test_user_is_kept_dropped_or_moved(user: Any, body: dict, expected: dict):
    """Every other field stays the same."""
    other = {"input": "Hi", "zzz": {"deep": [None, 1.5]}}
    passed = await apply_policy(SafetyIdentifier(user=user), make_call(**other, **body))

    assert passed.body == {"model": "m", **other, **expected}


async def test_a_moved_user_is_checked_like_any_identifier():
    """Moving does not bypass a rule."""
    policy = SafetyIdentifier(user="move", pii="reject", require=True, blocked=("u-1",))

    assert await outcome(policy, user="kim@example.org") == refused("personal")
    assert await outcome(policy, user="x" * 65) == refused("too_long")
    assert await outcome(policy, user="u-1") == refused("blocked")
    assert await outcome(policy, user=7) == refused("required")


async def test_the_received_call_is_not_modified():
    """A change makes another call."""
    call = make_call(user="u", safety_identifier="ben")
    await apply_policy(DERIVED.model_copy(update={"user": "move"}), call)

    assert call.body == {"model": "m", "user": "u", "safety_identifier": "ben"}


@pytest.mark.parametrize(
    ("settings", "fields"),
    [
        ({}, {"safety_identifier": "u-1"}),
        ({"user": "move"}, {"user": "u-1"}),
        ({"source": "caller", "key": KEY}, {"safety_identifier": "another"}),
        ({"pii": "hash", "key": KEY}, {"safety_identifier": "ada@example.com"}),
    ],
)
async def test_the_config_can_block_an_identifier_as_it_is_sent(settings: dict, fields: dict):
    """Received, moved from `user`, derived or hashed. Others pass."""
    blocked = ("u-1", ANNAS, hash_value(KEY.get_secret_value().encode(), "search", "ada@example.com"))
    policy = SafetyIdentifier(blocked=blocked, **settings)

    assert await outcome(policy, **fields) == refused("blocked")
    assert await outcome(policy, caller=Caller("ben", "shop"), safety_identifier="u-2") != refused("blocked")


async def test_the_store_can_block_an_identifier_at_run_time():
    """`headgate block` writes to the store; every other identifier passes."""
    state = PolicyState()
    await state.store.put(blocked_key("u-1"), b"1", ttl_s=60)

    assert await outcome(SafetyIdentifier(), state=state, safety_identifier="u-1") == refused("blocked")
    assert await outcome(SafetyIdentifier(), state=state, safety_identifier="u-2") == "u-2"
    assert await outcome(SafetyIdentifier(), state=state) is None


@pytest.mark.parametrize("is_in_memory", [True, False])
async def test_an_identifier_that_is_blocked_after_startup_is_refused(is_in_memory: bool):
    """It is looked up in the store for each call; one in memory is not waited for."""
    store = (
        MemoryStore() if is_in_memory else MeasuredStore.of(MemoryStore(), "redis", "state", Histogram(STORE_DURATION))
    )
    check, call = SafetyIdentifier().request_check(PolicyState(store)), make_call(safety_identifier="u-1")
    passed = check(call, make_context())

    assert isinstance(passed, Call) is is_in_memory
    assert (passed if isinstance(passed, Call) else await passed) is call
    await store.put(blocked_key("u-1"), b"1", ttl_s=60)
    with pytest.raises(PolicyViolation, match="This safety_identifier is blocked"):
        await wait_for(check, call)


async def wait_for(check: RequestCheck, call: Call) -> Call:
    """Return the call that a check returns now or later."""
    passed = check(call, make_context())
    return passed if isinstance(passed, Call) else await passed


@pytest.mark.parametrize("settings", [{"source": "caller"}, {"pii": "hash"}, {"pii": "hash", "user": "move"}])
async def test_an_identifier_that_was_blocked_before_a_rotation_stays_blocked(settings: dict):
    """The identifiers under older keys count too, as long as those keys are configured."""
    fields = {"user" if "user" in settings else "safety_identifier": "kim@example.org"}
    made = await outcome(SafetyIdentifier(key=KEY, **settings), **fields)
    rotated = SafetyIdentifier(keys=(NEWER, KEY), blocked=(made,), **settings)
    completed = SafetyIdentifier(keys=(NEWER,), blocked=(made,), **settings)

    assert await outcome(rotated, **fields) == refused("blocked")
    assert await outcome(rotated, caller=Caller("ben", "shop"), **fields) not in (made, refused("blocked"))
    assert await outcome(completed, **fields) not in (made, refused("blocked"))


async def test_an_identifier_that_no_key_made_is_unaffected_by_a_rotation():
    """It is the same under every key."""
    policy = SafetyIdentifier(keys=(NEWER, KEY), pii="hash", blocked=("u-1",))

    assert await outcome(policy, safety_identifier="u-2") == "u-2"
    assert await outcome(policy, safety_identifier="u-1") == refused("blocked")


ROTATED = SafetyIdentifier(source="caller", keys=(NEWER, KEY), end_user_header="x-end-user")
CALLERS = [ANNA, Caller("ben", "search"), Caller("carol", "shop")]


async def test_the_newest_key_signs():
    """The others are only for identifiers that exist already."""
    made = await outcome(ROTATED)

    assert made == derive_identifier(NEWER.get_secret_value().encode(), ANNA) != ANNAS


def test_an_identifier_is_not_recognised_without_its_key():
    """Before the rotation, the newer key is unknown."""
    newer = derive_identifier(NEWER.get_secret_value().encode(), ANNA)

    assert DERIVED.identify(newer, iter(CALLERS), iter([])) is None
    assert DERIVED.identify(ANNAS, iter(CALLERS), iter([])) == "anna (team search)"
    assert SafetyIdentifier().identify(ANNAS, iter(CALLERS), iter([])) is None


def test_the_key_never_appears_in_text():
    """Neither in logs nor in what `check` prints."""
    policy = SafetyIdentifier(source="caller", key=KEY, keys=())
    shown = f"{policy!r} {policy} {policy.model_dump()} {policy.model_dump_json()}"

    assert KEY.get_secret_value() not in shown
    assert policy._key_bytes() == (KEY.get_secret_value().encode(),)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "caller"}, 'source = "caller" needs a key: key = "env:NAME"'),
        ({"pii": "hash"}, 'pii = "hash" needs a key: key = "env:NAME"'),
        ({"source": "caller", "key": KEY, "keys": [KEY]}, "give either key or keys, not both"),
        ({"key": "sk-typed-by-itself"}, 'a secret must be "env:NAME"'),
        ({"pattern": "("}, "not a regular expression"),
        ({"pattern": "(?=a)x"}, "look-around"),
        ({"pattern": "x{99999999999999999999}"}, "not a regular expression"),
        ({"max_chars": 0}, "greater than 0"),
        ({"source": "header"}, "'request' or 'caller'"),
    ],
    ids=str,
)
def test_contradictory_settings_are_config_errors(settings: dict, message: str):
    """They say what is missing, and never show a secret."""
    with pytest.raises(ValidationError) as caught:
        SafetyIdentifier(**settings)

    assert message in str(caught.value)
    assert "typed-by-itself" not in str(caught.value)


@NO_DEADLINE
@given(CHOSEN, CHOSEN)
async def test_what_passes_satisfies_every_rule(identifier: Any, user: Any):
    """Any JSON is refused in one short sentence, or is sent as an identifier that the rules allow."""
    policy = SafetyIdentifier(pattern="[a-z0-9-]+", max_chars=8, pii="reject", user="move", blocked=("u-1",))
    call, message = make_call(safety_identifier=identifier, user=user), "."
    try:
        passed: Any = (await apply_policy(policy, call)).body["safety_identifier"]
    except PolicyViolation as violation:
        passed, message = None, violation.message

    assert passed is None or (re.fullmatch("[a-z0-9-]{1,8}", passed) and passed != "u-1")
    assert message.endswith(".")
    assert len(message) <= 120


@NO_DEADLINE
@given(CHOSEN, CHOSEN, st.sampled_from(["keep", "drop", "move"]), st.sampled_from(["allow", "reject", "hash"]))
async def test_at_most_64_characters_are_sent(identifier: Any, user: Any, handling: Any, pii: Any):
    """Whatever happens to `user` and to personal data."""
    policy, refusal, body = SafetyIdentifier(user=handling, pii=pii, key=KEY), None, {}
    try:
        body = (await apply_policy(policy, make_call(safety_identifier=identifier, user=user))).body
    except PolicyViolation as violation:
        refusal = violation.reason

    assert refusal in (None, "not_a_string", "personal", "too_long")
    assert refusal is not None or len(body["safety_identifier"] or "") <= 64
    assert refusal is not None or ("user" in body) == (handling == "keep")


@NO_DEADLINE
@given(st.dictionaries(FIELDS, CHOSEN, max_size=5), st.booleans())
async def test_the_decision_does_not_depend_on_order_or_streaming(body: dict[str, Any], stream: bool):
    """The same fields in reverse order have the same outcome."""
    policy = SafetyIdentifier(require=True, pattern="[a-z]+", pii="reject", user="move", blocked=("ben",))
    first = await outcome(policy, **body)
    second = await outcome(policy, stream=stream, **dict(reversed(body.items())))

    assert first == second


TABLES = [{"name": c.name, "team": c.team, "key_sha256": hashlib.sha256(c.name.encode()).hexdigest()} for c in CALLERS]
LOOKALIKES = st.sampled_from(["Safety_Identifier", "safety_identifier\u200b", "s\u0430fety_identifier"])
BODIES = st.dictionaries(FIELDS | LOOKALIKES | TEXTS, CHOSEN, max_size=5)


@pytest.fixture
def start_derived(start_gateway: StartGateway, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Start a gateway for three callers that derives identifiers, with these settings beside."""
    monkeypatch.setenv("KEY", KEY.get_secret_value())

    async def start(**settings: Any) -> str:
        policy = {"use": "safety_identifier", "source": "caller", "key": "env:KEY", **settings}
        state = {"use": "memory", "unknown_ids": "allow"}  # the drawn bodies have ids that nothing has created
        return await start_gateway(tables_for(upstream, policy=[policy], caller=TABLES, state=state))

    return start


async def send(http, gateway: str, body: Any, caller: str = "anna", **headers: str) -> str | int:
    """Return 200, or the code of the refusal."""
    sent = {"Authorization": f"Bearer {caller}", "Content-Type": "application/json"} | headers
    async with http.post(f"{gateway}/v1/responses", data=orjson.dumps(body), headers=sent) as answer:
        received = await answer.json()
        return answer.status if answer.status == 200 else received["error"]["code"]


def identifiers(upstream: FakeUpstream) -> list[Any]:
    """Return the identifiers that the upstream received, in order."""
    return [request.body.get("safety_identifier", ...) for request in upstream.requests]


async def test_a_gateway_lets_no_body_choose_the_identifier(start_derived: Any, http, upstream: FakeUpstream):
    """Sixty bodies, and five that are not objects: every answer is 200 or 400, every call that is sent is Anna's."""
    gateway = await start_derived(user="move")
    not_objects: list[Any] = [[], "text", None, 7, [{"safety_identifier": "ben"}]]
    answers = [await send(http, gateway, {**body, "model": "m"}) for body in draw_examples(BODIES, 60)]
    refused_bodies = [await send(http, gateway, body) for body in not_objects]

    assert {answer for answer in answers if answer != 200} <= {"lookalike_field", "invalid_type"}
    assert refused_bodies == ["invalid_json"] * 5
    assert answers.count(200) == len(identifiers(upstream))
    assert set(identifiers(upstream)) == {ANNAS}


async def test_every_gateway_with_the_key_derives_the_same_identifiers(
    start_derived: Any, http, upstream: FakeUpstream
):
    """One for each authenticated caller."""
    for gateway in (await start_derived(), await start_derived()):
        for caller in CALLERS:
            await send(http, gateway, {"model": "m", "safety_identifier": "ben"}, caller.name)

    key = KEY.get_secret_value().encode()
    assert identifiers(upstream) == [derive_identifier(key, caller) for caller in CALLERS] * 2


async def test_the_header_of_the_end_user_is_read_in_any_case_and_not_forwarded(
    start_derived: Any, http, upstream: FakeUpstream
):
    """Without it, or empty, the caller is meant. Two callers' end users of one name are different; fields do not count."""
    gateway, key = await start_derived(end_user_header="X-End-User"), KEY.get_secret_value().encode()
    headers = [{"x-end-user": "kim"}, {"X-END-USER": "kim"}, {"x-end-user": "lee"}, {}, {"x-end-user": ""}]
    answers = [await send(http, gateway, {"model": "m", "x-end-user": "max", "end_user": "max"}, **h) for h in headers]
    answers += [await send(http, gateway, {"model": "m"}, caller.name, **headers[0]) for caller in CALLERS]
    kim, lee = (derive_identifier(key, ANNA, user) for user in ("kim", "lee"))

    assert answers == [200] * 8
    assert identifiers(upstream)[:5] == [kim, kim, lee, ANNAS, ANNAS]
    assert identifiers(upstream)[5:] == [derive_identifier(key, caller, "kim") for caller in CALLERS]
    assert [name for request in upstream.requests for name in request.headers if name.lower() == "x-end-user"] == []


async def test_header_bytes_that_are_not_utf_8_are_end_users_too(start_derived: Any, upstream: FakeUpstream):
    """None of them fails, and no two are the same person."""
    gateway = await start_derived(end_user_header="X-End-User")
    head = raw.post(Authorization="Bearer anna", X_End_User="?")
    users = (b"\xff", b"\xfe", b"\xc3\xa9", b"\xc3")
    statuses = [(await raw.ask(gateway, head.replace(b"?", user))).status for user in users]

    assert statuses == [200] * 4
    assert len(set(identifiers(upstream))) == 4
    assert all(re.fullmatch("[A-Za-z0-9_-]{43}", identifier) for identifier in identifiers(upstream))


async def test_a_refused_call_is_not_sent(start_derived: Any, http, upstream: FakeUpstream):
    """The code has the policy's name."""
    gateway = await start_derived(mismatch="reject")
    answers = [
        await send(http, gateway, {"model": "m", "safety_identifier": other}) for other in ("ben", "", 7, None, ANNAS)
    ]

    assert answers == ["safety_identifier.mismatch"] * 3 + [200] * 2
    assert identifiers(upstream) == [ANNAS] * 2


async def test_a_reported_change_is_not_made(start_derived: Any, http, upstream: FakeUpstream):
    """A header of the answer says what would change."""
    gateway = await start_derived(mode="report")
    headers = {"Authorization": "Bearer anna"}
    async with http.post(f"{gateway}/v1/responses", json={"model": "m", "user": "u"}, headers=headers) as answer:
        reported = answer.headers["x-headgate-policy"]

    assert (reported, identifiers(upstream)) == ("report; safety_identifier.changed", [...])
