"""Property tests of the scheduler with many jobs."""

import asyncio
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.backends.local.scheduling.scheduler_client import compile_grammars, prompt, run_scheduler

# The random model violates the first one rarely, the second one sooner, the third one at once.
GRAMMARS = ("start: /(?s:.*)/", "start: /[^aeiou]*/", "start: /[A-Z ]*/")


@st.composite
def job_lists(draw):
    """Jobs in the order of arrival, each with a pause, and with the tokens after which it may be cancelled."""
    count = draw(st.integers(1, 24))
    return [
        {
            "length": draw(st.sampled_from([2, 3, 10, 12, 30, 90, 200])),
            "max_tokens": draw(st.integers(1, 12)),
            "top_logprobs": draw(st.sampled_from([None, None, None, 0, 2])),
            "prefix_tokens": draw(st.sampled_from([0, 0, 64, 80])),
            "temperature": draw(st.sampled_from([0.0, 0.0, 0.0, 1e-5])),
            "repetition_penalty": draw(st.sampled_from([1.0, 1.0, 1.2])),
            "grammar": draw(st.sampled_from(["", "", *GRAMMARS])),
            "cancelled_after": draw(st.sampled_from([None, None, None, None, 0, 1, 3])),
            "pause": draw(st.sampled_from([0, 0, 0, 1, 2])),
        }
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def grammars(random_model):
    return compile_grammars(random_model)


@pytest.fixture(scope="module")
def alone(random_model, grammars):
    """A function that returns the tokens of a job without other jobs, cached."""
    known = {}

    async def tokens(prompt_, max_tokens, **options):
        key = (tuple(prompt_), max_tokens, *options.values())
        if key not in known:
            async with run_scheduler(random_model, grammars=grammars, compute_type="float32") as client:
                client.submit(1, prompt_, max_tokens, **options)
                await client.wait_for_end(1)
                known[key] = client.tokens[1]
        return known[key]

    return tokens


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(job_lists(), st.integers(1, 3))
async def test_each_job_gets_the_answer_that_it_gets_alone(random_model, grammars, alone, jobs, workers):
    """Each ends exactly once, or never after it was cancelled; its tokens until then are right."""
    async with run_scheduler(random_model, workers, 20_000, grammars, "float32") as client:
        cancelled = {}
        for number, job in enumerate(jobs):
            options = {
                name: job[name]
                for name in ("top_logprobs", "temperature", "repetition_penalty", "prefix_tokens", "grammar")
            }
            client.submit(
                number,
                prompt(number % 5, job["length"]),
                job["max_tokens"],
                prefix_key="team",
                allows_free_text=True,
                **options,
            )
            if job["cancelled_after"] is not None:
                cancelled[number] = job["cancelled_after"]
            for _ in range(job["pause"]):
                await asyncio.sleep(0.001)
        completed = [number for number in range(len(jobs)) if number not in cancelled]
        for number, after in cancelled.items():
            await client.until(lambda: len(client.tokens.get(number, [])) >= after or number in client.ends)  # noqa: B023
            client.scheduler.cancel(number)
        await client.wait_for_end(*completed)

        for number, job in enumerate(jobs):
            expected = await alone(
                prompt(number % 5, job["length"]),
                job["max_tokens"],
                repetition_penalty=job["repetition_penalty"],
                grammar=job["grammar"],
            )
            received = client.tokens.get(number, [])
            assert received == expected[: len(received)]
            if number in completed:
                assert (len(received), client.ends[number]) == (job["max_tokens"], "length")


@pytest.mark.parametrize("seed", range(3))
async def test_no_job_is_lost_in_a_crowd(random_model, seed):
    """Two hundred jobs of all lengths on two workers, a third of which are cancelled at some time."""
    random = Random(seed)
    async with run_scheduler(random_model, workers=2, prefix_bytes=20_000) as client:
        completed = []
        for number in range(200):
            client.submit(number, prompt(number, random.choice([5, 20, 100, 300])), random.randrange(1, 30))
            if number % 3:
                completed.append(number)
            if random.random() < 0.1:
                await asyncio.sleep(0.002)
            if random.random() < 0.5:
                client.scheduler.cancel(random.randrange(number + 1) // 3 * 3)
        for number in range(0, 200, 3):
            client.scheduler.cancel(number)
        await client.wait_for_end(*completed)

        assert set(client.ends) >= set(completed)
