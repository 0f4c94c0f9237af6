"""Tests of the interface of engines."""

import asyncio

import pytest
import structlog

from backends.local.decoding.job import DecodingOptions, DecodingStep, Token
from backends.local.host.engine import Engine, Generation
from backends.local.scheduling.admission import JobAdmission
from proxy.wire.errors import BackendError

OPTIONS = DecodingOptions(10, frozenset())


class IdleEngine(Engine):
    """Records jobs and runs none of them."""

    is_running = True

    def __init__(self, max_waiting=8):
        super().__init__(JobAdmission(max_waiting, 1, None, 60), 100)
        self.submitted, self.cancelled, self.delivered_at_once, self.refuses = [], [], [], False

    async def _submit(self, job):
        if self.refuses:
            raise BackendError("No.")
        self.submitted.append(job.id)

    def _cancel(self, job):
        self.cancelled.append(job.id)

    def _deliver_at_once(self, job):
        self.delivered_at_once.append(job.id)

    async def close(self):
        pass


def tokens(*numbers):
    return [Token(number) for number in numbers]


async def test_tokens_that_arrived_since_the_last_iteration_come_together():
    generation = Generation()
    generation.add_step(DecodingStep(1, cached_tokens=70))
    generation.add_step(DecodingStep(1, tokens(1)))
    generation.add_step(DecodingStep(1, tokens(2, 3)))

    assert await anext(generation) == tokens(1, 2, 3)
    assert (generation.cached_tokens, generation.is_over) == (70, False)


async def test_the_end_follows_the_last_token():
    """Also when both arrived in one step."""
    generation = Generation()
    generation.add_step(DecodingStep(1, tokens(1), "length"))

    assert [step async for step in generation] == [tokens(1)]
    assert (generation.finish, generation.is_over) == ("length", True)


async def test_a_waiting_iteration_wakes_up_for_tokens():
    """Not for a step without tokens or an end."""
    generation = Generation()
    iteration = asyncio.ensure_future(anext(generation))
    await asyncio.sleep(0)
    generation.add_step(DecodingStep(1, cached_tokens=0))
    await asyncio.sleep(0)
    waiting = not iteration.done()
    generation.add_step(DecodingStep(1, tokens(5)))

    assert (waiting, await iteration) == (True, tokens(5))


async def test_tokens_are_forwarded_while_an_iteration_waits():
    """Those that came before it are iterated; the task sleeps on until something has to be read or the answer ends."""
    generation, taken, takes = Generation(), [], [True, True, False]
    generation.forward_tokens(lambda given: taken.append([*given]) or takes[len(taken) - 1])
    generation.add_step(DecodingStep(1, tokens(1)))
    first = await anext(generation)
    iteration = asyncio.ensure_future(anext(generation))
    await asyncio.sleep(0)
    for number in (2, 3, 4, 5):
        generation.add_step(DecodingStep(1, tokens(number)))

    assert (first, await iteration) == (tokens(1), ())
    assert taken == [tokens(2), tokens(3), tokens(4)]
    assert await anext(generation) == tokens(5)


async def test_an_end_wakes_up_an_iteration_whose_tokens_are_forwarded():
    """Also one in the same step as the last token; an error, too."""
    ended, failed = Generation(), Generation()
    for generation in (ended, failed):
        generation.forward_tokens(lambda _: True)
    iterations = [asyncio.ensure_future(anext(each)) for each in (ended, failed)]
    await asyncio.sleep(0)
    ended.add_step(DecodingStep(1, tokens(1), "stop"))
    failed.add_step(DecodingStep(1, tokens(1), "constraint_failed"))

    with pytest.raises(StopAsyncIteration):
        await iterations[0]
    with pytest.raises(BackendError, match="required output format"):
        await iterations[1]


async def test_no_tokens_are_forwarded_to_a_caller_that_has_left():
    """Nothing keeps what takes them."""
    engine, taken = IdleEngine(), []
    async with engine.generate([1, 2], OPTIONS) as generation:
        generation.forward_tokens(lambda given: taken.append(given) is None)
        iteration = asyncio.ensure_future(anext(generation))
        await asyncio.sleep(0)
    generation.add_step(DecodingStep(1, tokens(1)))

    assert (await iteration, taken) == (tokens(1), [])


async def test_an_error_follows_the_tokens_before_it():
    """The first error counts."""
    generation = Generation()
    generation.add_step(DecodingStep(1, tokens(1)))
    generation.add_step(DecodingStep(1, (), "failed", message="CUDA out of memory"))
    generation.fail(BackendError("Another."))

    assert await anext(generation) == tokens(1)
    with pytest.raises(BackendError, match="The local model failed") as failed:
        await anext(generation)
    assert (failed.value.status, failed.value.code, generation.finish) == (502, "local_model_failed", None)


async def test_steps_reach_their_generations():
    """Steps of cancelled jobs are dropped."""
    engine = IdleEngine()
    async with engine.generate([1, 2], OPTIONS) as first, engine.generate([1, 2], OPTIONS) as second:
        engine.receive([DecodingStep(1, tokens(1)), DecodingStep(2, tokens(2), "stop"), DecodingStep(9, tokens(3))])
        assert (await anext(first), await anext(second)) == (tokens(1), tokens(2))
    engine.receive([DecodingStep(1, tokens(4))])

    assert (engine.submitted, engine.cancelled) == ([1, 2], [1])


async def test_a_failure_is_logged():
    """The message of the library is for the operator, not for the caller."""
    engine = IdleEngine()
    async with engine.generate([1, 2], OPTIONS):
        with structlog.testing.capture_logs() as lines:
            engine.receive([DecodingStep(1, (), "failed", message="CUDA out of memory")])

    assert lines == [{"event": "generation.failed", "log_level": "warning", "error": "CUDA out of memory"}]


async def test_fail_all_ends_all_generations():
    engine = IdleEngine()
    async with engine.generate([1, 2], OPTIONS) as first, engine.generate([1, 2], OPTIONS) as second:
        engine.fail_all(BackendError("Gone."))
        for generation in (first, second):
            with pytest.raises(BackendError, match=r"Gone\."):
                await anext(generation)

    assert engine.cancelled == []


async def test_leaving_the_block_frees_the_place():
    """Also after an exception, and when the job was never submitted."""
    engine = IdleEngine(max_waiting=0)
    for _ in range(3):
        with pytest.raises(KeyError):
            async with engine.generate([1, 2], OPTIONS):
                raise KeyError
        engine.refuses = True
        with pytest.raises(BackendError, match=r"No\."):
            async with engine.generate([1, 2], OPTIONS):
                pass
        engine.refuses = False

    async with engine.generate([1, 2], OPTIONS):
        with pytest.raises(BackendError, match="the limit is 0"):
            async with engine.generate([1, 2], OPTIONS):
                pass


@pytest.mark.parametrize("prompt", [[], [1], [1, -1], [1, 100], [100, 1]])
async def test_a_prompt_that_would_crash_the_library_is_refused(prompt):
    engine = IdleEngine()
    with pytest.raises(ValueError, match="at least two tokens, all of the model's vocabulary"):
        async with engine.generate(prompt, OPTIONS):
            pass

    assert engine.submitted == []
