"""Tests of jobs, options and steps."""

import json
from dataclasses import asdict

import msgspec
import pytest

from backends.local.decoding.job import DecodingOptions, DecodingStep, Job, Token


def test_jobs_and_steps_are_plain_data():
    """They may be sent to another process."""
    job = Job(1, [1, 2], DecodingOptions(3, frozenset({4})))
    step = DecodingStep(1, [Token(5, -0.5, [(5, -0.5)])], "stop")

    assert json.loads(json.dumps(asdict(job), default=list))["options"]["stop_ids"] == [4]
    assert json.loads(msgspec.json.encode(step))["tokens"] == [[5, -0.5, [[5, -0.5]]]]


def test_a_continuation_keeps_the_total_limit_and_the_partial_answer():
    """Also a continuation of a continuation."""
    job = Job(1, [1, 2], DecodingOptions(9, frozenset({4}), grammar="g", allows_free_text=True))
    continued = job.continuation([5, 6]).continuation([7])

    assert (job.options.runs_alone, continued.options.runs_alone) == (False, True)
    assert continued == Job(1, [1, 2, 5, 6, 7], DecodingOptions(6, frozenset({4}), grammar="g"), answer_tokens=3)


@pytest.mark.parametrize(
    ("options", "runs_alone"),
    [
        ({}, False), ({"allows_free_text": True}, False), ({"grammar": "g"}, True),
        ({"grammar": "g", "allows_free_text": True}, False),
        ({"top_logprobs": 0}, False), ({"top_logprobs": 1}, True),
        ({"grammar": "g", "allows_free_text": True, "top_logprobs": 1}, True),
    ],
)  # fmt: skip
def test_a_job_runs_alone_when_its_tokens_are_inspected_one_by_one(options, runs_alone):
    assert DecodingOptions(1, frozenset(), **options).runs_alone is runs_alone


def test_the_default_options_are_greedy_and_unconstrained():
    options = DecodingOptions(1, frozenset())

    assert (options.temperature, options.top_logprobs, options.grammar, options.prefix_tokens) == (0.0, None, "", 0)
