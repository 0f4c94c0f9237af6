"""What a target remembers between calls."""

import sys

from backends.upstream import Upstream
from proxy.pricing.catalog import Catalog
from proxy.pricing.prices import Prices
from proxy.pricing.table import PriceTable
from proxy.routing.outcome import AttemptOutcome
from proxy.routing.targets import Target, Targets
from proxy.wire.errors import BackendError
from proxy.wire.event import Reply
from tests.examples import make_call
from tests.pipelines import ScriptedBackend


def target_of(prices: Prices | None = None) -> Target:
    return Targets(prices=prices).of(ScriptedBackend())


async def test_a_price_is_that_of_the_model():
    """The one that was asked for last is remembered, for its own model only."""
    tables = [PriceTable(model="a", input=1, output=1), PriceTable(model="b", input=2, output=2)]
    target = target_of(Prices(tables))
    first, again, other, back = (target.quote(model) for model in ("a", "a", "b", "a"))

    assert first is again is back is not None
    assert other is not None
    assert (first.rates, other.rates) == (tables[0].rates, tables[1].rates)


async def test_a_price_that_could_not_be_looked_up_is_looked_up_for_the_next_call():
    """A target does not remember that there is none."""
    prices = Prices((), Catalog((sys.executable, "-c", "pass")))
    target = Targets(prices=prices).of(Upstream(name="up", base_url="https://api.openai.com/v1"))
    first = target.quote("gpt-5")
    assert first is not None
    assert target.quote("gpt-5") is first
    assert await first.known_rates() is None

    assert target.quote("gpt-5") is not first
    await prices.close()


def test_without_prices_a_call_has_none():
    """Nothing is looked up."""
    assert target_of().quote("m") is None


def test_attempts_are_counted_by_what_they_came_to():
    """A success has no code; an attempt that nothing has answered yet is none."""
    target, call = target_of(), make_call()
    assert target.attempts == {}
    for outcome in (
        AttemptOutcome(call, Reply(200, {}, body=b"{}", response={}), is_success=True),
        AttemptOutcome(call, Reply(200, {}, body=b"{}", response={}), is_success=True),
        AttemptOutcome(call, Reply(429, {}, body=b"{}")),
        AttemptOutcome(call, error=BackendError("Gone.", code="upstream_reset")),
    ):
        target.note_outcome(outcome, target.start())
        target.end(is_well=True)

    assert target.attempts == {(200, None): 2, (429, None): 1, (502, "upstream_reset"): 1}
    assert target.in_flight == 0
