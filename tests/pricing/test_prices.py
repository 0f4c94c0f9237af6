"""What calls cost: exact amounts, from [[price]], from list prices, or unknown."""

import asyncio
import sys
from decimal import Decimal
from typing import Any

import pytest

from backends.upstream import Upstream
from proxy.config.build import build
from proxy.config.validation import ConfigError
from proxy.pricing.catalog import Catalog, LookupFailedError
from proxy.pricing.lookup import find_rates
from proxy.pricing.prices import Prices, Quote
from proxy.pricing.rates import Rates, TokenRate, rates_of
from proxy.pricing.table import PriceTable
from proxy.telemetry.record import RequestRecord
from tests.conftest import tables_for
from tests.metrics import admin_of, scrape
from tests.pipelines import ScriptedBackend
from tests.raw import until
from tests.upstream import hang

RATES = rates_of({
    "input": [("0", "1.25"), ("200000", "2.5")], "output": [("0", "10"), ("200000", "15")],
    "cached_input": [("0", "0.125")],
})  # fmt: skip
OWN = {"model": "m*", "input": 1.25, "output": 10, "cached_input": 0.125, "cache_write": 2}


@pytest.mark.parametrize(
    ("counts", "usd"),
    [
        ((0, 0), "0"),
        ((1000, 100), "0.00225"),
        ((1000, 100, 400), "0.0018"),
        ((200_000, 1), "0.25001"),
        ((200_001, 1, 200_000), "0.0250175"),
        ((10, 0, 20, 5), "0.00000125"),
        ((10, 0, 4, 20), "0.000008"),
    ],
)
def test_amounts_are_exact(counts: tuple[int, ...], usd: str):
    """A step counts for the whole input, and parts of the input are never more than all of it."""
    assert RATES.cost(*counts) == Decimal(usd)
    assert RATES.cost_usd(*counts) == float(usd)


@pytest.mark.parametrize("price", ["0.1", "1e2", "0.000000000123", "3.3333333333333333"])
def test_prices_of_any_precision_are_exact(price: str):
    rates = Rates(TokenRate(Decimal(price)), TokenRate(Decimal("1.25"), ((5, Decimal("0.7")),)))

    assert rates.cost(7, 0) == Decimal(price) * 7 / 1_000_000
    assert rates.cost_usd(7, 3) == float((Decimal(price) * 7 + Decimal("2.1")) / 1_000_000)


def test_without_a_price_of_its_own_cached_input_costs_as_any_other():
    assert Rates(TokenRate(Decimal(2)), TokenRate(Decimal(3))).cost(1_000_000, 1_000_000, 300_000, 400_000) == Decimal(
        5
    )


@pytest.mark.parametrize(
    ("price_list", "model", "known"),
    [
        ("openai", "gpt-5", True),
        ("https://api.openai.com/v1", "gpt-5", True),
        ("https://api.anthropic.com/v1", "claude-opus-4-5", True),
        ("openai", "no-such-model", False),
        ("no-such-provider", "gpt-5", False),
        ("https://gateway.example/v1", "gpt-5", False),
    ],
)
def test_list_prices_are_those_of_the_package(price_list: str, model: str, known: bool):
    """They are found by the provider's id or address."""
    assert (find_rates(price_list, model) is not None) == known


async def test_a_child_process_answers_for_list_prices():
    """One process for several models, which ends with the catalog."""
    catalog = Catalog()
    known, unknown = await catalog.find("openai", "gpt-5"), await catalog.find("openai", "no\nsuch\u2028model")
    process = catalog._process
    await catalog.close()

    assert known is not None
    assert known.cost(1_000_000, 1_000_000) == Decimal("11.25")
    assert unknown is None
    assert process is not None
    assert process.returncode is not None


@pytest.mark.parametrize("command", [(sys.executable, "-c", "pass"), ("/none",), (sys.executable, "-c", "print('?')")])
async def test_a_process_that_fails_is_not_started_at_once_again(command: tuple[str, ...], logged):
    """The failure is one log line, calls have no price meanwhile, and the next one asks again."""
    prices = Prices((), Catalog(command))
    backend = Upstream(name="up", base_url="https://api.openai.com/v1")
    for _ in range(2):
        record = RequestRecord(input_tokens=1, output_tokens=1)
        await prices.quote(backend, "gpt-5").price(record)
        assert (record.unpriced, record.cost_usd) == (True, None)
    with pytest.raises(LookupFailedError):
        await prices._catalog.find("openai", "gpt-5")
    await prices.close()

    assert [line["event"] for line in logged] == ["prices.lookup_failed"]


async def test_a_process_that_is_idle_ends(monkeypatch: pytest.MonkeyPatch):
    """The next question starts another one."""
    monkeypatch.setattr("proxy.pricing.catalog.IDLE_S", 0.0)
    catalog = Catalog()
    first = await catalog.find("openai", "gpt-5")
    await until(lambda: catalog._process is None and not catalog._ended)

    assert await catalog.find("openai", "gpt-5") == first
    await catalog.close()


@pytest.mark.parametrize(
    ("backend", "model", "expected"),
    [
        (Upstream(name="up", base_url="http://127.0.0.1:1/v1"), "m1", 1.25),
        (Upstream(name="up", base_url="http://127.0.0.1:1/v1", provider="vllm"), "other", 3.0),
        (Upstream(name="up", base_url="http://127.0.0.1:1/v1"), "other", None),
        (Upstream(name="up", base_url="http://model-server:1/v1"), "other", None),
        (Upstream(name="cheap", base_url="http://127.0.0.1:1/v1"), "other", 0.5),
        (ScriptedBackend(), "other", 0.0),
        (ScriptedBackend(), "m1", 1.25),
    ],
)
async def test_the_first_price_that_matches_counts(backend: Any, model: str, expected: float | None):
    """A local model costs nothing unless it has a price; a server of one's own has none unless it is given."""
    tables = [PriceTable.model_validate(OWN), PriceTable(model="*", provider="vllm", input=3, output=3)]
    tables.append(PriceTable(model="*", backend="cheap", input=0.5, output=0.5))
    record = RequestRecord(input_tokens=1_000_000, output_tokens=0)
    await Prices(tables).quote(backend, model).price(record)

    assert (record.cost_usd, record.unpriced) == (expected, None if expected is not None else True)


@pytest.mark.parametrize("count", ["5", -1, 2**60, {}, None, 1.5])
async def test_a_count_that_is_none_costs_nothing(count: Any):
    """An upstream may send anything."""
    record = RequestRecord(input_tokens=count, output_tokens=7)
    await Quote(RATES).price(record)

    assert record.cost_usd == 0.00007


async def test_the_cost_of_a_call_is_logged_and_measured(start_gateway, upstream, http, logged):
    """That of an answer of the cache is saved; a relayed call and a model without a price are no exception."""
    tables = tables_for(upstream, price=[OWN], admin={"port": 0}, relay=[{"path": "/v1/embeddings", "backend": "fake"}])
    gateway = await start_gateway(tables)
    bodies = [{"model": "m1", "prompt_cache_key": "k"}] * 2 + [{"model": "n"}]
    for body in bodies:
        async with http.post(f"{gateway}/v1/responses", json={"input": "x", **body}) as answer:
            await answer.read()
    async with http.post(f"{gateway}/v1/embeddings", json={"model": "m1", "input": "x"}) as answer:
        await answer.read()
    await until(lambda: [line["event"] for line in logged].count("request.finished") == 4)
    lines = [line for line in logged if line["event"] == "request.finished"]
    found = [(line.get("cost_usd"), line.get("saved_usd"), line.get("unpriced")) for line in lines]
    series = await scrape(http, admin_of(logged))
    measured = [
        sum(value for (name, _), value in series.items() if name == f"headgate_{each}_total")
        for each in ("cost", "cache_saved_cost")
    ]

    assert found == [(0.00007625, None, None), (None, 0.00007625, None), (None, None, True), (0.00007625, None, None)]
    assert measured == pytest.approx([2 * 0.00007625, 0.00007625])


async def test_prices_of_named_models_are_looked_up_at_the_start(start_gateway, upstream, logged, monkeypatch):
    """Their first call need not wait."""
    asked: list[tuple[str, str]] = []

    async def find(_: Catalog, *question: str) -> None:
        asked.append(question)

    monkeypatch.setattr(Catalog, "find", find)
    tables = tables_for(upstream, route=[{"model": name, "backend": "fake"} for name in ("gpt-5", "*")])
    tables["backend"][0]["prices"] = "openai"
    await start_gateway(tables)
    await asyncio.sleep(0)

    assert asked == [("openai", "gpt-5")]


def test_a_price_of_an_unknown_backend_is_a_fault(upstream):
    with pytest.raises(ConfigError, match=r"price\[0\]\.backend: there is no backend called 'gone'; known: fake"):
        build(tables_for(upstream, price=[OWN | {"backend": "gone"}]))


async def test_an_attempt_that_fails_before_a_stale_answer_has_the_price_of_its_backend(
    start_gateway, upstream, http, logged
):
    """Not that of the route's first one: it may have used tokens, although the answer is one that was kept."""
    backend = {"use": "upstream", "keeps_state": True, "first_event_timeout_s": 0.2}
    tables = tables_for(
        upstream,
        backend=[
            backend | {"name": "cheap", "base_url": "http://127.0.0.1:1/v1"},
            backend | {"name": "dear", "base_url": f"{upstream.address}/v1"},
        ],
        route=[{"model": "*", "backends": ["cheap", "dear"]}],
        price=[
            {"model": "*", "backend": name, "input": usd, "output": usd} for name, usd in (("cheap", 1), ("dear", 9))
        ],
        cache={"use": "memory", "ttl_s": 0.1, "stale_if_error_s": 60},
    )
    gateway = await start_gateway(tables)
    body = {"model": "m", "input": "Hello there", "prompt_cache_key": "k"}
    for answer_of_upstream in (upstream.answer, hang):
        upstream.answer = answer_of_upstream
        async with http.post(f"{gateway}/v1/responses", json=body) as answer:
            await answer.read()
        await asyncio.sleep(0.1)
    await until(lambda: [line["event"] for line in logged].count("request.finished") == 2)
    last = [line for line in logged if line["event"] == "request.finished"][-1]

    assert (last["cache"], last["backend"], last["input_tokens"], last["cost_usd"]) == ("stale", "dear", 3, 27e-6)
