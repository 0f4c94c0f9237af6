"""What passes between who asks and who makes."""

import json
from dataclasses import asdict

from backends.local.engine.job import Job, Options, Step, Token


def test_all_of_it_is_plain_data():
    """It may have to go to another process."""
    job = Job(1, [1, 2], Options(3, frozenset({4})))
    step = Step(1, [Token(5, -0.5, [(5, -0.5)])], "stop")

    assert json.loads(json.dumps(asdict(job), default=list))["options"]["stop_ids"] == [4]
    assert json.loads(json.dumps(asdict(step)))["tokens"] == [[5, -0.5, [[5, -0.5]]]]


def test_the_plainest_options_are_greedy_and_ask_for_nothing():
    options = Options(1, frozenset())

    assert (options.temperature, options.top_logprobs, options.grammar, options.prefix) == (0.0, None, "", 0)
