"""What passes between who asks and who makes."""

import json
from dataclasses import asdict

import pytest

from backends.local.decoding.job import Job, Options, Step, Token


def test_all_of_it_is_plain_data():
    """It may have to go to another process."""
    job = Job(1, [1, 2], Options(3, frozenset({4})))
    step = Step(1, [Token(5, -0.5, [(5, -0.5)])], "stop")

    assert json.loads(json.dumps(asdict(job), default=list))["options"]["stop_ids"] == [4]
    assert json.loads(json.dumps(asdict(step)))["tokens"] == [[5, -0.5, [[5, -0.5]]]]


def test_the_rest_of_a_job_is_made_alone_behind_what_was_made():
    """Twice as well as once: all that was said counts, and the limit is that of the whole."""
    job = Job(1, [1, 2], Options(9, frozenset({4}), grammar="g", free=True))
    rest = job.rest([5, 6]).rest([7])

    assert (job.options.alone, rest.options.alone) == (False, True)
    assert rest == Job(1, [1, 2, 5, 6, 7], Options(6, frozenset({4}), grammar="g"), said=3)


@pytest.mark.parametrize(
    ("options", "alone"),
    [
        ({}, False), ({"free": True}, False), ({"grammar": "g"}, True), ({"grammar": "g", "free": True}, False),
        ({"top_logprobs": 0}, False), ({"top_logprobs": 1}, True),
        ({"grammar": "g", "free": True, "top_logprobs": 1}, True),
    ],
)  # fmt: skip
def test_a_job_is_alone_whose_tokens_are_looked_at_one_by_one(options, alone):
    assert Options(1, frozenset(), **options).alone is alone


def test_the_plainest_options_are_greedy_and_ask_for_nothing():
    options = Options(1, frozenset())

    assert (options.temperature, options.top_logprobs, options.grammar, options.prefix) == (0.0, None, "", 0)
