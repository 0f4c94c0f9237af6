"""Which calls have the price of a table."""

import pytest
from pydantic import ValidationError

from proxy.pricing.table import PriceTable
from tests.timeouts import fail_if_stuck


def table(model: str) -> PriceTable:
    return PriceTable.model_validate({"model": model, "input": 1, "output": 1})


@pytest.mark.parametrize(
    ("glob", "model", "is_meant"),
    [
        ("gpt-*", "gpt-5", True), ("gpt-*", "GPT-5", False), ("gpt-?", "gpt-5", True), ("gpt-?", "gpt-51", False),
        ("a.b", "aXb", False), ("[ab]", "[ab]", True), ("[ab]", "a", False), ("a[*", "a[b", True), ("*", "a\nb", True),
        ("a\\*", "a\\b", True), ("*-mini", "gpt-mini\n", False), ("", "", True),
    ],
)  # fmt: skip
def test_a_name_is_matched_as_a_whole(glob: str, model: str, *, is_meant: bool):
    """Nothing but `*` and `?` is special."""
    assert table(glob).applies_to("backend", "openai", model) is is_meant


def test_no_name_of_a_model_makes_a_glob_slow():
    """Each `*` that backtracks multiplies the time by the length of the name, which a caller chooses."""
    with fail_if_stuck():
        assert not table("*a" * 20 + "b").applies_to("backend", "openai", "a" * 256)


@pytest.mark.parametrize("price", [1e300, 1_000_000_001, -1, float("inf"), float("nan"), "1"])
def test_a_price_that_no_call_could_have_is_refused(price: object):
    """What a call costs is a float: by 1e300 it would be none."""
    with pytest.raises(ValidationError, match=r"Input should be|valid number"):
        PriceTable.model_validate({"model": "m", "input": price, "output": 1})
