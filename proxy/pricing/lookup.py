"""Looks up list prices in genai-prices, as a process of its own: `python -m proxy.pricing.lookup`.

Importing that package takes 0.2 s and 87 MB, and one calculation 0.3 ms. Each line of stdin is a JSON array of a price
list and a model, each line of stdout the answer: an object of rates, or null for a model that has no price by tokens.
"""

import sys
from typing import Any

import orjson
from genai_prices import Usage, calc_price
from genai_prices.types import TieredPrices

NAMES = {
    "input": "input_mtok", "output": "output_mtok", "cached_input": "cache_read_mtok",
    "cache_write": "cache_write_mtok",
}  # fmt: skip
"""The names of rates, here and there."""


def find_rates(price_list: str, model: str) -> dict[str, list[tuple[str, str]]] | None:
    """Return the prices of a model today: for each rate, from more than how many input tokens on it is which.

    `price_list` is the address of a provider's API, or the provider's id.
    """
    by = {"provider_api_url" if "://" in price_list else "provider_id": price_list}
    options: dict[str, Any] = by
    try:
        found = calc_price(Usage(input_tokens=1, output_tokens=1), model, **options).model_price
    except LookupError:
        return None
    prices = {name: getattr(found, there) for name, there in NAMES.items()}
    rates = {name: _steps(price) for name, price in prices.items() if price is not None}
    return rates if {"input", "output"} <= rates.keys() else None


def _steps(price: Any) -> list[tuple[str, str]]:
    if not isinstance(price, TieredPrices):
        return [("0", str(price))]
    return [("0", str(price.base)), *((str(tier.start), str(tier.price)) for tier in price.tiers)]


def main() -> None:
    for line in sys.stdin.buffer:
        sys.stdout.buffer.write(orjson.dumps(find_rates(*orjson.loads(line))) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
