"""Tests of an engine in this process, on real models."""

import asyncio
import subprocess
import sys
from contextlib import asynccontextmanager

import pytest

from backends.local.decoding.job import DecodingOptions
from backends.local.host.device import Placement
from backends.local.host.thread_engine import ThreadEngine
from backends.local.scheduling.admission import JobAdmission
from proxy.wire.errors import BackendError

PATIENCE_S = 20
PROMPT = [5, 6, 7]
FOREVER = 10**6


@asynccontextmanager
async def running(model, *, workers=1, max_waiting=8, **other):
    admission = JobAdmission(max_waiting, workers, None, 600)
    engine = await ThreadEngine.start(*model, Placement("cpu", workers=workers), admission, **other)
    try:
        async with asyncio.timeout(PATIENCE_S):
            yield engine
    finally:
        await engine.close()


def options(max_tokens=30, **other):
    return DecodingOptions(max_tokens, frozenset(), **other)


async def all_of(generation):
    return [token.id async for tokens in generation for token in tokens]


async def answer(engine, prompt=PROMPT, chosen=None):
    async with engine.generate(prompt, chosen or options()) as generation:
        return await all_of(generation), generation.finish


async def test_a_generation_yields_all_tokens_and_the_finish_reason(greeting_model):
    """The stop token is not among them."""
    prompt = [5, greeting_model.vocabulary.index("Ċ")]
    async with running(greeting_model) as engine:
        ids, finish = await answer(engine, prompt, DecodingOptions(100, frozenset({greeting_model.end})))
        assert (engine.device, engine.compute_type, engine.is_running) == ("cpu", "int8_float32", True)

    assert ([greeting_model.vocabulary[number] for number in ids], finish) == (["Hello", " there", "!"], "stop")


async def test_greedy_answers_are_deterministic(random_model):
    """Also with a top_p that leaves one token, and with values near zero."""
    greedy = [{}, {"temperature": 1e-40}, {"temperature": 1.0, "top_p": 0.0}, {"temperature": 1.0, "top_p": 1e-45}]
    async with running(random_model) as engine:
        answers = [await answer(engine, PROMPT, options(40, **sampling)) for sampling in greedy]

    assert [answers[0]] * 4 == answers


async def test_sampled_answers_vary(random_model):
    """With and without top_p and top_k."""
    hot = [
        {},
        {"temperature": 2.0},
        {"temperature": 2.0},
        {"temperature": 2.0, "top_p": 0.99},
        {"temperature": 2.0, "top_k": 50},
    ]
    async with running(random_model) as engine:
        answers = [tuple((await answer(engine, PROMPT, options(60, **sampling)))[0]) for sampling in hot]

    assert len(set(answers)) == len(hot)


async def test_cancelling_the_caller_frees_the_worker(endless_model):
    """The task of a client that disconnects is cancelled."""
    async with running(endless_model) as engine:
        started = asyncio.Event()

        async def call():
            async with engine.generate(PROMPT, options(FOREVER)) as generation:
                async for _ in generation:
                    started.set()

        task = asyncio.create_task(call())
        await started.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        _, finish = await answer(engine, PROMPT, options(5))

    assert finish == "length"


async def test_of_two_hundred_calls_those_that_fit_are_answered(random_model):
    """All others are refused at once."""
    async with running(random_model, workers=2, max_waiting=32) as engine:
        answers = await asyncio.gather(*(answer(engine) for _ in range(200)), return_exceptions=True)
        later = await answer(engine)

    served = [each for each in answers if not isinstance(each, BaseException)]
    refused = [each for each in answers if isinstance(each, BackendError) and each.status == 429]
    assert (len(served), len(refused)) == (34, 166)
    assert served == [later] * 34


async def test_an_error_of_the_library_is_a_backend_error(random_model):
    """The next call is answered."""
    async with running(random_model) as engine:
        with pytest.raises(BackendError, match="The local model failed") as failed:
            await answer(engine, PROMPT, options(temperature=1.0, top_p=7.0))
        _, finish = await answer(engine)

    assert (failed.value.status, failed.value.code, finish) == (502, "local_model_failed", "length")


async def test_cached_tokens_are_known_before_the_first_token(random_model):
    prompt = [*range(20, 120), 5, 6]
    shared = options(prefix_tokens=100, prefix_key="team")
    cached = []
    async with running(random_model, kv_bytes_per_token=100, prefix_cache_bytes=10**6) as engine:
        for _ in range(3):
            async with engine.generate(prompt, shared) as generation:
                await anext(generation)
                cached.append(generation.cached_tokens)

    assert cached == [0, 0, 100]


async def test_closing_ends_running_and_waiting_answers(endless_model):
    """With an error instead of a finish reason; later calls are refused."""
    async with (
        running(endless_model) as engine,
        engine.generate(PROMPT, options(FOREVER)) as first,
        engine.generate(PROMPT, options(FOREVER, temperature=1.0)) as second,
    ):
        await anext(first)
        await engine.close()
        refused = []
        for generation in (first, second):
            with pytest.raises(BackendError) as error:
                await all_of(generation)
            refused.append(error.value)
        with pytest.raises(BackendError) as error:
            await answer(engine)
        refused.append(error.value)

        assert not engine.is_running
        assert [(error.status, error.code) for error in refused] == [(503, "local_model_unavailable")] * 3


async def test_the_loop_is_not_blocked_while_a_prompt_is_read(endless_model):
    """It can run many short tasks meanwhile."""
    async with running(endless_model) as engine:
        answering = asyncio.ensure_future(answer(engine, [5 + number % 200 for number in range(3000)], options(2)))
        turns = 0
        while not answering.done():
            await asyncio.sleep(0.001)
            turns += 1
        await answering

    assert turns > 5


def test_the_process_exits_cleanly_after_close(random_model):
    """The library aborts at exit when a generator is left."""
    program = f"""
import asyncio, json
from pathlib import Path
from backends.local.scheduling.admission import JobAdmission
from backends.local.host.device import Placement
from backends.local.decoding.job import DecodingOptions
from backends.local.host.thread_engine import ThreadEngine

path = Path({str(random_model.path)!r})
vocabulary = json.loads((path / "vocabulary.json").read_text())

async def ask(engine):
    async with engine.generate([5, 6, 7], DecodingOptions(20, frozenset())) as generation:
        async for _ in generation:
            pass

async def main():
    engine = await ThreadEngine.start(path, vocabulary, Placement("cpu", workers=4), JobAdmission(100, 4, None, 60))
    await asyncio.gather(*(ask(engine) for _ in range(20)))
    async with engine.generate([5, 6, 7], DecodingOptions(10**6, frozenset())) as generation:
        await anext(generation)
        await engine.close()

asyncio.run(main())
"""
    for _ in range(3):
        ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)

        assert (ended.returncode, ended.stderr) == (0, "")
