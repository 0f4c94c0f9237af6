"""Truncation of conversations that are too long."""

from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.local.request.truncation import TOO_LONG, fit_prompt
from proxy.wire.errors import RequestError

WINDOW = 20


def message(role, size):
    return {"role": role, "content": "x" * size}


def render(messages):
    """Render a token for each character after one for the role, with a template that requires the user to begin."""
    others = [each for each in messages if each["role"] != "system"]
    assert not others or others[0]["role"] == "user"
    prompt = list(chain.from_iterable([len(each["role"])] + [ord("x")] * len(each["content"]) for each in messages))
    if len(prompt) >= WINDOW:
        raise RequestError("too long", code=TOO_LONG, param="input")
    return prompt


def test_a_conversation_that_fits_is_not_truncated():
    messages = [message("system", 2), message("user", 2), message("assistant", 2)]

    assert render(messages) == fit_prompt(messages, render, max_tokens=15, truncate=True)


def test_the_oldest_turns_are_dropped():
    """Until the rest leaves enough room; system messages stay, and calls stay with their results."""
    turn = [message("user", 1), message("assistant", 1), message("tool", 1), message("assistant", 0)]
    messages = [message("system", 2), *turn, *turn, *turn]

    assert render([messages[0], *turn]) == fit_prompt(messages, render, max_tokens=12, truncate=True)
    assert render([messages[0], *turn, *turn]) == fit_prompt(messages, render, max_tokens=17, truncate=True)


def test_the_last_turn_may_use_the_room_of_the_answer():
    """It is answered even when it leaves less room than the answer should have."""
    messages = [message("user", 3), message("user", 15)]

    assert render(messages[1:]) == fit_prompt(messages, render, max_tokens=5, truncate=True)


@pytest.mark.parametrize("messages", [[message("user", 30)], [message("user", 1), message("user", 30)]])
def test_a_last_turn_that_cannot_fit_is_refused(messages):
    with pytest.raises(RequestError) as refused:
        fit_prompt(messages, render, max_tokens=10, truncate=True)

    assert refused.value.code == TOO_LONG


def test_without_truncation_a_long_conversation_is_refused():
    long = [message("user", 10), message("user", 10)]

    assert fit_prompt(long[:1], render, max_tokens=0, truncate=False) == render(long[:1])
    with pytest.raises(RequestError):
        fit_prompt(long, render, max_tokens=0, truncate=False)


def test_other_errors_are_not_handled_by_truncation():
    def refuse(_messages):
        raise RequestError("odd", code="odd")

    with pytest.raises(RequestError, match="odd"):
        fit_prompt([message("user", 1), message("user", 1)], refuse, max_tokens=10, truncate=True)


@given(
    st.lists(st.integers(0, 2), max_size=2),
    st.lists(st.tuples(st.integers(0, 6), st.lists(st.integers(0, 3), max_size=3)), min_size=1, max_size=8),
    st.integers(1, WINDOW),
)
def test_as_many_turns_as_fit_are_kept(system, drawn, max_tokens):
    """No more than that, unless the last turn alone leaves too little room; of one that is too long the last steps."""
    head = [message("system", size) for size in system]
    turns = [[message("user", size), *(message("assistant", each) for each in rest)] for size, rest in drawn]
    whole = head + list(chain.from_iterable(turns))
    choices = [head + list(chain.from_iterable(turns[start:])) for start in range(len(turns))]
    question, *steps = turns[-1]
    if size_of(choices[-1]) >= WINDOW and len(steps) > 1:
        choices = [[*head, question, *steps[start:]] for start in range(1, len(steps))]
    candidates = [choice for choice in choices if size_of(choice) <= min(max_tokens, WINDOW - 1)]

    if candidates or size_of(choices[-1]) < WINDOW:
        assert render(candidates[0] if candidates else choices[-1]) == fit_prompt(
            whole, render, max_tokens=max_tokens, truncate=True
        )
    else:
        with pytest.raises(RequestError):
            fit_prompt(whole, render, max_tokens=max_tokens, truncate=True)


def size_of(messages):
    return sum(1 + len(each["content"]) for each in messages)


def step(number):
    call = {"role": "assistant", "content": "x", "tool_calls": [{"id": f"call_{number}"}]}
    return [call, message("tool", 1) | {"tool_call_id": f"call_{number}"}]


def test_the_oldest_steps_of_a_last_turn_are_dropped():
    """Calls stay with their results, and the question stays."""
    question, steps = message("user", 3), [step(number) for number in range(6)]
    messages = [message("system", 1), message("user", 9), question, *chain.from_iterable(steps)]

    assert render([messages[0], question, *steps[4], *steps[5]]) == fit_prompt(
        messages, render, max_tokens=15, truncate=True
    )
    assert render([messages[0], question, *steps[5]]) == fit_prompt(messages, render, max_tokens=5, truncate=True)


def test_a_call_without_its_result_is_no_beginning_of_a_step():
    """Its result follows a later message."""
    first, result = step(1)
    messages = [message("user", 3), first, message("assistant", 6), result, message("assistant", 6)]

    assert render([messages[0], messages[4]]) == fit_prompt(messages, render, max_tokens=19, truncate=True)


def test_a_last_step_that_cannot_fit_is_refused():
    with pytest.raises(RequestError) as refused:
        fit_prompt([message("user", 3), *step(1), message("assistant", 30)], render, max_tokens=10, truncate=True)

    assert refused.value.code == TOO_LONG
