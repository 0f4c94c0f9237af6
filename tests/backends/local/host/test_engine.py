"""The seam: ids in, ids out, whatever makes them."""

import asyncio

import pytest
import structlog

from backends.local.decoding.job import Options, Step, Token
from backends.local.host.engine import Engine, Generation
from backends.local.scheduling.admission import Admission
from proxy.wire.errors import BackendError

OPTIONS = Options(10, frozenset())


class Still(Engine):
    """Does nothing by itself."""

    running = True

    def __init__(self, max_waiting=8):
        super().__init__(Admission(max_waiting, 1, None, 60), 100)
        self.begun, self.cancelled, self.refuses = [], [], False

    async def _begin(self, job):
        if self.refuses:
            raise BackendError("No.")
        self.begun.append(job.id)

    def _cancel(self, job):
        self.cancelled.append(job.id)

    async def close(self):
        pass


def tokens(*numbers):
    return [Token(number) for number in numbers]


async def test_tokens_that_came_since_the_last_look_come_together():
    generation = Generation()
    generation.take(Step(1, cached_tokens=70))
    generation.take(Step(1, tokens(1)))
    generation.take(Step(1, tokens(2, 3)))

    assert await anext(generation) == tokens(1, 2, 3)
    assert (generation.cached_tokens, generation.over) == (70, False)


async def test_the_end_comes_behind_the_last_token():
    """Also when both came at once."""
    generation = Generation()
    generation.take(Step(1, tokens(1), "length"))

    assert [step async for step in generation] == [tokens(1)]
    assert (generation.finish, generation.over) == ("length", True)


async def test_whoever_waits_is_woken():
    """By tokens, by the end; what brings neither is no reason."""
    generation = Generation()
    heard = asyncio.ensure_future(anext(generation))
    await asyncio.sleep(0)
    generation.take(Step(1, cached_tokens=0))
    await asyncio.sleep(0)
    asleep = not heard.done()
    generation.take(Step(1, tokens(5)))

    assert (asleep, await heard) == (True, tokens(5))


async def test_a_failure_comes_behind_what_there_was():
    """The first one stays."""
    generation = Generation()
    generation.take(Step(1, tokens(1)))
    generation.take(Step(1, (), "failed", message="CUDA out of memory"))
    generation.fail(BackendError("Another."))

    assert await anext(generation) == tokens(1)
    with pytest.raises(BackendError, match="The local model broke down") as failed:
        await anext(generation)
    assert (failed.value.status, failed.value.code, generation.finish) == (502, "local_model_failed", None)


async def test_news_reach_whoever_waits_for_them():
    """Those of somebody who has left are dropped."""
    engine = Still()
    async with engine.generate([1, 2], OPTIONS) as first, engine.generate([1, 2], OPTIONS) as second:
        engine.take([Step(1, tokens(1)), Step(2, tokens(2), "stop"), Step(9, tokens(3))])
        assert (await anext(first), await anext(second)) == (tokens(1), tokens(2))
    engine.take([Step(1, tokens(4))])

    assert (engine.begun, engine.cancelled) == ([1, 2], [1])


async def test_a_failure_is_told_in_the_log():
    """The caller does not learn what the library said; the operator does."""
    engine = Still()
    async with engine.generate([1, 2], OPTIONS):
        with structlog.testing.capture_logs() as lines:
            engine.take([Step(1, (), "failed", message="CUDA out of memory")])

    assert lines == [{"event": "local.generation_failed", "log_level": "warning", "error": "CUDA out of memory"}]


async def test_all_can_be_ended():
    engine = Still()
    async with engine.generate([1, 2], OPTIONS) as first, engine.generate([1, 2], OPTIONS) as second:
        engine.fail_all(BackendError("Gone."))
        for generation in (first, second):
            with pytest.raises(BackendError, match=r"Gone\."):
                await anext(generation)

    assert engine.cancelled == []


async def test_leaving_gives_the_place_back():
    """However the block is left, and when it was never entered."""
    engine = Still(max_waiting=0)
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
    engine = Still()
    with pytest.raises(ValueError, match="at least two tokens, all of the model's vocabulary"):
        async with engine.generate(prompt, OPTIONS):
            pass

    assert engine.begun == []
