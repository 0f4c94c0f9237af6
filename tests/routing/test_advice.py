"""What answers say about the next call."""

import time
from email.utils import formatdate

import pytest

from proxy.routing.advice import LONGEST_LIMIT_S, delay_of, limited_for_s, wants_retry


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "2"}, 2),
        ({"retry-after": " 0.25 "}, 0.25),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "9" * 400}, None),
        ({"retry-after": "tomorrow"}, None),
        ({"retry-after": "Fri, 31 Dec 1999 23:59:59 GMT"}, 0),
    ],
)
def test_a_pause_is_read_in_every_form(headers: dict[str, str], seconds: float | None):
    """Milliseconds come first; what cannot be read counts as absent."""
    assert delay_of(headers) == seconds


def test_a_pause_can_be_a_date():
    """It is the time until then."""
    delay_s = delay_of({"retry-after": formatdate(time.time() + 100, usegmt=True)})

    assert delay_s is not None
    assert 90 < delay_s <= 100


@pytest.mark.parametrize(
    ("value", "wanted"), [("true", True), ("false", False), (" TRUE ", True), ("yes", None), ("", None)]
)
def test_only_true_and_false_are_advice(value: str, wanted: bool | None):
    """Anything else leaves the decision to the status."""
    assert wants_retry({"x-should-retry": value}) is wanted


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"x-ratelimit-remaining-requests": "1", "x-ratelimit-reset-requests": "6m0s"}, 0),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "120ms"}, 0.12),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "1s"}, 1),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "1m2.5s"}, LONGEST_LIMIT_S),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "7"}, 7),
        ({"x-ratelimit-remaining-tokens": "0"}, 1),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "later"}, 1),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "1000000001"}, 0),
        (
            {
                "x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "2s",
                "x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "5s",
            },
            5,
        ),
        ({"ratelimit": '"default";r=0;t=12'}, 12),
        ({"ratelimit": '"a";r=50;t=30, "b"; r=0; t=3'}, 3),
        ({"ratelimit": '"a";r=50;t=30'}, 0),
        ({"ratelimit": '"a";r=0'}, 1),
    ],
)  # fmt: skip
def test_a_limit_with_nothing_left_says_when_it_resets(headers: dict[str, str], seconds: float):
    """Every spelling of the time is read; the longest counts, and none counts for more than a minute."""
    assert limited_for_s(headers) == seconds
