"""What callers and operators see of usage: GET /v1/usage, `headgate usage`, calls that are not one answer to one."""

import asyncio
import csv
import io
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
import orjson
import pytest
import redis
from aiohttp import web

from proxy.__main__ import main
from proxy.app import running
from proxy.config.build import read
from proxy.usage.columns import COLUMNS
from proxy.usage.formats import as_csv, as_table
from proxy.usage.query import UsageLine, UsageReport
from tests.conftest import StartGateway, tables_for
from tests.test_accounting import BEGUN, BODY, KEY, Ways, answering
from tests.upstream import CANONICAL, FakeUpstream, hang
from tests.usage.asked import counted, usage_of

ROOT = Path(__file__).parents[2]
TOKENS = {"input_tokens": 5, "output_tokens": 7, "reasoning_tokens": 2}
CALLERS = [{"name": name, "team": team, "key_sha256": digest} for name, team, digest in (
    ("ada", "search", "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"),
    ("bob", "search", "3e23e8160039594a33894f6564e1b1348bbd7a0088d42c4acb73eeaed59c009d"),
    ("eve", "other", "2e7d2c03a9507ae265ecf5b5356885a53393a2029d241394997265a1a25aefc6"),
)]  # fmt: skip
KEYS = {"ada": "a", "bob": "b", "eve": "c"}


def bearer(caller: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {KEYS[caller]}"}


@pytest.fixture
async def ways(http, start_gateway: StartGateway, upstream: FakeUpstream, request: Any) -> Ways:
    """A gateway with a cache, a relay, a pool of two with hedges, and calls that are shared."""
    backend = {"use": "upstream", "base_url": f"{upstream.address}/v1", "keeps_state": True}
    tables = tables_for(
        upstream,
        backend=[backend | {"name": "fake"}, backend | {"name": "second"}],
        route=[
            {"model": "hedged", "backends": ["fake", "second"], "hedge_after_ms": 1},
            {"model": "*", "backend": "fake"},
        ],
        policy=[{"use": "metadata_limits", "set": {"stage": "test"}}],
        cache={"use": "memory"} | getattr(request, "param", {}),
        relay=[{"path": "/v1/chat/completions", "backend": "fake"}],
        price=[{"model": "*", "input": 1, "output": 2}],
        usage={"flush_s": 0.05, "metadata": ["project", "stage"]},
    )
    return Ways(http, await start_gateway(tables), upstream)


async def test_what_the_cache_answers_is_saved(ways: Ways):
    """In columns of its own; the answer is one call of the backend."""
    for _ in range(3):
        await ways.json(KEY)
    usage = await usage_of(ways.http, ways.gateway, 3)
    cost = 19 / 1e6

    assert counted(usage["total"]) == TOKENS | {
        "calls": 3, "sent": 1, "cached": 2, "saved_input_tokens": 10, "saved_output_tokens": 14, "cost_usd": cost,
        "saved_cost_usd": 2 * cost,
    }  # fmt: skip


@pytest.mark.parametrize(("ways", "charged"), [({}, 1), ({"collapsed_cost": "each"}, 1)], indirect=["ways"])
async def test_a_shared_call_is_sent_once(ways: Ways, charged: int):
    """The callers that joined it have saved it."""
    released = asyncio.Event()

    async def rest(response: Any) -> None:
        await released.wait()
        await response.write(CANONICAL[len(BEGUN) :])

    ways.upstream.answer = answering(BEGUN, rest)
    calls = [asyncio.create_task(ways.stream(KEY)) for _ in range(3)]
    await ways.upstream.arrived.wait()
    released.set()
    await asyncio.gather(*calls)
    total = counted((await usage_of(ways.http, ways.gateway, 3))["total"])

    assert {name: total[name] for name in ("calls", "sent", "cached", "input_tokens", "saved_input_tokens")} == {
        "calls": 3, "sent": 1, "cached": 2, "input_tokens": 5 * charged, "saved_input_tokens": 10,
    }  # fmt: skip


async def test_every_attempt_of_a_hedged_call_is_counted(ways: Ways):
    """As the backends do; it is one call."""
    both, answer = asyncio.Event(), answering()

    async def late(request: Any) -> Any:
        if len(ways.upstream.requests) == 1:
            await hang(request)
        both.set()
        return await answer(request)

    ways.upstream.answer = late
    await ways.json({"model": "hedged"})
    total = (await usage_of(ways.http, ways.gateway))["total"]

    assert (total["calls"], total["sent"], len(ways.upstream.requests)) == (1, 2, 2)
    assert total["estimated_input_tokens"] + total["input_tokens"] == 10


async def test_relayed_calls_have_the_usage_that_their_answers_state(ways: Ways):
    """In the words of Chat Completions."""
    stated = {"usage": {"prompt_tokens": 11, "completion_tokens": 13, "prompt_tokens_details": {"cached_tokens": 2}}}

    async def answer_chat(_: web.Request) -> web.Response:
        return web.json_response(stated)

    ways.upstream.answer = answer_chat
    body = {"model": "m", "messages": [], "metadata": {"project": "x"}}
    async with ways.http.post(f"{ways.gateway}/v1/chat/completions", json=body) as answer:
        assert await answer.json() == stated
    (line,) = (await usage_of(ways.http, ways.gateway, by="model,project,target"))["data"]

    assert counted(line) == {
        "model": "m", "project": "x", "target": "fake", "calls": 1, "sent": 1, "input_tokens": 11, "output_tokens": 13,
        "cached_input_tokens": 2, "cost_usd": 37 / 1e6,
    }  # fmt: skip


async def test_metadata_is_what_the_policies_have_made_of_it(ways: Ways):
    """A pair that a policy sets replaces the caller's; other pairs have no rows."""
    await ways.json({"metadata": {"project": "x", "stage": "mine", "user": "u"}})
    await ways.json({"metadata": {"project": 7}})
    usage = await usage_of(ways.http, ways.gateway, 2, by="project,stage")

    assert [(line["project"], line["stage"], line["refused"]) for line in usage["data"]] == [
        ("x", "test", 0),
        ("", "", 1),
    ]


@pytest.mark.parametrize("team_view", [False, True])
async def test_a_caller_sees_its_own_usage_only(http, start_gateway, upstream, team_view: bool):
    """Or that of its team, where the config says so; never another team's. The answer is as its schema says."""
    usage = {"flush_s": 0.05, "team_view": team_view}
    policies = [
        {"use": "budget", "unit": "requests", "limit": 9, "per": "caller"} | more
        for more in ({"window": "total"}, {"mode": "report"}, {"callers": ["eve"]}, {"per": "model"})
    ]
    gateway = await start_gateway(tables_for(upstream, caller=CALLERS, usage=usage, policy=policies))
    for caller in ("ada", "ada", "bob", "eve"):
        async with http.post(f"{gateway}/v1/responses", json=BODY, headers=bearer(caller)) as answer:
            assert answer.status == 200
    seen = {"ada": 3 if team_view else 2, "bob": 3 if team_view else 1, "eve": 1}
    found = {name: await usage_of(http, gateway, calls, bearer(name), by="model,day") for name, calls in seen.items()}
    schema = orjson.loads(re.findall(r"```json\n(.*?)```", (ROOT / "proxy/usage/README.md").read_text(), re.DOTALL)[0])

    assert {name: answer["total"]["calls"] for name, answer in found.items()} == seen
    assert {name: answer.get("caller") for name, answer in found.items()} == {
        name: None if team_view else name for name in seen
    }
    assert {name: [each["used"] for each in answer["budgets"]] for name, answer in found.items()} == {
        "ada": [2], "bob": [1], "eve": [1, 1],
    }  # fmt: skip
    for answer in found.values():
        jsonschema.validate(answer, schema, format_checker=jsonschema.FormatChecker())
    async with http.get(f"{gateway}/v1/usage") as answer:
        assert answer.status == 401


@pytest.mark.parametrize(
    "query",
    ["since=x", "since=now", "since=40d", "since=1d&until=2d", "by=team", "by=caller", "by=project", "team=search",
     "since=1d&since=2d", "since=9999-12-31", "since=9999-12-31T20:00&until=9999-12-31T23:30", "since=%00"],
)  # fmt: skip
async def test_other_questions_are_refused(gateway: str, http, query: str):
    """Above all those for other callers."""
    async with http.get(f"{gateway}/v1/usage?{query}") as answer:
        found = await answer.json()

    assert (answer.status, found["error"]["code"]) == (400, "invalid_value")


async def test_nothing_is_counted_where_it_is_turned_off(http, start_gateway, upstream):
    """Then there is no such path."""
    gateway = await start_gateway(tables_for(upstream, usage={"keep_days": 0}))
    async with http.post(f"{gateway}/v1/responses", json=BODY) as called, http.get(f"{gateway}/v1/usage") as answer:
        assert (called.status, answer.status) == (200, 404)


@pytest.fixture
async def config(tmp_path: Path, upstream: FakeUpstream, start_gateway, http, state_table) -> Path:
    """The file of a gateway that has ended after three calls, whose state is in SQLite or Redis."""
    path = tmp_path / "headgate.toml"
    state = "\n".join(f"{name} = {orjson.dumps(value).decode()}" for name, value in state_table.items())
    path.write_text(f'[usage]\nmetadata = ["project"]\n[state]\n{state}\n[[backend]]\nuse = "upstream"\n'
                    f'name = "fake"\nbase_url = "{upstream.address}/v1"\n[[route]]\nmodel = "*"\nbackend = "fake"\n'
                    '[[price]]\nmodel = "*"\ninput = 1\noutput = 2\n')  # fmt: skip
    return path


@pytest.mark.parametrize("state_table", ["sqlite", "redis"], indirect=True)
async def test_the_command_prints_what_was_used(config: Path, http, redis_server, capsys):
    """Of a gateway that has ended, in each format; sums agree."""
    with redis.Redis.from_url(redis_server.url) as direct:
        direct.flushdb()
    loaded = read(config)
    loaded = loaded.model_copy(update={"server": loaded.server.model_copy(update={"port": 0})})
    async with running(loaded) as gateway:
        for model, project in (("m", "x"), ("m", "x"), ("=n", "y")):
            body = BODY | {"model": model, "metadata": {"project": project}}
            async with http.post(f"{gateway}/v1/responses", json=body) as answer:
                await answer.read()
    printed = {}
    for form in ("table", "csv", "json", "focus"):
        command = ["usage", "--config", str(config), "--since", "24h", "--by", "model,project", "--format", form]
        assert await asyncio.to_thread(main, [*command, "--tz", "Europe/Berlin"]) == 0
        printed[form] = capsys.readouterr().out
    rows, focus = ([*csv.DictReader(io.StringIO(printed[form]))] for form in ("csv", "focus"))
    found = orjson.loads(printed["json"])

    assert [(row["model"], row["project"], row["calls"], row["cost_usd"]) for row in rows] == [
        ("m", "x", "2", "0.000038000"), ("'=n", "y", "1", "0.000019000"),
    ]  # fmt: skip
    assert found["total"]["calls"] == 3
    assert found["since"].endswith(("+01:00", "+02:00"))
    assert re.search(r"\(CES?T\).*\n.*\n +model .* calls|model +project", printed["table"])
    assert printed["table"].splitlines()[-1].split() == ["total", "3", "3", "15", "21", "6", "0.0001"]
    assert sum(float(row["BilledCost"]) for row in focus) == pytest.approx(57 / 1e6)
    assert {(row["ChargeCategory"], row["BillingCurrency"], row["ServiceCategory"]) for row in focus} == {
        ("Usage", "USD", "AI and Machine Learning")
    }
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:00:00Z", row["ChargePeriodStart"]) for row in focus)
    assert {orjson.loads(row["Tags"])["project"] for row in focus} == {"x", "y"}


@pytest.mark.parametrize(("cost", "unpriced", "shown"), [(0, 0, "0.0000"), (0, 2, "unpriced"), (19_000, 1, "0.0000")])
def test_the_table_does_not_show_0_for_an_unknown_price(cost: int, unpriced: int, shown: str):
    """What is known is shown, however little it is."""
    known = {"calls": 2, "cost": cost, "unpriced": unpriced}
    line = UsageLine(("m",), tuple(known.get(name, 0) for name in COLUMNS))
    now = datetime.now(UTC)
    table = as_table(UsageReport(now, now, ("model",), (line,), line))

    assert [row.split()[2] for row in table.splitlines()[3:]] == [shown, shown]


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(1)", "\t=1", "\r=1", "\n=1"])
def test_no_cell_is_a_formula(name: str):
    """Callers choose names of models and metadata; who opens a report must not run them."""
    line = UsageLine((name,), (0,) * len(COLUMNS))
    report = UsageReport(datetime.now(UTC), datetime.now(UTC), ("model",), (line,), line)
    (row,) = csv.DictReader(io.StringIO(as_csv(report), newline=""))

    assert row["model"] == f"'{name}".replace("\r", " ")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--by", "model,projct"], "'projct' is not counted"),
        (["--since", "now"], "is not before"),
        (["--since", "soon"], "'soon' is no time"),
        (["--tz", "Moon/Sea"], "'Moon/Sea' is no time zone"),
        (["--where", "team"], "'team' is no NAME=VALUE"),
    ],
)
@pytest.mark.parametrize("state_table", ["sqlite"], indirect=True)
async def test_faults_are_said_in_plain_words(config: Path, capsys, options: list[str], said: str):
    """The exit status is 2."""
    assert await asyncio.to_thread(main, ["usage", "--config", str(config), *options]) == 2
    assert said in capsys.readouterr().err
