"""Whom an upstream holds to account, through a real gate: nobody chooses it who should not."""

import hashlib
import re
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from policies.safety_identifier import SafetyIdentifier
from proxy.rules import Rule, Rules
from proxy.wire.call import Caller, parse_call
from proxy.wire.errors import HeadgateError
from proxy.wire.principal import hashed, identifier_of
from tests import raw
from tests.conftest import StartGate, tables_for
from tests.shapes import JSON, PATIENT, TEXTS, call_with, drawn, judged_by
from tests.upstream import FakeUpstream

KEY, OLD_KEY = b"the key of these tests", b"the one before it"
CALLERS = {"anna": "search", "ben": "search", "carol": "shop"}
TABLES = [
    {"name": name, "team": team, "key_sha256": hashlib.sha256(name.encode()).hexdigest()}
    for name, team in CALLERS.items()
]
BOUND = {"use": "safety_identifier", "source": "caller", "key": "env:KEY"}
ANNA = Caller("anna", "search")
ANNAS = identifier_of(KEY, ANNA)
OURS = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY", KEY.decode())
    monkeypatch.setenv("OLD_KEY", OLD_KEY.decode())


@pytest.fixture
def gate_with(start_gate: StartGate, upstream: FakeUpstream) -> Any:
    """Start a gate for three callers, with one policy of these settings."""

    async def start(**policy: Any) -> str:
        table = {"use": "safety_identifier", **policy}
        return await start_gate(tables_for(upstream, policy=[table], caller=TABLES))

    return start


async def ask(http, gate: str, body: Any, caller: str = "anna", **headers: str) -> str | int:
    """The code of a refusal, or 200."""
    told = {"Authorization": f"Bearer {caller}", "Content-Type": "application/json"} | headers
    async with http.post(f"{gate}/v1/responses", data=orjson.dumps(body), headers=told) as answer:
        said = await answer.json()
        return answer.status if answer.status == 200 else said["error"]["code"]


def sent(upstream: FakeUpstream) -> list[Any]:
    """The identifiers that went out, in order."""
    return [asked.body.get("safety_identifier", ...) for asked in upstream.asked]


CHOSEN = JSON | st.sampled_from(["ben", ANNAS, ANNAS[:-1], "-", identifier_of(KEY, Caller("ben", "search")), "x" * 900])
FIELDS = st.sampled_from([
    "safety_identifier", "user", "metadata", "caller", "team", "x-end-user", "end_user", "safety-identifier",
    "Safety_Identifier", "safety_identifier\u200b", "s\u0430fety_identifier", "prompt", "previous_response_id",
])  # fmt: skip
BODIES = st.dictionaries(FIELDS | TEXTS, CHOSEN, max_size=5)
UNREADABLE = ("lookalike_field", "invalid_type", "missing_required_parameter")  # refused before any policy is asked
BINDING = SafetyIdentifier(source="caller", key=SecretStr(KEY.decode()), end_user_header="x-end-user", user="move")


async def judged(policy: SafetyIdentifier, body: dict[str, Any], caller: Caller = ANNA, **received: str) -> Any:
    """The body as it goes out, or the code of the refusal; from bytes on, as a gate reads them."""
    try:
        call = parse_call(caller, orjson.dumps({"model": "m", **body}), headers={}, received=received)
        return (await Rules([Rule("safety_identifier", policy, "enforce")]).admit(call)).body
    except HeadgateError as error:
        return error.code


@PATIENT
@given(BODIES)
async def test_no_body_changes_who_is_held_to_account(body: dict[str, Any]):
    """It is refused, or goes out under the caller's own identifier; `user` is no way around."""
    out = await judged(BINDING, body)

    assert out in UNREADABLE or out["safety_identifier"] == ANNAS


@PATIENT
@given(st.dictionaries(FIELDS, CHOSEN, max_size=3), TEXTS)
async def test_a_body_does_not_change_an_end_users_identifier_either(body: dict[str, Any], user: str):
    """It is the header's alone."""
    out = await judged(BINDING, body, **{"x-end-user": user})

    assert out == "lookalike_field" or out["safety_identifier"] == identifier_of(KEY, ANNA, user)


@PATIENT
@given(st.tuples(TEXTS, TEXTS, TEXTS), st.tuples(TEXTS, TEXTS, TEXTS))
async def test_two_principals_never_share_an_identifier(one: tuple[str, str, str], other: tuple[str, str, str]):
    """And each fits what every upstream takes: at most 64 letters, digits, hyphens and underscores."""
    made = [
        (await judged(BINDING, {}, Caller(name, team), **{"x-end-user": user}))["safety_identifier"]
        for name, team, user in (one, other)
    ]

    assert (made[0] == made[1]) == (one == other)
    assert all(OURS.fullmatch(identifier) for identifier in made)


@PATIENT
@given(BODIES, st.booleans())
async def test_the_decision_does_not_depend_on_order_or_streaming(body: dict[str, Any], stream: bool):
    """The same fields the other way round, as a stream or not, have the same fate."""
    policy = SafetyIdentifier(require=True, pattern="[a-z]+", pii="reject", user="move", blocked=("ben",))
    first = await judged(policy, body)
    second = await judged(policy, {"stream": stream, **dict(reversed(body.items()))})

    fates = [fate if fate is None or isinstance(fate, str) else fate["safety_identifier"] for fate in (first, second)]

    assert fates[0] == fates[1]


async def test_a_real_gate_lets_no_body_choose(gate_with: Any, http, upstream: FakeUpstream):
    """Sixty bodies of any shape, and some that are no object: each answer is 200 or 400, each call is Anna's."""
    gate = await gate_with(**BOUND, user="move")
    odd: list[Any] = [[], "text", None, 7, [{"safety_identifier": "ben"}]]
    fates = [await ask(http, gate, {"model": "m", **body}) for body in drawn(BODIES, 60)]
    refused = [await ask(http, gate, body) for body in odd]

    assert {fate for fate in fates if fate != 200} <= {"lookalike_field", "invalid_type"}
    assert refused == ["invalid_json"] * 5
    assert fates.count(200) == len(sent(upstream))
    assert set(sent(upstream)) == {ANNAS}


async def test_each_caller_has_an_identifier_of_its_own(gate_with: Any, http, upstream: FakeUpstream):
    """The same one each time, on every gate that has the key."""
    for gate in (await gate_with(**BOUND), await gate_with(**BOUND)):
        for name in CALLERS:
            await ask(http, gate, {"model": "m", "safety_identifier": "ben"}, name)

    assert sent(upstream) == [identifier_of(KEY, Caller(*caller)) for caller in CALLERS.items()] * 2


async def test_the_header_names_the_end_user(gate_with: Any, http, upstream: FakeUpstream):
    """Whatever the case of its name; left out or empty, the caller speaks for itself; nobody upstream sees it."""
    gate = await gate_with(**BOUND, end_user_header="X-End-User")
    headers = [{"x-end-user": "kim"}, {"X-END-USER": "kim"}, {"x-end-user": "lee"}, {}, {"x-end-user": ""}]
    fates = [await ask(http, gate, {"model": "m"}, **header) for header in headers]
    kim, lee = (identifier_of(KEY, ANNA, user) for user in ("kim", "lee"))

    assert fates == [200] * 5
    assert sent(upstream) == [kim, kim, lee, ANNAS, ANNAS]
    assert [name for asked in upstream.asked for name in asked.headers if name.lower() == "x-end-user"] == []


async def test_an_end_user_belongs_to_its_caller(gate_with: Any, http, upstream: FakeUpstream):
    """Two callers that both know a Kim know two people."""
    gate = await gate_with(**BOUND, end_user_header="X-End-User")
    for name in CALLERS:
        await ask(http, gate, {"model": "m"}, name, **{"x-end-user": "kim"})

    assert len(set(sent(upstream))) == 3


async def test_another_header_or_a_field_of_its_name_is_not_read(gate_with: Any, http, upstream: FakeUpstream):
    """Only what the operator named is trusted."""
    gate = await gate_with(**BOUND, end_user_header="X-End-User")
    unnamed = await gate_with(**BOUND)
    await ask(http, gate, {"model": "m", "x-end-user": "kim", "end_user": "kim"}, **{"x-enduser": "kim"})
    await ask(http, unnamed, {"model": "m"}, **{"x-end-user": "kim"})

    assert sent(upstream) == [ANNAS, ANNAS]


async def test_bytes_of_a_header_that_are_no_utf_8_are_an_end_user_too(gate_with: Any, upstream: FakeUpstream):
    """None of them fails, and no two of them are one person."""
    gate = await gate_with(**BOUND, end_user_header="X-End-User")
    head = raw.post(Authorization="Bearer anna", X_End_User="?")
    statuses = [
        (await raw.ask(gate, head.replace(b"?", user))).status for user in (b"\xff", b"\xfe", b"\xc3\xa9", b"\xc3")
    ]

    assert statuses == [200] * 4
    assert len(set(sent(upstream))) == 4
    assert all(OURS.fullmatch(identifier) for identifier in sent(upstream))


async def test_another_identifier_can_be_refused(gate_with: Any, http, upstream: FakeUpstream):
    """Its own, null and none pass; nothing that was refused goes out."""
    gate = await gate_with(**BOUND, mismatch="reject")
    others: list[Any] = ["ben", "", 7, 0, False, [], {}, [ANNAS], ANNAS.lower()]
    fates = [await ask(http, gate, {"model": "m", "safety_identifier": other}) for other in others]
    good = [await ask(http, gate, {"model": "m", **body}) for body in ({}, {"safety_identifier": None})]
    own = await ask(http, gate, {"model": "m", "safety_identifier": ANNAS})

    assert fates == ["safety_identifier.mismatch"] * len(others)
    assert [*good, own] == [200] * 3
    assert sent(upstream) == [ANNAS] * 3


async def test_a_user_that_is_moved_is_a_mismatch_too(gate_with: Any, http, upstream: FakeUpstream):
    """With both keys set, the deprecated name of the field is judged like the field."""
    gate = await gate_with(**BOUND, mismatch="reject", user="move")

    assert await ask(http, gate, {"model": "m", "user": "ben"}) == "safety_identifier.mismatch"
    assert await ask(http, gate, {"model": "m", "user": ANNAS}) == 200
    assert sent(upstream) == [ANNAS]


async def test_the_newest_key_signs(gate_with: Any, http, upstream: FakeUpstream):
    """Before a rotation, in the middle of it, and after it."""
    for keys in (["env:OLD_KEY"], ["env:KEY", "env:OLD_KEY"], ["env:KEY"]):
        gate = await gate_with(use="safety_identifier", source="caller", keys=keys)
        await ask(http, gate, {"model": "m"})

    assert sent(upstream) == [identifier_of(OLD_KEY, ANNA), ANNAS, ANNAS]


async def test_a_reported_identifier_is_not_changed(gate_with: Any, http, upstream: FakeUpstream):
    """The header says what would be."""
    gate = await gate_with(**BOUND, mode="report")
    headers = {"Authorization": "Bearer anna"}
    async with http.post(f"{gate}/v1/responses", json={"model": "m", "user": "u"}, headers=headers) as answer:
        told = answer.headers["x-headgate-policy"]

    assert (told, sent(upstream)) == ("report; safety_identifier.changed", [...])


PERSONAL = [
    "ada@example.com", "Ada.Lovelace+work@mail.example.co.uk", "mailto:ada@example.com", "<ada@example.com>",
    "ada@ex\u00e4mple.de", "user ada@example.com", "ada@\u200bexample.com", "\uff41\uff44\uff41\uff20example.com",
    "+49 30 1234567", "+1 (555) 123-4567", "(030) 123-4567", "555-123-4567", "555.123.4567", "0049301234567",
    "tel:+493012345678", "call +49-30-1234567 now", "\uff0b\uff14\uff19 \uff13\uff10 1234567",
    "Ada Lovelace", "Lovelace, Ada", "Lovelace,Ada", "Ada B. Lovelace", "Dr. Ada King", "id Ada Lovelace 7",
    "Jos\u00e9 Garc\u00eda", "Zoe\u0308 Kravitz", "Ada\u00a0Lovelace", "A\u00add\u00ada Lovelace",
]  # fmt: skip
NOBODY = [
    "user_1", "ada", "Ada", "ada lovelace", "ADA_LOVELACE", "Ada.Lovelace", "1234567", "a@b", "@ada", "u-4930123456x", "10.0.0.1",
    "00000000-1111-2222-3333-44444444444f", hashlib.sha256(b"ada@example.com").hexdigest(), ANNAS, "",
]  # fmt: skip


async def test_what_is_personal_passes_where_it_is_allowed(gate_with: Any, http, upstream: FakeUpstream):
    """As it was typed, which is the default."""
    gate = await gate_with()
    fates = [await ask(http, gate, {"model": "m", "safety_identifier": value}) for value in PERSONAL + NOBODY]

    assert set(fates) == {200}
    assert sent(upstream) == PERSONAL + NOBODY


async def test_what_is_personal_is_refused(gate_with: Any, http, upstream: FakeUpstream):
    """An address, a telephone number, a name, in whatever dress; identifiers, hashes and UUIDs pass."""
    gate = await gate_with(pii="reject")
    fates = {value: await ask(http, gate, {"model": "m", "safety_identifier": value}) for value in PERSONAL + NOBODY}

    assert fates == dict.fromkeys(PERSONAL, "safety_identifier.personal") | dict.fromkeys(NOBODY, 200)
    assert sent(upstream) == NOBODY


async def test_what_is_personal_is_hashed(gate_with: Any, http, upstream: FakeUpstream):
    """With the gate's key and the team's name, so that who knows addresses cannot try them out."""
    gate = await gate_with(pii="hash", key="env:KEY")
    for value in PERSONAL + NOBODY:
        await ask(http, gate, {"model": "m", "safety_identifier": value})

    assert sent(upstream) == [hashed(KEY, "search", value) for value in PERSONAL] + NOBODY
    assert all(OURS.fullmatch(identifier) for identifier in sent(upstream)[: len(PERSONAL)])


async def test_a_team_shares_its_hashes_and_no_other_team_does(gate_with: Any, http, upstream: FakeUpstream):
    """The same person at two callers of a team is one, at another team's another."""
    gate = await gate_with(pii="hash", key="env:KEY")
    for name in CALLERS:
        await ask(http, gate, {"model": "m", "safety_identifier": "ada@example.com"}, name)
    anna, ben, carol = sent(upstream)

    assert anna == ben != carol


async def test_nothing_longer_than_the_limit_goes_out(gate_with: Any, http, upstream: FakeUpstream):
    """Be it one word, or an address that is hashed, or too long to be looked at."""
    gate = await gate_with(pii="hash", key="env:KEY")
    values = ["x" * 64, "x" * 65, f"{'x' * 60}@example.com", f"{'x' * 600}@example.com", "\U0001f600" * 64]
    fates = [await ask(http, gate, {"model": "m", "safety_identifier": value}) for value in values]

    assert fates == [200, "safety_identifier.too_long", 200, "safety_identifier.too_long", 200]
    assert all(len(identifier) <= 64 for identifier in sent(upstream))


@PATIENT
@given(CHOSEN, CHOSEN, st.sampled_from(["keep", "drop", "move"]), st.sampled_from(["allow", "reject", "hash"]))
async def test_what_passes_is_within_the_limits(identifier: Any, user: Any, becomes: Any, pii: Any):
    """Whatever is asked: refused with a code of ours, or a text of at most 64 characters, or none at all."""
    policy = SafetyIdentifier(user=becomes, pii=pii, key=SecretStr("k"))
    out = await judged(policy, {"safety_identifier": identifier, "user": user})
    reasons = ("not_a_string", "personal", "too_long")

    assert out in [f"safety_identifier.{reason}" for reason in reasons] or len(out["safety_identifier"] or "") <= 64
    assert isinstance(out, str) or ("user" in out) == (becomes == "keep")


@pytest.mark.parametrize(
    ("becomes", "body", "expected"),
    [
        ("keep", {"user": "u"}, {"user": "u"}),
        ("keep", {"user": "u", "safety_identifier": "s"}, {"user": "u", "safety_identifier": "s"}),
        ("drop", {"user": "u", "safety_identifier": "s"}, {"safety_identifier": "s"}),
        ("drop", {"user": 7}, {}),
        ("move", {"user": "u"}, {"safety_identifier": "u"}),
        ("move", {"user": "u", "safety_identifier": "s"}, {"safety_identifier": "s"}),
        ("move", {"user": {"id": "u"}}, {}),
    ],
)
async def test_what_becomes_of_user(gate_with: Any, http, upstream: FakeUpstream, becomes: str, body, expected):
    """Kept, dropped, or moved where it belongs now; every other field stays as it was."""
    gate = await gate_with(user=becomes)
    other = {"model": "m", "input": "Hi", "zzz": {"deep": [None, 1.5]}}

    assert await ask(http, gate, other | body) == 200
    assert upstream.asked[0].body == other | expected


async def test_who_is_listed_is_refused_in_any_dress_that_goes_out(gate_with: Any, http, upstream: FakeUpstream):
    """Moved from `user`, hashed, or derived: what counts is what would go out."""
    listed = ["bad", hashed(KEY, "search", "ada@example.com"), ANNAS]
    moved = await gate_with(blocked=listed, pii="hash", key="env:KEY", user="move")
    derived = await gate_with(**BOUND, blocked=listed)
    bodies: list[Any] = [{"safety_identifier": "bad"}, {"user": "bad"}, {"safety_identifier": "ada@example.com"}]
    fates = [await ask(http, moved, {"model": "m", **body}) for body in bodies]

    assert fates == ["safety_identifier.blocked"] * 3
    assert await ask(http, derived, {"model": "m"}) == "safety_identifier.blocked"
    assert await ask(http, derived, {"model": "m"}, "ben") == 200
    assert len(upstream.asked) == 1


async def test_who_was_blocked_under_an_older_key_stays_blocked():
    """Also when it is the config that names them, and also for what was hashed."""
    keys = (SecretStr(KEY.decode()), SecretStr(OLD_KEY.decode()))
    mail = "ada@example.com"
    bound = SafetyIdentifier(source="caller", keys=keys, blocked=(identifier_of(OLD_KEY, ANNA),))
    chosen = SafetyIdentifier(pii="hash", keys=keys, blocked=(hashed(OLD_KEY, "search", mail),))

    assert await judged(bound, {}) == "safety_identifier.blocked"
    assert (await judged(bound, {}, Caller("ben", "search")))["safety_identifier"] != ANNAS
    assert await judged(chosen, {"safety_identifier": mail}) == "safety_identifier.blocked"
    assert (await judged(chosen, {"safety_identifier": "user_1"}))["safety_identifier"] == "user_1"


async def test_the_call_that_was_asked_is_not_touched():
    """A change makes another call."""
    call = call_with(ANNA, user="u", safety_identifier="ben")
    await judged_by(BINDING, call)

    assert call.body == {"model": "m", "user": "u", "safety_identifier": "ben"}
