"""What may be cached."""

from typing import Any

import pytest

from proxy.cache.cacheable import is_deterministic, reason_not_to_keep, reason_to_bypass
from tests.examples import make_call
from tests.rules.samples import RESPONSE


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [(0, True), (0.0, True), (-0.0, True), (0.1, False), (1, False), (None, False), (False, False), ("0", False)],
)
def test_a_call_is_deterministic_at_temperature_0(temperature: Any, expected: bool):
    """The number, and nothing like it."""
    assert is_deterministic({"temperature": temperature}) is expected


@pytest.mark.parametrize("output", [None, "x", {}, 3, [3], [None]])
def test_outputs_of_other_types_are_empty(output: Any):
    """Nothing is assumed of what a backend sends."""
    assert reason_not_to_keep(RESPONSE | {"output": output}) == "empty"


@pytest.mark.parametrize(
    "item",
    [
        {"type": "function_call", "arguments": "{}"},
        {"type": "acme:thing"},
        {"type": "message", "content": [{"type": "output_text", "text": "Hi"}]},
        {"type": "message", "content": [{"type": "output_audio"}]},
    ],
)
def test_calls_texts_and_unknown_items_are_answers(item: dict[str, Any]):
    """A new type of item is not taken for nothing."""
    assert reason_not_to_keep(RESPONSE | {"output": [item]}) is None


def test_an_answer_with_incomplete_details_is_cut_off():
    """Whatever its status says."""
    assert reason_not_to_keep(RESPONSE | {"incomplete_details": {"reason": "max_output_tokens"}}) == "incomplete"


def test_only_responses_are_cached():
    """Not counts of tokens, and not compactions."""
    call = make_call(prompt_cache_key="k")
    object.__setattr__(call, "operation", "compact")

    assert reason_to_bypass(call, "always") == "compact"
