"""How a call is put into the columns: each end is one of them, and nothing that an upstream sends breaks a count."""

from typing import Any

import pytest

from proxy.telemetry.record import RequestRecord
from proxy.usage.columns import COLUMNS, Labels, amounts_of

ANSWERED: dict[str, Any] = {"status": 200, "sent": 1, "input_tokens": 5, "output_tokens": 7}
TOKENS = {"sent": 1, "input_tokens": 5, "output_tokens": 7}
CASES: list[tuple[dict[str, Any], dict[str, int]]] = [
    (ANSWERED, TOKENS),
    (ANSWERED | {"cached_tokens": 3, "cache_write_tokens": 1, "reasoning_tokens": 2, "cost_usd": 0.000000021, "sent": 2},
     TOKENS | {"cached_input_tokens": 3, "cache_write_tokens": 1, "reasoning_tokens": 2, "cost": 21, "sent": 2}),
    (ANSWERED | {"estimated": True, "status": 499},
     {"sent": 1, "estimated_input_tokens": 5, "estimated_output_tokens": 7, "interrupted": 1}),
    (ANSWERED | {"outcome": "stopped"}, TOKENS | {"interrupted": 1}),
    (ANSWERED | {"finish_reason": "cancelled"}, TOKENS | {"interrupted": 1}),
    (ANSWERED | {"code": "server_shutdown"}, TOKENS | {"interrupted": 1}),
    (ANSWERED | {"code": "upstream_cut"}, TOKENS | {"failed": 1}),
    (ANSWERED | {"finish_reason": "failed"}, TOKENS | {"failed": 1}),
    (ANSWERED | {"finish_reason": "incomplete", "unpriced": True}, TOKENS | {"unpriced": 1}),
    ({"status": 400, "outcome": "refused", "code": "models.not_allowed"}, {"refused": 1}),
    ({"status": 400, "code": "invalid_json"}, {"refused": 1}),
    ({"status": 429, "sent": 1}, {"sent": 1, "failed": 1}),
    ({"status": 502, "code": "upstream_unreachable"}, {"failed": 1}),
    ({"status": 200, "cache": "hit", "saved_input_tokens": 5, "saved_output_tokens": 7, "saved_usd": 1.5},
     {"cached": 1, "saved_input_tokens": 5, "saved_output_tokens": 7, "saved_cost": 1_500_000_000}),
    ({"status": 499, "cache": "hit", "saved_input_tokens": 5}, {"interrupted": 1, "saved_input_tokens": 5}),
    ({"code": "upstream_cut", "sent": 1}, {"sent": 1, "failed": 1}),
    ({"status": 200, "sent": 1, "input_tokens": "5", "output_tokens": -1, "cached_tokens": 2**60}, {"sent": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "expected"), CASES)
def test_a_call_is_in_these_columns(fields: dict[str, Any], expected: dict[str, int]):
    """It is at most one of failed, refused, interrupted and cached."""
    record = RequestRecord(**fields)
    amounts = {name: amount for name, amount in zip(COLUMNS, amounts_of(record), strict=True) if amount}
    others = {name: amount for name, amount in zip(COLUMNS, amounts_of(record, is_call=False), strict=True) if amount}

    assert amounts == expected | {"calls": 1}
    assert others == {
        name: n for name, n in expected.items() if name not in ("failed", "refused", "interrupted", "cached")
    }


@pytest.mark.parametrize("text", ["", '"', "é\u4e2d", "a" * 300])
def test_the_name_of_a_row_says_whose_it_is(text: str):
    """Whatever is in its labels; long texts are cut."""
    labels = Labels("team", text, "key_1", text, "", (("project", text),))

    assert Labels.of(labels.name()) == labels._replace(caller=text[:128], model=text[:128])
