"""The prices of calls: by [[price]], else the list price of the backend's provider; a local model costs nothing."""

import asyncio
import math
import time
from collections.abc import Sequence
from typing import Protocol

from proxy.pricing.catalog import Catalog, LookupFailedError
from proxy.pricing.rates import FREE, Rates
from proxy.pricing.table import PriceTable
from proxy.telemetry.record import RequestRecord

MAX_QUOTES = 2000
QUOTE_TTL_S = 21_600.0
"""How long a price is used before it is looked up again, in seconds: some change by the hour."""
WAIT_S = 2.0
"""How long the end of a call waits for its price, in seconds: only for calls shorter than the first lookup."""
LARGEST_COUNT = 2**53


class Priced(Protocol):
    """The part of a backend that concerns prices."""

    @property
    def name(self) -> str: ...
    @property
    def provider(self) -> str: ...
    @property
    def price_list(self) -> str | None:
        """The provider whose list prices it has, by its id or its API's address; "": none; None: it costs nothing."""


class Quote:
    """The price of a model at a backend, possibly still being looked up. Without rates it is unknown."""

    __slots__ = ("expires", "lookup", "rates")

    def __init__(self, rates: Rates | None = None, expires: float = math.inf) -> None:
        self.rates = rates
        self.expires = expires
        """The time until which it is used, on the clock of `time.monotonic`."""
        self.lookup: asyncio.Task[None] | None = None
        """The task that looks up the rates; None once it has ended."""

    async def known_rates(self) -> Rates | None:
        """Return the rates once they are known; None if there are none, or they take too long to be looked up."""
        if self.lookup is not None:
            await asyncio.wait([self.lookup], timeout=WAIT_S)
        return self.rates

    async def price(self, record: RequestRecord) -> None:
        """Set what the tokens of a call cost, or would have cost, once the rates are known."""
        await self.known_rates()
        self.price_now(record)

    def price_now(self, record: RequestRecord) -> None:
        """Set what the tokens of a call cost, by the rates that are known."""
        if self.rates is None:
            record.unpriced = True
            return
        if record.input_tokens is not None or record.output_tokens is not None:
            used = (record.input_tokens, record.output_tokens, record.cached_tokens, record.cache_write_tokens)
            record.cost_usd = self.rates.cost_usd(*map(_count, used))
        if record.saved_input_tokens is not None:
            saved = (record.saved_input_tokens, record.saved_output_tokens)
            record.saved_usd = self.rates.cost_usd(*map(_count, saved))


def _count(value: object) -> int:
    """Return a count of tokens; 0 for a value of an upstream that is none."""
    return value if type(value) is int and 0 < value < LARGEST_COUNT else 0


class Prices:
    """The quotes of models at backends."""

    def __init__(self, tables: Sequence[PriceTable] = (), catalog: Catalog | None = None) -> None:
        self._tables = tables
        self._catalog = Catalog() if catalog is None else catalog
        self._quotes: dict[tuple[str, str], Quote] = {}  # the oldest first

    def quote(self, backend: Priced, model: str) -> Quote:
        """Return the price of a model at a backend; one that is not known yet is looked up meanwhile."""
        kept = self._quotes.get((backend.name, model))
        return kept if kept is not None and time.monotonic() < kept.expires else self._make(backend, model)

    async def close(self) -> None:
        """End lookups."""
        for quote in [*self._quotes.values()]:
            if quote.lookup is not None:
                quote.lookup.cancel()
        await self._catalog.close()

    def _make(self, backend: Priced, model: str) -> Quote:
        own = (table for table in self._tables if table.applies_to(backend.name, backend.provider, model))
        table, price_list = next(own, None), backend.price_list
        rates = table.rates if table is not None else FREE if price_list is None else None
        quote = Quote(rates, time.monotonic() + QUOTE_TTL_S)
        self._quotes.pop((backend.name, model), None)
        if len(self._quotes) >= MAX_QUOTES:
            del self._quotes[next(iter(self._quotes))]
        self._quotes[backend.name, model] = quote
        if quote.rates is None and price_list and model:
            quote.lookup = asyncio.create_task(self._look_up(quote, (backend.name, model), price_list))
        return quote

    async def _look_up(self, quote: Quote, key: tuple[str, str], price_list: str) -> None:
        try:
            quote.rates = await self._catalog.find(price_list, key[1])
        except LookupFailedError:
            quote.expires = 0.0  # the next call asks again
        finally:
            quote.lookup = None
