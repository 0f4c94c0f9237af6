"""What may be used in a day, a month, or at all."""

import asyncio
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from pydantic import ValidationError

from policies import PolicyState
from policies.budget import NOTE_CHARS, Budget, period_of
from policies.support.allowance import LEASE_S
from policies.support.expected_tokens import MAX_MODELS, ExpectedTokens
from proxy.context import Caller
from proxy.pricing.prices import Quote
from proxy.pricing.rates import Rates, TokenRate
from proxy.wire.call import Call
from proxy.wire.errors import LimitExceeded, PolicyViolation, Unavailable
from tests.examples import JSON, NO_DEADLINE, make_call, make_context
from tests.policies.limited import ANNA, BEN, CAROL, CountingStore, Limited, UnreachableStore, end, timed_store, usage
from tests.raw import until

NOON = datetime(2026, 11, 30, 12, tzinfo=UTC)


def at(moment: datetime, **settings: Any) -> Budget:
    budget = Budget(**settings)
    vars(budget)["_clock"] = lambda: moment
    return budget


async def test_calls_are_counted_until_the_budget_begins_anew():
    """A team shares it. The refusal says which budget it is, and when it begins anew."""
    state = PolicyState()
    limited = Limited(at(NOON, unit="requests", window="day", limit=2), state)
    contexts = [await limited.ask(), await limited.ask(BEN)]
    refused = await limited.refusal()
    await limited.ask(CAROL)
    await Limited(at(NOON.replace(month=12, day=1), unit="requests", window="day", limit=2), state).ask()

    assert [context.answer_headers["x-headgate-budget"] for context in contexts] == [
        '"policy";u=requests;q=2;r=1;t=43200', '"policy";u=requests;q=2;r=0;t=43200',
    ]  # fmt: skip
    assert (refused.status, refused.reason, refused.retry) == (429, "exhausted", False)
    assert refused.message == "The budget of 2 requests (day) is used up or reserved. It is reset in 12:00:00."
    assert refused.headers == {"Retry-After": "43200", "x-headgate-budget": '"policy";u=requests;q=2;r=0;t=43200'}


async def test_what_was_used_replaces_what_was_reserved():
    """Also when it was more; a call that was never sent uses nothing, one without a report what was reserved."""
    limited = Limited(Budget(limit=3_000, window="total"))
    await end(await limited.ask(), usage(100, 400))
    await end(await limited.ask(), is_sent=False)
    third = await limited.ask()
    await end(await limited.ask(), usage(500, 1_600))
    refused = await limited.refusal(max_output_tokens=500)
    await end(third)

    assert refused.headers["x-headgate-budget"].startswith('"policy";u=tokens;q=3000;r=0')
    assert refused.message == "The budget of 3000 tokens (total) is used up or reserved."


async def test_a_refusal_says_what_is_left_and_what_the_call_needs():
    """Else a caller whose usage is below the limit could not understand it. Once all is used there is nothing to say."""
    limited = Limited(Budget(limit=3_000, window="total"))
    await end(await limited.ask(), usage(1_000, 1_500))
    refused = await limited.refusal(max_output_tokens=900)

    assert refused.message == "The budget of 3000 tokens (total) has 500 left; this call needs 909."


async def test_a_refusal_does_not_say_that_more_is_left_than_the_call_needs():
    """Another call gives back what it does not use just after this one was refused."""
    limited = Limited(Budget(limit=1_000, window="total"))
    first = await limited.ask(max_output_tokens=900)

    async def end_first() -> None:
        await asyncio.sleep(0)  # until the store has answered
        await end(first, usage(1, 1))

    refused, _ = await asyncio.gather(limited.refusal(max_output_tokens=500), end_first())

    assert refused.message == "The budget of 1000 tokens (total) is used up or reserved."


async def test_parallel_calls_never_spend_the_same_remainder():
    """Of 500 at once just as many pass as there is room for reservations."""
    limited = Limited(Budget(limit=10_000, window="total"))
    found = await asyncio.gather(*(limited.ask(max_output_tokens=97) for _ in range(500)), return_exceptions=True)
    passed = sum(not isinstance(each, LimitExceeded) for each in found)

    assert passed == 10_000 // (97 + 9)  # and the 36 bytes of each call


async def test_it_is_logged_once_that_little_is_left(logged):
    """At the share `warn`, with those who share it."""
    limited = Limited(Budget(limit=10, unit="requests", warn=0.5))
    for _ in range(8):
        await limited.ask()

    assert [(line["event"], line["used"], line["shared_by"]) for line in logged] == [("budget.warned", 5, "search")]


@pytest.mark.parametrize("calls_before", [0, 40])
async def test_it_is_logged_as_well_when_a_call_used_more_than_it_reserved(calls_before: int, logged):
    """Near to the limit, and while the process holds a reserve, from which such a call takes: once."""
    limited = Limited(Budget(limit=100_000, window="total"))
    for _ in range(calls_before):
        await end(await limited.ask(max_output_tokens=5), usage(1, 1))
    context = await limited.ask(max_output_tokens=5)
    before = [*logged]
    await end(context, usage(1, 85_000))
    await until(lambda: len(logged) > 0)
    await end(await limited.ask(max_output_tokens=5), usage(1, 1))

    assert before == []
    assert [line["event"] for line in logged] == ["budget.warned"]
    assert 85_000 < logged[0]["used"] < 100_000


async def test_without_the_store_nothing_is_spent():
    """A budget that cannot be read could be exceeded."""
    with pytest.raises(Unavailable) as caught:
        await Limited(Budget(limit=10), PolicyState(UnreachableStore())).ask()
    assert caught.value.code == "budget_unavailable"


@pytest.mark.parametrize("is_settled", [True, False])
async def test_what_a_killed_process_had_reserved_is_returned(is_settled: bool):
    """After a while; a call that lasts longer is counted in full at its end."""
    now = [0.0]
    state = PolicyState(timed_store(now))
    budget = Budget(limit=1_100, window="total")
    first = await Limited(budget, state).ask()
    refused = await Limited(budget, state).refusal()
    now[0] += LEASE_S
    await Limited(budget, state).ask()
    if is_settled:
        await end(first, usage(10, 20))
    (left,) = await budget.balances(state, [ANNA], [])

    assert (refused.reason, left.used) == ("exhausted", 1_027 + 30 * is_settled)


@pytest.mark.parametrize(
    ("window", "moment", "period", "left_s"),
    [
        ("day", datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC), "2026-12-31", 1),
        ("month", datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC), "2026-12", 1),
        ("month", datetime(2028, 2, 1, tzinfo=UTC), "2028-02", 29 * 86_400),
        ("month", datetime(2026, 1, 31, tzinfo=UTC), "2026-01", 86_400),
        ("total", NOON, "total", 10 * 365 * 86_400),
    ],
)
def test_periods_end_with_the_calendar(window: Any, moment: datetime, period: str, left_s: float):
    """In UTC, leap years included."""
    assert period_of(window, moment) == (period, left_s)


@pytest.mark.parametrize("settings", [{}, {"limit": 0}, {"limit": 1, "unit": "eur"}, {"limit": 1, "warn": 2}])
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]):
    """A limit of 0 would refuse every call."""
    with pytest.raises(ValidationError):
        Budget(**settings)


@NO_DEADLINE
@given(JSON, JSON)
async def test_no_value_of_a_call_is_an_error(metadata: Any, tokens: Any):
    """The body is untrusted."""
    await end(await Limited(Budget(limit=10**9, per="metadata.x")).ask(metadata=metadata, max_output_tokens=tokens))


RATES = Rates(TokenRate(Decimal(2)), TokenRate(Decimal(10)))
PRICED = PolicyState(quote_of=lambda model: Quote(RATES if model == "m" else None))


async def test_a_refusal_says_how_little_money_is_left():
    """Also if it is less than the header shows."""
    limited = Limited(Budget(limit=0.0202, unit="usd", window="total"), PolicyState(quote_of=PRICED.quote_of))
    first = await limited.ask(max_output_tokens=1)
    first.record.cost_usd = 0.02018
    await end(first, usage(1, 1))
    refused = await limited.refusal(max_output_tokens=1)

    assert refused.message == "The budget of 0.0202 usd (total) has 0.000020 left; this call needs 0.000026."


async def test_money_is_reserved_and_then_corrected():
    """1,024 tokens of output at 10 dollars a million are expected; the call then cost 2 cents."""
    limited = Limited(Budget(limit=0.03, unit="usd", window="total"), PRICED)
    first = await limited.ask()
    await end(first, usage(5_000, 1_000))
    second = await limited.ask(max_output_tokens=100)
    first.record.cost_usd = 0.02
    third = await limited.ask(max_output_tokens=1_000)
    third.record.cost_usd = 0.02
    await end(third)
    refused = await limited.refusal(max_output_tokens=2_000)

    assert first.answer_headers["x-headgate-budget"] == '"policy";u=usd;q=0.0300;r=0.0198'
    assert second.answer_headers["x-headgate-budget"].endswith("r=0.0187")
    assert (refused.reason, refused.status) == ("exhausted", 429)
    assert refused.message == "The budget of 0.03 usd (total) is used up or reserved."


async def test_a_model_without_a_price_is_refused_where_money_counts():
    """Unless the config allows it: then its calls cost nothing, until the budget is used up."""
    with pytest.raises(PolicyViolation, match="price of this model is not known") as caught:
        await Limited(Budget(limit=1, unit="usd"), PRICED).ask(model="new")
    with pytest.raises(PolicyViolation, match="price of this model is not known"):
        await Limited(Budget(limit=1, unit="usd")).ask()  # no route leads to it
    allowing = Limited(Budget(limit=1, unit="usd", on_unpriced="allow"), PRICED)
    contexts = [await allowing.ask(model="new") for _ in range(3)]

    assert caught.value.reason == "unpriced"
    assert [context.answer_headers["x-headgate-budget"].split(";")[3] for context in contexts] == ["r=1.0000"] * 3


def test_only_money_has_fractions():
    """Tokens and calls are counted in whole numbers."""
    assert Budget(limit=0.5, unit="usd").limit == 0.5
    with pytest.raises(ValidationError, match="whole numbers"):
        Budget(limit=0.5)


async def test_a_store_that_fails_at_the_end_of_a_call_is_logged(logged):
    """What the call used beyond its reservation is not counted then."""
    store = UnreachableStore()
    store.mend()
    context = await Limited(Budget(limit=10_000), PolicyState(store)).ask()
    store.mend(is_down=True)
    await end(context, usage(5_000, 1_000))

    assert [line["event"] for line in logged] == ["budget.failed"]


@pytest.mark.parametrize(("chars", "noted"), [(NOTE_CHARS, 1), (NOTE_CHARS + 1, 0)])
async def test_a_long_name_of_an_end_user_is_counted_and_not_noted(chars: int, noted: int):
    """Clients choose these names, and operators could not read such a one."""
    state = PolicyState()
    budget, user = Budget(limit=1, unit="requests", per="end_user"), "u" * (chars - len(f"{ANNA.team}/"))
    limited = Limited(budget, state)
    await end(await limited.ask(user=user), usage(1, 1))
    notes = [key async for key in state.store.scan(budget.notes_prefix(state))]

    assert (await limited.refusal(user=user)).reason == "exhausted"
    assert len(notes) == noted


@pytest.mark.parametrize(("operation", "tokens"), [("create", 512 + 256), ("relay", 256), ("input_tokens", 0)])
def test_what_is_expected_of_each_operation(operation: Any, tokens: int):
    """Counting tokens uses none; a relayed body in which nothing asks for text is expected to generate none."""
    body = {"model": "m", "input": "x" * 1_001, "max_output_tokens": 512}
    call = Call(body, operation=operation).with_encoded(b"x" * 1_024)

    assert ExpectedTokens().of(call) == sum(ExpectedTokens().parts_of(call)) == tokens


@pytest.mark.parametrize(
    ("body", "first", "later"),
    [
        ({"input": "x"}, 0, 40),
        ({"messages": []}, 1_024, 40),
        ({"prompt": "x", "n": 3}, 3_072, 40),
        ({"messages": [], "max_completion_tokens": 10, "n": 3}, 30, 30),
        ({"messages": [], "max_tokens": 10, "n": 10**9}, 10, 10),
        ({"messages": [], "max_tokens": "many", "max_output_tokens": -1, "n": True}, 1_024, 40),
    ],
)
def test_the_output_of_relayed_calls_is_expected_in_their_dialect(body: dict[str, Any], first: int, later: int):
    """Of a model that has not answered yet by what the body asks for, later by what it has generated."""
    tokens, context, call = ExpectedTokens(), make_context(), Call({"model": "m", **body}, operation="relay")
    before = tokens.parts_of(call)[1]
    context.is_sent, context.record.input_tokens, context.record.output_tokens = True, 1, 20
    tokens.used(call, context, 0)

    assert (before, tokens.parts_of(call)[1]) == (first, later)


@pytest.mark.parametrize(
    ("per", "expected"),
    [
        ("team", ["t", "u"]),
        ("caller", ["t/ann", "t/ben", "u/cyd"]),
        ("model", ["m", "n"]),
        ("all", [""]),
        ("end_user", []),
    ],
)
async def test_balances_are_those_of_who_is_known(per, expected):
    """With what was used in this window, in the unit of the limit."""
    state = PolicyState()
    callers = [Caller("ann", "t"), Caller("ben", "t"), Caller("cyd", "u")]
    policy = Budget(limit=3, unit="requests", per=per, window="day")
    found = await policy.balances(state, callers, ["m", "n"])

    assert [balance.shared_by for balance in found] == expected
    assert all((balance.used, balance.limit, balance.unit) == (0, 3, "requests") for balance in found)
    assert all(0 < (balance.left_s or 0) <= (balance.lasts_s or 0) == 86_400 for balance in found)


async def test_far_from_the_limit_calls_do_not_wait_for_the_store():
    """Few commands serve many calls; what is left falls call by call, and at the end exactly what was used is used."""
    store = CountingStore()
    state, budget = PolicyState(store), Budget(limit=10**9, window="total")
    limited, context = Limited(budget, state), make_context()
    for number in range(200):
        context = await limited.ask()
        await end(context, usage(10, number % 30))
    commands = store.commands
    await state.close()
    (balance,) = await budget.balances(state, [ANNA], [])

    used = sum(10 + number % 30 for number in range(200))
    left = int(context.answer_headers["x-headgate-budget"].rpartition("r=")[2])
    assert commands < 20
    assert 10**9 - used - 100 < left < 10**9 - used + 39  # the last one had reserved what is usual
    assert balance.used == used


async def test_a_call_that_report_mode_lets_pass_is_counted():
    """It is made, so it uses the budget although it could reserve nothing."""
    state, budget = PolicyState(), Budget(limit=1, unit="tokens", window="total")
    first = await Limited(budget, state).ask()
    context = make_context(ANNA)
    with pytest.raises(LimitExceeded):
        await budget.request_check(state)(make_call(), context)  # type: ignore[misc]
    await end(context, usage(3, 4))
    await end(first, usage(0, 1))
    (balance,) = await budget.balances(state, [ANNA], [])

    assert balance.used == 8


async def test_a_call_that_is_cancelled_while_it_waits_uses_nothing():
    """What the store grants it afterwards is given back."""
    store = CountingStore()
    state, budget = PolicyState(store), Budget(limit=2_000, window="total")
    limited = Limited(budget, state)
    store.gate.clear()
    waiting = asyncio.create_task(limited.ask())
    await until(lambda: store.commands)
    waiting.cancel()
    await asyncio.wait([waiting])
    store.gate.set()
    await state.close()
    (balance,) = await budget.balances(state, [ANNA], [])

    assert (waiting.cancelled(), balance.used) == (True, 0)


async def test_money_is_taken_from_what_the_process_holds():
    """As tokens are, once the price is known."""
    store = CountingStore()
    limited = Limited(Budget(limit=10**6, unit="usd"), PolicyState(store, quote_of=PRICED.quote_of))
    for _ in range(100):
        context = await limited.ask()
        context.record.cost_usd = 0.001
        await end(context, usage(1, 1))

    assert store.commands < 20


def test_what_is_usual_is_known_of_a_limited_number_of_models():
    """Callers name models as they like; an estimate says nothing of what is usual."""
    tokens, context = ExpectedTokens(), make_context()
    context.is_sent = True
    context.record.input_tokens, context.record.output_tokens = 1, 500
    for number in range(MAX_MODELS + 1):
        tokens.used(Call({"model": str(number)}), context, 0)
    context.record.estimated, context.record.output_tokens = True, 7
    tokens.used(Call({"model": "7"}), context, 0)
    found = [tokens.parts_of(Call({"model": name}).with_encoded(b""))[1] for name in ("0", "1", "7")]

    assert found == [1_024, 1_000, 1_000]
