"""The prices of one model's tokens. Amounts are exact decimals, in US dollars."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal

MILLION = Decimal(1_000_000)


@dataclass(frozen=True, slots=True)
class TokenRate:
    """The price of a million tokens of one kind: `base`, or that of the highest step that the input exceeds."""

    base: Decimal
    steps: tuple[tuple[int, Decimal], ...] = ()
    """In ascending order: from more than how many input tokens on, all tokens have which price."""

    def price_at(self, input_tokens: int) -> Decimal:
        """Return the price of a million tokens in a call with this input."""
        price = self.base
        for start, higher in self.steps:
            if input_tokens > start:
                price = higher
        return price


WholePrices = tuple[int, int, int, int]
"""What a token costs of the input, of what was read from the provider's cache and written to it, and of the output."""


@dataclass(frozen=True, slots=True)
class Rates:
    """The prices of a model. What is read from and written to the provider's cache is part of the input."""

    input: TokenRate
    output: TokenRate
    cached_input: TokenRate | None = None
    """Default: as any other input; the same for `cache_write`."""
    cache_write: TokenRate | None = None
    _units: int = field(init=False, repr=False, compare=False)
    """How many units a dollar has, in which all prices are whole: adding up decimals takes five times as long."""
    _prices: Sequence[tuple[int, WholePrices]] = field(init=False, repr=False, compare=False)
    """In ascending order: from more than how many input tokens on which prices count, in units."""

    def __post_init__(self) -> None:
        rates = (self.input, self.cached_input or self.input, self.cache_write or self.input, self.output)
        prices = [price for rate in rates for price in (rate.base, *(price for _, price in rate.steps))]
        unit = 10 ** max(0, *(-int(price.as_tuple().exponent) for price in prices))
        starts = sorted({-1, *(start for rate in rates for start, _ in rate.steps)})
        whole = [(start, tuple(int(rate.price_at(start + 1) * unit) for rate in rates)) for start in starts]
        object.__setattr__(self, "_units", unit * int(MILLION))
        object.__setattr__(self, "_prices", whole)

    def cost(self, input_tokens: int, output_tokens: int, cached: int = 0, written: int = 0) -> Decimal:
        """Return what a call costs. `cached` and `written` are parts of its input."""
        return Decimal(self._count_units(input_tokens, output_tokens, cached, written)) / self._units

    def cost_usd(self, input_tokens: int, output_tokens: int, cached: int = 0, written: int = 0) -> float:
        """Return the float that is nearest to it."""
        return self._count_units(input_tokens, output_tokens, cached, written) / self._units

    def _count_units(self, input_tokens: int, output_tokens: int, cached: int, written: int) -> int:
        """Return what a call costs in units."""
        cached = min(cached, input_tokens)
        written = min(written, input_tokens - cached)
        prices = self._prices[0][1]
        for start, higher in self._prices[1:]:
            if input_tokens > start:
                prices = higher
        usual, from_cache, to_cache, output = prices
        used = usual * (input_tokens - cached - written) + from_cache * cached + to_cache * written
        return used + output * output_tokens


FREE = Rates(TokenRate(Decimal(0)), TokenRate(Decimal(0)))


def rates_of(prices: dict[str, Sequence[Sequence[str]]]) -> Rates:
    """Return the rates in an answer of `lookup.py`: by their names, lists of a number of tokens and a price."""
    rates = {
        name: TokenRate(Decimal(first[1]), tuple((int(start), Decimal(price)) for start, price in steps))
        for name, (first, *steps) in prices.items()
    }
    return Rates(**rates)
