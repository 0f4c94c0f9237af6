"""Measures the expected and the actual use of a limit over time by calls, in steps of its counter."""

import math
from typing import Literal, Protocol

from policies import PolicyState
from policies.support.expected_tokens import ExpectedTokens
from proxy.context import Context
from proxy.wire.call import Call
from proxy.wire.errors import PolicyViolation

MILLION = 1_000_000
Unit = Literal["tokens", "requests", "usd"]


class Meter(Protocol):
    """Measures calls."""

    def expected(self, call: Call) -> int | None:
        """Return the expected use of a call; None if it is not known yet."""

    async def await_expected(self, call: Call) -> int:
        """Return it once it is known. Raises PolicyViolation."""

    def used(self, call: Call, context: Context, reserved: int) -> int:
        """Return the actual use of a finished call."""


def meter_of(unit: Unit, state: PolicyState, *, refuses_unpriced: bool) -> Meter:
    """Return the meter of a unit; `refuses_unpriced` is whether a price must be known."""
    if unit == "usd":
        return _Dollars(state, refuses_unpriced=refuses_unpriced)
    return _Tokens() if unit == "tokens" else _Calls()


class _Calls:
    def expected(self, _call: Call) -> int:
        return 1

    async def await_expected(self, _call: Call) -> int:
        return 1

    def used(self, _call: Call, context: Context, reserved: int) -> int:
        return reserved if context.is_sent or context.is_answered else 0


class _Tokens(ExpectedTokens):
    expected = ExpectedTokens.of

    async def await_expected(self, call: Call) -> int:
        return self.of(call)


class _Dollars:
    """Millionths of a dollar."""

    def __init__(self, state: PolicyState, *, refuses_unpriced: bool) -> None:
        self._quote_of = state.quote_of
        self._refuses_unpriced = refuses_unpriced
        self._tokens = ExpectedTokens()

    def expected(self, call: Call) -> int | None:
        if call.operation == "bodiless":  # it names no model
            return 0
        quote = self._quote_of(call.model)
        rates = None if quote is None else quote.rates
        return None if rates is None else math.ceil(rates.cost(*self._tokens.parts_of(call)) * MILLION)

    async def await_expected(self, call: Call) -> int:
        quote = self._quote_of(call.model)
        if quote is not None:
            await quote.known_rates()
        expected = self.expected(call)
        if expected is None and self._refuses_unpriced:
            raise PolicyViolation("unpriced", "The price of this model is not known, and the budget is one of money.")
        return expected or 0

    def used(self, call: Call, context: Context, reserved: int) -> int:
        self._tokens.used(call, context, 0)  # what is usual
        cost_usd = context.record.cost_usd
        if cost_usd is not None:
            return round(cost_usd * MILLION)
        return reserved if context.is_sent or context.is_answered else 0
