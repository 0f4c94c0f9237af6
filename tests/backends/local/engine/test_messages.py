"""What is said over a link."""

import math

import orjson
import pytest

from backends.local.engine.costs import Costs
from backends.local.engine.job import Job, Options, Step, Token
from backends.local.engine.link import BrokenLink
from backends.local.engine.messages import Ready, job_message, job_of, message, ready_of, steps_message, steps_of


def test_a_job_arrives_as_it_was():
    """With all its options."""
    options = Options(
        100, frozenset({2, 7}), temperature=0.5, top_p=0.9, top_k=5, repetition_penalty=1.1, grammar='{"a": "ü"}',
        top_logprobs=3, prefix=4, prefix_key="red",
    )  # fmt: skip
    job = Job(7, [1, 2, 3], options)
    kind, *content = orjson.loads(job_message(job))

    assert (kind, job_of(content)) == ("job", job)


def test_steps_arrive_as_they_were():
    """All of one step of the model in one message; what cannot be said in JSON is the least there is."""
    steps = [
        Step(1, cached_tokens=0),
        Step(2, [Token(5), Token(6)], "stop"),
        Step(3, [Token(4, -0.5, [(4, -0.5), (1, -1.25)])], "length", 64),
        Step(4, finish="failed", message="out of memory"),
        Step(5, [Token(3, -math.inf, [(3, math.nan)])]),
    ]
    kind, *content = orjson.loads(steps_message(steps))
    heard = steps_of(content, 10)

    assert (kind, [(step.job, step.finish, step.cached_tokens, step.message) for step in heard]) == (
        "steps",
        [(step.job, step.finish, step.cached_tokens, step.message) for step in steps],
    )
    assert [list(step.tokens) for step in heard[:4]] == [list(step.tokens) for step in steps[:4]]
    assert heard[4].tokens == [Token(3, -9999.0, [(3, -9999.0)])]


@pytest.mark.parametrize(
    "content",
    [
        [], [5], [[], []], [[1]], [[[1, [], None, None]]], [[[1, [10], None, None, ""]]], [[[1, [-1], None, None, ""]]],
        [[[1, ["x"], None, None, ""]]], [[[1, [True, None], None, None, ""]]], [[[1, [[1, "x", []]], None, None, ""]]],
        [[[1, [[1, -1.0, [[11, -1.0]]]], None, None, ""]]], [[[1, [], "done", None, ""]]], [[[1, [], None, "5", ""]]],
        [[[1, 5, None, None, ""]]], [[["1", [], None, None, ""]]], [[[{}, [], None, None, ""]]],
    ],
)  # fmt: skip
def test_steps_that_are_none_break_the_link(content):
    """Nothing behind it would be ready for them."""
    with pytest.raises(BrokenLink):
        steps_of(content, 10)


def test_what_came_of_the_start_arrives_as_it_was():
    ready = Ready("cpu", "int8_float32", Costs(0.01, 0.1, 0.0005, 4096, 2))
    kind, given = orjson.loads(message("ready", ready))

    assert (kind, ready_of(given)) == ("ready", ready)


@pytest.mark.parametrize("given", [None, {}, {"device": "cpu", "compute_type": "int8", "costs": {"step_s": 1}}])
def test_an_answer_to_the_start_that_is_none_breaks_the_link(given):
    with pytest.raises(BrokenLink):
        ready_of(given)
