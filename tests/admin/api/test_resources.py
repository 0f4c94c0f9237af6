"""What each kind of thing of the admin API shows and changes, on a gateway with calls."""

from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

import aiohttp
import pytest
from aiohttp import web
from opentelemetry.sdk.trace import TracerProvider

from proxy.admin.followers import MOST, MOST_OF_ONE, Followers
from proxy.admin.problem import Problem
from proxy.admin.roles import Operator
from proxy.admin.samples import Totals, percentile
from tests.conftest import CANNED
from tests.metrics import admin_of
from tests.operators import CALLERS, KEYS, Console, console_tables, events_of, start_console
from tests.timeouts import ask_until
from tests.upstream import canonical

NOW_PARTS = ("calls_per_min", "input_tokens_per_min", "cost_usd_per_min", "latency_p50_ms")


@pytest.fixture
async def console(upstream, start_gateway, logged, http, tmp_path, monkeypatch) -> Console:
    return await start_console(start_gateway, console_tables(upstream, tmp_path, monkeypatch), logged, http)


async def found_by(console: Console, query: str, who: str = "owner") -> list[str]:
    status, answer = await console.ask("GET", f"/requests?{query}", who=who)
    assert status == 200
    return [each["id"] for each in answer["requests"]]


async def test_requests_are_found_by_what_they_were(console: Console):
    """The newest is first; an operator of a team finds its own only."""
    _, first = await console.call("ada")
    _, second = await console.call("cleo", model="other", metadata={"k" * 65: "v"})
    _, third = await console.call("ben", input=[{"role": "user", "content": "x"}] * 2)
    moment = quote((datetime.now(UTC) + timedelta(hours=1)).isoformat())
    expected = {
        "": [third, second, first], f"id={first}": [first], "caller=ben": [third], "team=search": [third, first],
        "model=other": [second], "code=metadata_limits.key_too_long": [second], "policy=size": [third],
        "outcome=refused": [second], "outcome=success": [third, first], f"since={moment}": [],
        f"until={moment}&limit=1": [third], "caller=x": [],
    }  # fmt: skip

    assert {query: await found_by(console, query) for query in expected} == expected
    assert await found_by(console, "", "search_admin") == [third, first]
    assert await found_by(console, "team=billing", "search_viewer") == []
    assert (await console.ask("GET", f"/requests/{second}", who="search_admin"))[0] == 404


async def test_a_request_is_a_picture_of_what_happened(console: Console, upstream):
    """Steps one after the other, each attempt, and what each policy decided; nothing of its content."""
    _, refused = await console.call("ben", metadata={"k" * 65: "a secret prompt"})
    _, passed = await console.call("ada", input=[{"role": "user", "content": "a secret prompt"}] * 2)
    _, detail = await console.ask("GET", f"/requests/{passed}")
    _, other = await console.ask("GET", f"/requests/{refused}")

    assert [(step["policy"], step["decision"], step["code"]) for step in detail["policies"]] == [
        ("metadata_limits", "passed", None),
        ("size", "reported", "size.too_many_items"),
        ("output_tokens", "changed", None),
    ]
    assert [step["decision"] for step in other["policies"]] == ["refused", "not reached", "not reached"]
    assert [(attempt["target"], attempt["status"]) for attempt in detail["attempts"]] == [("fake", 200)]
    assert {"identify", "parse", "policies", "backend"} <= {step["name"] for step in detail["steps"]}
    ends = [round(step["began_ms"] + step["lasted_ms"], 3) for step in detail["steps"]]  # 0.59 + 0.01 is more than 0.6
    assert ends == sorted(ends)
    assert ends[-1] == pytest.approx(detail["request"]["duration_ms"], abs=2)
    assert detail["request"]["cost_usd"] > 0
    assert "a secret prompt" not in str((detail, other))


async def test_a_repeated_attempt_stands_beside_the_first(console: Console, upstream):
    """Each has its time, its target and what it came to."""
    statuses = iter([500])

    async def answer(request: web.Request) -> web.StreamResponse:
        status = next(statuses, 200)
        return await canonical(request) if status == 200 else web.json_response({"error": {}}, status=status)

    upstream.answer = answer
    _, made = await console.call("ada")
    _, detail = await console.ask("GET", f"/requests/{made}")
    first, second = detail["attempts"]
    waits = [step["began_ms"] for step in detail["steps"] if step["name"] == "backend"]

    assert (first["status"], second["status"], second["error"]) == (500, 200, None)
    assert first["began_ms"] + first["lasted_ms"] <= second["began_ms"] + 1
    assert waits == pytest.approx([first["began_ms"], second["began_ms"]], abs=1)


async def test_now_has_rates_of_the_operators_team(console: Console):
    """They are differences between two samples."""
    for _ in range(3):
        await console.call("cleo")

    async def is_seen() -> bool:
        _, report = await console.ask("GET", "/now")
        return report["now"] is not None and report["now"]["calls_per_min"] > 0

    await ask_until(is_seen)
    _, everything = await console.ask("GET", "/now")
    _, own = await console.ask("GET", "/now", who="search_viewer")

    assert [name for name in NOW_PARTS if not everything["now"][name]] == []
    assert [name for name in NOW_PARTS if own["now"][name]] == []
    assert [target["name"] for target in everything["targets"]] == ["fake"]
    assert own["targets"] == []


async def test_now_is_streamed(console: Console):
    """Each sample is an event; an operator follows some streams at once, and all of them some more."""
    address = f"{console.admin}/admin/v1/now/stream"

    def follow(who: str, method: str = "GET") -> aiohttp.client._RequestContextManager:
        return console.http.request(method, address, headers={"Authorization": f"Bearer {KEYS[who]}"})

    async with AsyncExitStack() as streams:
        places = [*KEYS] * MOST_OF_ONE
        opened = [await streams.enter_async_context(follow(who)) for who in places]
        report = await anext(events_of(opened[places.index("search_viewer")]))
        async with follow("owner", "HEAD") as head:
            assert (head.status, head.content_type, await head.read()) == (200, "text/event-stream", b"")
        async with follow("owner") as more:
            problem = await more.json(content_type=None)

    assert len(places) == MOST
    assert [answer.status for answer in opened] == [200] * MOST
    assert (more.status, more.headers["Retry-After"], problem["code"]) == (429, "5", "too_many_followers")
    assert "close one" in problem["detail"]
    assert report["targets"] == []


@pytest.mark.parametrize(
    "streams", [{"ada": MOST_OF_ONE}, {"ada": 1, **{str(number): 1 for number in range(MOST - 1)}}]
)
def test_streams_are_bounded_for_one_operator_and_for_all(streams):
    """Another operator is not refused because of the first, until there are too many in all."""
    followers = Followers()
    followers._streams.update({Operator(name, "viewer"): count for name, count in streams.items()})
    is_full = sum(streams.values()) >= MOST
    assert is_refused(followers, "ada")
    assert is_refused(followers, "ben") == is_full


def is_refused(followers: Followers, name: str) -> bool:
    try:
        followers._check(Operator(name, "viewer"))
    except Problem as problem:
        return problem.status == 429
    return False


async def test_a_name_of_another_team_does_not_tell_its_team(console: Console):
    """It is refused to both, and only operators of all teams see why."""
    order = {"name": "cleo", "team": "search"}
    refused = [await console.ask("POST", "/keys", order, who) for who in ("search_admin", "owner")]

    assert [(status, "billing" in problem["detail"]) for status, problem in refused] == [(409, False), (409, True)]


async def test_a_key_is_created_used_rotated_and_revoked(console: Console):
    """By a team's own people; it is not shown a second time, and the audit says who did it."""
    who = "search_admin"
    order = {"name": "eve", "team": "search", "models": ["m"], "tags": {"project": "x"}}
    status, made = await console.ask("POST", "/keys", order, who)
    await ask_until(lambda: is_accepted(console, made["secret"]))
    _, rotated = await console.ask("POST", f"/keys/{made['key']['id']}/rotate", {"overlap_s": 0}, who)
    await ask_until(lambda: is_accepted(console, rotated["secret"]))
    _, revoked = await console.ask("POST", f"/keys/{rotated['key']['id']}/revoke", {}, who)
    _, listed = await console.ask("GET", "/keys", who="viewer")
    _, audit = await console.ask("GET", "/audit?operator=search_admin")

    assert (status, made["key"]["expires"] is None, revoked["status"]) == (201, False, "revoked")
    assert {key["id"]: key["status"] for key in listed["keys"]} == {
        made["key"]["id"]: "expired",
        rotated["key"]["id"]: "revoked",
    }
    assert made["secret"] not in str((listed, audit))
    assert [entry["event"] for entry in audit["entries"]] == ["key.revoked", "key.rotated", "key.created"]


async def is_accepted(console: Console, key: str) -> bool:
    return (await console.call_with(key))[0] == 200


async def test_a_team_admin_has_no_say_over_other_teams(console: Console):
    """Neither over their keys, which are as unknown as any, nor over their cache or callers."""
    _, made = await console.ask("POST", "/keys", {"name": "zoe", "team": "billing"})
    key_id = made["key"]["id"]
    attempts = [
        ("POST", "/keys", {"name": "zed", "team": "billing"}, 403),
        ("POST", f"/keys/{key_id}/rotate", {}, 404),
        ("POST", f"/keys/{key_id}/revoke", {}, 404),
        ("POST", "/cache/purge", {"team": "billing"}, 403),
        ("POST", "/policies/try", {"body": {}, "caller": "cleo"}, 404),
    ]
    found = [(await console.ask(*attempt[:3], "search_admin"))[0] for attempt in attempts]
    _, seen = await console.ask("GET", "/keys", who="search_admin")
    _, models = await console.ask("GET", "/models", who="search_admin")

    assert found == [status for *_, status in attempts]
    assert seen["keys"] == []
    assert {caller for model in models["models"] for caller in model["callers"]} <= {"ada", "ben"}


@pytest.mark.parametrize(
    ("body", "decisions", "status"),
    [
        ({"model": "m", "input": "Hi"}, ["passed", "passed", "changed"], 200),
        ({"model": "m", "input": [{}, {}]}, ["passed", "reported", "changed"], 200),
        ({"model": "m", "metadata": {"k" * 65: "v"}}, ["refused", "not reached", "not reached"], 400),
        ({"model": 1}, [], 400),
    ],
)
async def test_a_request_is_tried_and_not_sent(console: Console, upstream, body, decisions, status):
    """Each policy's decision, and the body that would be sent."""
    wanted = {"body": body, "caller": "ada"}
    found, report = await console.ask("POST", "/policies/try", wanted, "search_viewer")

    assert (found, report["status"], report["passes"]) == (200, status, status == 200)
    assert [step["decision"] for step in report["steps"]] == decisions
    assert (report["body"] is not None) == (status == 200)
    assert upstream.requests == []


async def test_policies_have_what_they_decided(console: Console):
    """By code for all teams, and by caller on the last requests; in report mode as well."""
    await console.call("ada", input=[{"role": "user", "content": "x"}] * 2)
    await console.call("cleo", metadata={"k" * 65: "v"})
    _, everything = await console.ask("GET", "/policies")
    _, own = await console.ask("GET", "/policies", who="search_viewer")
    limits, size, _ = everything["policies"]

    assert limits["decisions"] == [{"decision": "refused", "code": "metadata_limits.key_too_long", "count": 1}]
    assert [(each["caller"], each["decision"]) for each in size["recent"]] == [("ada", "reported")]
    assert (size["mode"], size["settings"], bool(size["about"])) == ("report", {"max_items": 1}, True)
    assert own["policies"][0]["recent"] == []
    assert [policy["decisions"] for policy in own["policies"]] == [[], [], []]


@pytest.mark.parametrize(
    ("text", "is_valid", "word"),
    [("x", False, "not TOML"), (f"[server]\nport = 1{CANNED}", True, "server.port"), ("[nothing]\n", False, "nothing")],
)
async def test_a_text_is_compared_with_the_config(console: Console, text, is_valid, word):
    """The changes of its keys, and its faults."""
    _, found = await console.ask("POST", "/config/changes", {"text": text})

    assert found["is_valid"] == is_valid
    assert word in str(found)
    assert (await console.ask("GET", "/config/changes"))[1]["code"] == "no_config_file"


async def test_the_cache_is_counted_and_purged(console: Console):
    """For the operator's team, or for all."""
    for caller in ("ada", "ben", "cleo"):
        await console.call(caller, prompt_cache_key="k", input="same")
    _, everything = await console.ask("GET", "/cache")
    _, own = await console.ask("GET", "/cache", who="search_viewer")
    _, purged = await console.ask("POST", "/cache/purge", {"model": "m"}, "search_admin")
    _, rest = await console.ask("POST", "/cache/purge", {"model": "m"})

    assert (everything["hits"], everything["lookups"], everything["saved_usd"] > 0) == (1, 3, True)
    assert (own["hit_ratio"], own["lookups"]) == (0.5, 2)
    assert (purged["removed"], rest["removed"]) == (1, 1)


async def test_models_have_their_callers_prices_and_routes(console: Console, upstream):
    """A caller of an issued key may ask what its key may name."""
    await console.ask("POST", "/keys", {"name": "eve", "team": "search", "models": ["other"]})
    await ask_until(lambda: is_listed(console, "eve"))
    _, found = await console.ask("GET", "/models")
    listed = found["models"][0]

    assert set(CALLERS) <= set(listed["callers"])
    assert "eve" not in listed["callers"]
    assert (listed["input_usd_per_million"], listed["output_usd_per_million"]) == (1.0, 2.0)
    assert (listed["route"], listed["targets"]) == ("fake", ["fake"])


async def is_listed(console: Console, caller: str) -> bool:
    status, _ = await console.ask("POST", "/policies/try", {"body": {"model": "m"}, "caller": caller})
    return status == 200


async def test_a_target_is_drained_and_restored(console: Console, upstream):
    """It gets no new calls meanwhile; the audit says who did it."""
    before, _ = await console.call()
    _, drained = await console.ask("POST", "/targets/fake/drain")
    refused, made = await console.call(input="other")
    _, restored = await console.ask("DELETE", "/targets/fake/drain")
    after, _ = await console.call(input="another")
    _, audit = await console.ask("GET", "/audit?operator=owner")
    _, detail = await console.ask("GET", f"/requests/{made}")

    assert [each["targets"][0]["drained"] for each in (drained, restored)] == [True, False]
    assert (before, refused, after, detail["request"]["code"]) == (200, 503, 200, "backend_drained")
    assert [entry["event"] for entry in audit["entries"]] == ["target.restored", "target.drained"]


async def test_the_audit_is_searched_and_verified(console: Console, tmp_path):
    """A line that was changed is found."""
    _, made = await console.call("cleo", metadata={"k" * 65: "v"})
    await ask_until(lambda: is_audited(console, made))
    _, found = await console.ask("GET", f"/audit?decision=refused&caller=cleo&request_id={made}")
    _, intact = await console.ask("GET", "/audit/verification")
    file = tmp_path / "audit.jsonl"
    file.write_bytes(file.read_bytes().replace(b"cleo", b"ada", 1))
    _, altered = await console.ask("GET", "/audit/verification")

    assert [entry["code"] for entry in found["entries"]] == ["metadata_limits.key_too_long"]
    assert [each["is_intact"] for each in intact["files"]] == [True]
    assert (altered["files"][0]["is_intact"], altered["files"][0]["altered_line"] is None) == (False, False)


async def is_audited(console: Console, request_id: str) -> bool:
    _, found = await console.ask("GET", f"/audit?request_id={request_id}")
    return bool(found["entries"])


@pytest.mark.parametrize(
    ("counts", "share", "expected"),
    [([0, 0, 0], 0.5, None), ([4, 0, 0], 0.5, 0.5), ([0, 2, 2], 0.5, 2.0), ([0, 0, 1], 0.99, 2.0)],
)
def test_percentiles_are_interpolated(counts, share, expected):
    """Beyond the last bound they are that bound."""
    assert percentile(counts, share, (1.0, 2.0)) == expected


def test_counters_that_began_anew_are_taken_whole():
    """A gateway that was restarted counts from 0."""
    assert Totals(calls=3).since(Totals(calls=5)).calls == 3
    assert Totals(calls=5, latency=(2, 1)).since(Totals(calls=3, latency=(1, 1))).latency == (1, 0)


async def test_content_is_shown_only_of_teams_that_want_it(
    upstream, start_gateway, logged, http, tmp_path, monkeypatch
):
    """Of a request that is traced; keys in it are replaced, and the trace is linked."""
    tables = console_tables(upstream, tmp_path, monkeypatch, trace={"capture": {"search": "full"}})
    provider = TracerProvider(shutdown_on_exit=False)
    gateway = await start_gateway(tables, tracer=provider.get_tracer("test"))
    console = Console(gateway, admin_of(logged), http)
    secret = "sk-proj-0123456789abcdef"
    made = {caller: (await console.call(caller, input=f"a prompt with {secret}"))[1] for caller in ("ada", "cleo")}
    details = {
        (who, caller): (await console.ask("GET", f"/requests/{made[caller]}", who=who))[1]
        for who, caller in (("owner", "ada"), ("search_viewer", "ada"), ("owner", "cleo"))
    }
    shown = details["owner", "ada"]

    assert details["search_viewer", "ada"]["content"] == shown["content"]
    assert "a prompt with [redacted]" in shown["content"]["gen_ai.input.messages"]
    assert details["owner", "cleo"]["content"] == {}
    assert shown["trace_url"] == f"https://traces.example/{shown['request']['trace_id']}"
    assert len(shown["request"]["trace_id"]) == 32
    assert secret not in str(details)
