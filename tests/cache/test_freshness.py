"""How old an answer may be."""

from typing import Any

import pytest

from proxy.cache.freshness import ANY, Ages, Directives, Freshness, parse_directives

AGES = Ages(100, stale_while_revalidate_s=20, stale_if_error_s=50)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", {}),
        ("no-transform, max-stale=3", {}),
        ("No-Store", {"no_store": True}),
        ("private, no-cache", {"no_cache": True}),
        ('no-cache="a"', {"no_cache": True}),
        ("only-if-cached", {"only_if_cached": True}),
        ("max-age=0", {"max_age_s": 0}),
        ('max-age = "7" , min-fresh=2.5', {"max_age_s": 7, "min_fresh_s": 2.5}),
        ("max-age=1, max-age=9", {"max_age_s": 1}),
        ("max-age", {"max_age_s": 0}),
        ("max-age=-1", {"max_age_s": 0}),
        ("max-age=nan", {"max_age_s": 0}),
        ("max-age=\u0661", {"max_age_s": 0}),
        ("min-fresh=x", {"min_fresh_s": float("inf")}),
        (",,=,", {}),
    ],
)
def test_directives_are_read_as_the_standard_says(header: str, expected: dict[str, Any]):
    """Names in any case, the first of equal names, and the strictest age for one that is none."""
    assert parse_directives(header) == Directives(**expected)


@pytest.mark.parametrize(
    ("age_s", "directives", "expected"),
    [
        (0, ANY, Freshness.FRESH),
        (99.9, ANY, Freshness.FRESH),
        (100, ANY, Freshness.STALE),
        (119.9, ANY, Freshness.STALE),
        (120, ANY, Freshness.FALLBACK),
        (149.9, ANY, Freshness.FALLBACK),
        (150, ANY, Freshness.EXPIRED),
        (0, Directives(no_cache=True), Freshness.REFUSED),
        (0, Directives(max_age_s=0), Freshness.REFUSED),
        (5, Directives(max_age_s=5), Freshness.FRESH),
        (6, Directives(max_age_s=5), Freshness.REFUSED),
        (110, Directives(max_age_s=500), Freshness.REFUSED),
        (110, Directives(min_fresh_s=1), Freshness.REFUSED),
        (90, Directives(min_fresh_s=10), Freshness.FRESH),
        (91, Directives(min_fresh_s=10), Freshness.REFUSED),
        (0, Directives(min_fresh_s=101), Freshness.REFUSED),
    ],
)
def test_an_age_decides_what_an_answer_is_good_for(age_s: float, directives: Directives, expected: Freshness):
    """A request with demands of its own gets nothing stale."""
    assert AGES.of(age_s, directives) is expected


def test_an_answer_is_kept_as_long_as_it_may_be_given():
    """Whichever of both is longer."""
    assert (AGES.kept_s, Ages(100).kept_s, Ages(100, 70, 50).kept_s) == (150, 100, 170)
