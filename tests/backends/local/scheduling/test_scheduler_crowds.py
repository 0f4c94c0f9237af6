"""Jobs -> batches -> steps, in crowds."""

import asyncio
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.backends.local.scheduling.desk import grammars_of, prompt, working

# The babbler breaks the first now and then, the second sooner, the third at once.
GRAMMARS = ("start: /(?s:.*)/", "start: /[^aeiou]*/", "start: /[A-Z ]*/")


@st.composite
def lots(draw):
    """Jobs, in the order in which they come; for each when it comes, and whether its caller leaves after some tokens."""
    count = draw(st.integers(1, 24))
    return [
        {
            "length": draw(st.sampled_from([2, 3, 10, 12, 30, 90, 200])),
            "max_tokens": draw(st.integers(1, 12)),
            "top_logprobs": draw(st.sampled_from([None, None, None, 0, 2])),
            "prefix": draw(st.sampled_from([0, 0, 64, 80])),
            "temperature": draw(st.sampled_from([0.0, 0.0, 0.0, 1e-5])),
            "repetition_penalty": draw(st.sampled_from([1.0, 1.0, 1.2])),
            "grammar": draw(st.sampled_from(["", "", *GRAMMARS])),
            "leaves_after": draw(st.sampled_from([None, None, None, None, 0, 1, 3])),
            "pause": draw(st.sampled_from([0, 0, 0, 1, 2])),
        }
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def grammars(babbler):
    return grammars_of(babbler)


@pytest.fixture(scope="module")
def alone(babbler, grammars):
    """What a job gets when nothing else is there, remembered."""
    known = {}

    async def tokens(prompt_, max_tokens, **how):
        key = (tuple(prompt_), max_tokens, *how.values())
        if key not in known:
            async with working(babbler, grammars=grammars, compute_type="float32") as desk:
                desk.submit(1, prompt_, max_tokens, **how)
                await desk.ended(1)
                known[key] = desk.tokens[1]
        return known[key]

    return tokens


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lots(), st.integers(1, 3))
async def test_whatever_comes_together_everybody_gets_what_he_would_get_alone(babbler, grammars, alone, jobs, workers):
    """Each ends exactly once, or not at all when its caller has left; then what came before is still right."""
    async with working(babbler, workers, 20_000, grammars, "float32") as desk:
        leaving = {}
        for number, job in enumerate(jobs):
            told = {
                name: job[name] for name in ("top_logprobs", "temperature", "repetition_penalty", "prefix", "grammar")
            }
            desk.submit(
                number, prompt(number % 5, job["length"]), job["max_tokens"], prefix_key="team", free=True, **told
            )
            if job["leaves_after"] is not None:
                leaving[number] = job["leaves_after"]
            for _ in range(job["pause"]):
                await asyncio.sleep(0.001)
        staying = [number for number in range(len(jobs)) if number not in leaving]
        for number, after in leaving.items():
            await desk.until(lambda: len(desk.tokens.get(number, [])) >= after or number in desk.ends)  # noqa: B023
            desk.scheduler.cancel(number)
        await desk.ended(*staying)

        for number, job in enumerate(jobs):
            expected = await alone(
                prompt(number % 5, job["length"]),
                job["max_tokens"],
                repetition_penalty=job["repetition_penalty"],
                grammar=job["grammar"],
            )
            got = desk.tokens.get(number, [])
            assert got == expected[: len(got)]
            if number in staying:
                assert (len(got), desk.ends[number]) == (job["max_tokens"], "length")


@pytest.mark.parametrize("seed", range(3))
async def test_nobody_is_forgotten_in_a_crowd(babbler, seed):
    """Two hundred jobs of all lengths on two workers, a third of which leave at some time."""
    random = Random(seed)
    async with working(babbler, workers=2, prefix_bytes=20_000) as desk:
        staying = []
        for number in range(200):
            desk.submit(number, prompt(number, random.choice([5, 20, 100, 300])), random.randrange(1, 30))
            if number % 3:
                staying.append(number)
            if random.random() < 0.1:
                await asyncio.sleep(0.002)
            if random.random() < 0.5:
                desk.scheduler.cancel(random.randrange(number + 1) // 3 * 3)
        for number in range(0, 200, 3):
            desk.scheduler.cancel(number)
        await desk.ended(*staying)

        assert set(desk.ends) >= set(staying)
