"""[[price]]: the operator's own prices of models."""

import re
from decimal import Decimal
from fnmatch import translate
from functools import lru_cache
from typing import Annotated

from pydantic import BeforeValidator, Field

from proxy.config.table import Table
from proxy.pricing.rates import Rates, TokenRate


def _check_number(value: object) -> object:
    """Raises ValueError for what is no number in TOML."""
    is_number = not isinstance(value, str | bool)
    if not is_number:
        raise ValueError("Input should be a valid number")
    return value


MOST_USD = 1_000_000_000
"""The highest price of a million tokens: what a call costs must be a number that a float can hold."""
Amount = Annotated[Decimal, BeforeValidator(_check_number), Field(ge=0, le=MOST_USD, allow_inf_nan=False)]


@lru_cache(1024)
def _compile(glob: str) -> re.Pattern[str]:
    """Return the pattern of a glob in which `[` is itself. It backtracks over no `*`: callers choose what it is for."""
    return re.compile(translate(glob.replace("[", "[[]")))


class PriceTable(Table):
    """Prices in US dollars for a million tokens. The first table that matches a call is used before list prices."""

    model: str
    """The model as the backend is asked for it; `*` and `?` are wildcards."""
    backend: str = ""
    """The name of the [[backend]] whose calls have this price. Default: any."""
    provider: str = ""
    """The `provider` of the backends whose calls have it. Default: any."""
    input: Amount
    """A million input tokens."""
    output: Amount
    """A million output tokens, reasoning included."""
    cached_input: Amount | None = None
    """A million input tokens that were read from the provider's cache. Default: `input`."""
    cache_write: Amount | None = None
    """A million input tokens that were written to the provider's cache. Default: `input`."""

    def applies_to(self, backend: str, provider: str, model: str) -> bool:
        """Whether calls of a model at a backend have this price."""
        is_meant = self.backend in ("", backend) and self.provider in ("", provider)
        return is_meant and _compile(self.model).match(model) is not None

    @property
    def rates(self) -> Rates:
        cached, written = (
            None if price is None else TokenRate(price) for price in (self.cached_input, self.cache_write)
        )
        return Rates(TokenRate(self.input), TokenRate(self.output), cached, written)
