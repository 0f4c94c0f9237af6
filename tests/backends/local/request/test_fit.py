"""Conversations that are too long."""

from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.local.request.fit import TOO_LONG, fitted
from proxy.wire.errors import RequestError

WINDOW = 20


def message(role, size):
    return {"role": role, "content": "x" * size}


def prompt_of(messages):
    """A token for each character, the role's number before them; a template that wants the user to begin."""
    spoken = [each for each in messages if each["role"] != "system"]
    assert not spoken or spoken[0]["role"] == "user"
    prompt = list(chain.from_iterable([len(each["role"])] + [ord("x")] * len(each["content"]) for each in messages))
    if len(prompt) >= WINDOW:
        raise RequestError("too long", code=TOO_LONG, param="input")
    return prompt


def test_what_fits_is_left_as_it_is():
    messages = [message("system", 2), message("user", 2), message("assistant", 2)]

    assert prompt_of(messages) == fitted(messages, prompt_of, longest=15, whole=False)


def test_the_oldest_turns_are_left_out():
    """Until the rest leaves room enough; what the system said stays, calls stay with their results."""
    turn = [message("user", 1), message("assistant", 1), message("tool", 1), message("assistant", 0)]
    messages = [message("system", 2), *turn, *turn, *turn]

    assert prompt_of([messages[0], *turn]) == fitted(messages, prompt_of, longest=12, whole=False)
    assert prompt_of([messages[0], *turn, *turn]) == fitted(messages, prompt_of, longest=17, whole=False)


def test_the_last_turn_takes_what_room_there_is():
    """When it leaves less than was wanted for the answer it is still answered."""
    messages = [message("user", 3), message("user", 15)]

    assert prompt_of(messages[1:]) == fitted(messages, prompt_of, longest=5, whole=False)


@pytest.mark.parametrize("messages", [[message("user", 30)], [message("user", 1), message("user", 30)]])
def test_a_last_turn_that_cannot_fit_is_refused(messages):
    with pytest.raises(RequestError) as refused:
        fitted(messages, prompt_of, longest=10, whole=False)

    assert refused.value.code == TOO_LONG


def test_a_conversation_that_must_be_whole_is_whole_or_refused():
    long = [message("user", 10), message("user", 10)]

    assert fitted(long[:1], prompt_of, longest=0, whole=True) == prompt_of(long[:1])
    with pytest.raises(RequestError):
        fitted(long, prompt_of, longest=0, whole=True)


def test_other_refusals_are_not_mended():
    def refuse(_messages):
        raise RequestError("odd", code="odd")

    with pytest.raises(RequestError, match="odd"):
        fitted([message("user", 1), message("user", 1)], refuse, longest=10, whole=False)


@given(
    st.lists(st.integers(0, 2), max_size=2),
    st.lists(st.tuples(st.integers(0, 6), st.lists(st.integers(0, 3), max_size=3)), min_size=1, max_size=8),
    st.integers(1, WINDOW),
)
def test_no_turn_is_left_out_that_would_have_fitted(system, turns, longest):
    """Nor does one come in that leaves too little room, as long as there is a shorter choice."""
    head = [message("system", size) for size in system]
    spoken = [[message("user", size), *(message("assistant", each) for each in rest)] for size, rest in turns]
    choices = [head + list(chain.from_iterable(spoken[start:])) for start in range(len(spoken))]
    sizes = [sum(1 + len(each["content"]) for each in choice) for choice in choices]
    fitting = [choice for choice, size in zip(choices, sizes, strict=True) if size <= min(longest, WINDOW - 1)]

    if fitting or sizes[-1] < WINDOW:
        assert prompt_of(fitting[0] if fitting else choices[-1]) == fitted(
            choices[0], prompt_of, longest=longest, whole=False
        )
    else:
        with pytest.raises(RequestError):
            fitted(choices[0], prompt_of, longest=longest, whole=False)
