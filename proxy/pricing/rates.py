"""What the tokens of one model cost. Amounts are exact decimals, in US dollars."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

MILLION = Decimal(1_000_000)


@dataclass(frozen=True, slots=True)
class TokenRate:
    """The price of a million tokens of one kind: `base`, or that of the highest step that the input exceeds."""

    base: Decimal
    steps: tuple[tuple[int, Decimal], ...] = ()
    """In ascending order: from more than how many input tokens on, all tokens have which price."""

    def cost(self, tokens: int, input_tokens: int) -> Decimal:
        """Return what so many tokens cost, in a call with this input."""
        price = self.base
        for start, higher in self.steps:
            if input_tokens > start:
                price = higher
        return price * tokens / MILLION


@dataclass(frozen=True, slots=True)
class Rates:
    """The prices of a model. What is read from and written to the provider's cache is part of the input."""

    input: TokenRate
    output: TokenRate
    cached_input: TokenRate | None = None
    """Default: as any other input; the same for `cache_write`."""
    cache_write: TokenRate | None = None

    def cost(self, input_tokens: int, output_tokens: int, cached: int = 0, written: int = 0) -> Decimal:
        """Return what a call costs. `cached` and `written` are parts of its input."""
        cached = min(cached, input_tokens)
        written = min(written, input_tokens - cached)
        parts = (
            (self.input, input_tokens - cached - written),
            (self.cached_input or self.input, cached),
            (self.cache_write or self.input, written),
            (self.output, output_tokens),
        )
        return sum((rate.cost(tokens, input_tokens) for rate, tokens in parts if tokens), Decimal(0))


FREE = Rates(TokenRate(Decimal(0)), TokenRate(Decimal(0)))


def rates_of(prices: dict[str, Sequence[Sequence[str]]]) -> Rates:
    """Return the rates in an answer of `lookup.py`: by their names, lists of a number of tokens and a price."""
    rates = {
        name: TokenRate(Decimal(first[1]), tuple((int(start), Decimal(price)) for start, price in steps))
        for name, (first, *steps) in prices.items()
    }
    return Rates(**rates)
