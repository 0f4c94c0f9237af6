"""Bodies that are received again: parsed once, decided on each time."""

import functools
import hashlib
import sys
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.cache import key, lookup
from proxy.http.recent_calls import MAX_BODY_BYTES, MAX_ONCE, RecentCalls
from proxy.state import self_contained
from proxy.wire.call import Call, parse_call
from proxy.workers import MANY_VALUES
from tests.conftest import tables_for
from tests.examples import JSON
from tests.raw import ask, post
from tests.upstream import FakeUpstream

BODY = b'{"model":"m","input":"Hi","metadata":{"a":"b"},"user":"u"}'


def body_of(text: str) -> bytes:
    return orjson.dumps({"model": "m", "input": text})


def note(recent: RecentCalls, body: bytes, *, team: str = "t", values: int = 3, times: int = 2) -> Call:
    """Note a body as often as it is received; return the last call that was parsed."""
    for _ in range(times):
        call = parse_call(body)
        recent.note(team, body, call, values)
    return call


def test_a_body_is_remembered_from_its_second_time_on():
    """Of the first time only a hash is kept."""
    recent = RecentCalls()
    note(recent, BODY, times=1)

    assert recent.find("t", BODY) is None
    assert recent.size_bytes == 0

    call = note(recent, BODY, times=1)

    assert recent.find("t", BODY).parsed is call
    assert recent.size_bytes > len(BODY)


def test_wide_characters_take_the_room_that_they_need():
    """One of them makes each character of its string take four bytes in memory."""
    narrow, wide = RecentCalls(), RecentCalls()
    text = "x" * 40_000
    note(narrow, body_of(text))
    call = note(wide, body_of(text + "\U0001f600"))

    assert wide.size_bytes > sys.getsizeof(call.body["input"]) + len(body_of(text))
    assert wide.size_bytes - narrow.size_bytes > 3 * len(text)


def test_another_team_has_calls_of_its_own():
    """How long a call takes says nothing of what another team has sent."""
    recent = RecentCalls()
    note(recent, BODY, team="a")

    assert recent.find("b", BODY) is None
    assert recent.find("a", BODY) is not None


@pytest.mark.parametrize(("body", "values"), [(body_of("x" * MAX_BODY_BYTES), 3), (BODY, MANY_VALUES)])
def test_a_long_body_is_not_remembered(body: bytes, values: int):
    """Neither one of many bytes nor one of many values."""
    recent = RecentCalls()
    note(recent, body, values=values, times=3)

    assert recent.find("t", body) is None


def test_the_calls_used_last_are_remembered():
    """Those that are dropped make room."""
    recent = RecentCalls(max_bytes=8_000)
    first = body_of("0")
    for number in range(100):
        note(recent, body_of(str(number)))
        recent.find("t", first)

        assert recent.size_bytes <= 8_000

    assert recent.find("t", first) is not None
    assert recent.find("t", body_of("1")) is None
    assert recent.find("t", body_of("99")) is not None


def test_hashes_of_bodies_received_once_are_bounded():
    """The oldest one is forgotten: that body then counts as new."""
    recent = RecentCalls()
    note(recent, BODY, times=1)
    for number in range(MAX_ONCE):
        note(recent, body_of(str(number)), times=1)
    note(recent, BODY, times=1)

    assert recent.find("t", BODY) is None


@given(st.dictionaries(st.text(max_size=8), JSON, max_size=4))
def test_what_is_remembered_is_what_would_be_parsed(fields):
    """Body, encoding and size are those of the bytes that are received again."""
    body = orjson.dumps({**fields, "model": "m", "input": "Hi", "stream": None})
    try:
        expected = parse_call(body)
    except Exception:  # noqa: BLE001  a body that is refused is never noted
        return
    recent = RecentCalls()
    note(recent, body)

    found = recent.find("t", body).parsed
    assert (found, found.encoded, found.received_bytes) == (expected, expected.encoded, expected.received_bytes)


def test_a_call_with_other_headers_shares_the_facts():
    """The body's facts are known, the headers are those of this request."""
    asked = []
    call = parse_call(BODY, headers={"user-agent": "a"})
    call.fact(asked.append)

    other = call.with_headers({"user-agent": "b"})
    other.fact(asked.append)

    assert asked == [call]
    assert (other.headers, call.headers) == ({"user-agent": "b"}, {"user-agent": "a"})
    assert other.encoded is call.encoded
    assert call.with_fields(a=1).fact(len_of_body) == len(call.body) + 1


def len_of_body(call: Call) -> int:
    return len(call.body)


async def test_every_backend_call_of_a_repeated_body_is_the_same(start_gateway, upstream: FakeUpstream):
    """What policies change in one call does not reach the next one; its headers are its own."""
    policies = [{"use": "max_tool_calls", "max": 8}, {"use": "safety_identifier", "user": "move"}]
    gateway = await start_gateway(tables_for(upstream, policy=policies))
    for number in range(4):
        answer = await ask(gateway, post(BODY, x_stainless_retry_count=str(number)))

        assert answer.status == 200
    assert [request.raw for request in upstream.requests] == [upstream.requests[0].raw] * 4
    assert [request.headers["x-stainless-retry-count"] for request in upstream.requests] == ["0", "1", "2", "3"]


async def test_what_is_known_of_a_body_outlasts_the_changes_of_policies(
    start_gateway, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
):
    """The ids in it and the fields of the cache's key are looked for until it is remembered, in the changed call."""
    found = []
    for name, modules in (("find_references", [self_contained]), ("hash_fields", [key, lookup])):
        function = getattr(modules[0], name)

        @functools.wraps(function)
        def counted(call: Call, function: Any = function) -> Any:
            found.append(function)
            return function(call)

        for module in modules:
            monkeypatch.setattr(module, name, counted)
    policies = [{"use": "safety_identifier", "user": "move"}, {"use": "metadata_limits", "set": {"a": "c"}}]
    gateway = await start_gateway(tables_for(upstream, policy=policies))
    body, counts = BODY.replace(b'"user"', b'"prompt_cache_key":"k","user"'), []
    for _ in range(5):
        assert (await ask(gateway, post(body))).status == 200
        counts.append(len(found))

    assert counts == [2, 4, 4, 4, 4]


async def test_policies_decide_for_each_caller_of_a_team(start_gateway, upstream: FakeUpstream):
    """A body that one caller may send is refused to another one of its team, however often it is known."""
    callers = [
        {"name": name, "team": "t", "key_sha256": hashlib.sha256(name.encode()).hexdigest()} for name in ("a", "b")
    ]
    policies = [{"use": "models", "deny": ["m"], "callers": ["b"]}]
    gateway = await start_gateway(tables_for(upstream, caller=callers, policy=policies, cache=None))
    statuses = {
        name: [(await ask(gateway, post(BODY, authorization=f"Bearer {name}"))).status for _ in range(3)]
        for name in ("a", "b")
    }

    assert statuses == {"a": [200, 200, 200], "b": [400, 400, 400]}


async def test_a_repeated_body_is_still_refused_by_size(start_gateway, upstream: FakeUpstream):
    """A body is read, counted and bounded before it is looked for, and its type is checked."""
    gateway = await start_gateway(tables_for(upstream))
    for _ in range(3):
        assert (await ask(gateway, post(BODY))).status == 200
    wrong = post(BODY).replace(b"application/json", b"text/plain")

    assert (await ask(gateway, wrong)).status == 415
    assert (await ask(gateway, post(BODY, target="/v1/responses?stream=true"))).status == 400
