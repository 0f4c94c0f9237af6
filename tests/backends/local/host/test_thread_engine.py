"""An engine in this process, on real models."""

import asyncio
import subprocess
import sys
from contextlib import asynccontextmanager

import pytest

from backends.local.decoding.job import Options
from backends.local.host.device import Placement
from backends.local.host.thread_engine import InThread
from backends.local.scheduling.admission import Admission
from proxy.wire.errors import BackendError

PATIENCE_S = 20
PROMPT = [5, 6, 7]
FOREVER = 10**6


@asynccontextmanager
async def running(tiny, *, workers=1, max_waiting=8, **other):
    admission = Admission(max_waiting, workers, None, 600)
    engine = await InThread.started(*tiny, Placement("cpu", workers=workers), admission, **other)
    try:
        async with asyncio.timeout(PATIENCE_S):
            yield engine
    finally:
        await engine.close()


def options(max_tokens=30, **other):
    return Options(max_tokens, frozenset(), **other)


async def all_of(generation):
    return [token.id async for tokens in generation for token in tokens]


async def answer(engine, prompt=PROMPT, chosen=None):
    async with engine.generate(prompt, chosen or options()) as generation:
        return await all_of(generation), generation.finish


async def test_a_generation_brings_every_token_and_why_it_ended(greeter):
    """The token that ends it is not part of it."""
    prompt = [5, greeter.vocabulary.index("Ċ")]
    async with running(greeter) as engine:
        ids, finish = await answer(engine, prompt, Options(100, frozenset({greeter.end})))
        assert (engine.device, engine.compute_type, engine.running) == ("cpu", "int8_float32", True)

    assert ([greeter.vocabulary[number] for number in ids], finish) == (["Hello", " there", "!"], "stop")


async def test_without_a_temperature_the_answer_is_always_the_same(babbler):
    """So it is with a top_p that leaves one token, and with values next to nothing."""
    greedy = [{}, {"temperature": 1e-40}, {"temperature": 1.0, "top_p": 0.0}, {"temperature": 1.0, "top_p": 1e-45}]
    async with running(babbler) as engine:
        answers = [await answer(engine, PROMPT, options(40, **how)) for how in greedy]

    assert [answers[0]] * 4 == answers


async def test_with_a_temperature_the_answer_varies(babbler):
    """With and without top_p and top_k."""
    hot = [
        {},
        {"temperature": 2.0},
        {"temperature": 2.0},
        {"temperature": 2.0, "top_p": 0.99},
        {"temperature": 2.0, "top_k": 50},
    ]
    async with running(babbler) as engine:
        answers = [tuple((await answer(engine, PROMPT, options(60, **how)))[0]) for how in hot]

    assert len(set(answers)) == len(hot)


async def test_everybody_gets_his_own_answer(babbler):
    """Twenty at once on two workers get what each would get alone."""
    prompts = [[5, 6, *range(20, 20 + length)] for length in range(20)]
    async with running(babbler, workers=2, max_waiting=20) as engine:
        alone = [await answer(engine, prompt) for prompt in prompts]
        together = await asyncio.gather(*(answer(engine, prompt) for prompt in prompts))

    assert alone == together
    assert len({tuple(ids) for ids, _ in alone}) == 20


async def test_leaving_frees_the_worker(clock):
    """The only worker is busy with an answer without end; once that is left, the next one gets it."""
    async with running(clock) as engine:
        async with engine.generate(PROMPT, options(FOREVER)) as generation:
            assert await anext(generation)
        _, finish = await answer(engine, PROMPT, options(5))

    assert finish == "length"


async def test_cancelling_the_caller_frees_the_worker(clock):
    """A caller that is gone is a cancelled task."""
    async with running(clock) as engine:
        begun = asyncio.Event()

        async def call():
            async with engine.generate(PROMPT, options(FOREVER)) as generation:
                async for _ in generation:
                    begun.set()

        task = asyncio.create_task(call())
        await begun.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        _, finish = await answer(engine, PROMPT, options(5))

    assert finish == "length"


async def test_too_many_are_turned_away(clock):
    """At once, with a time to come back; a place is free again as soon as somebody who waits has left."""
    async with running(clock, max_waiting=1) as engine, engine.generate(PROMPT, options(FOREVER)) as first:
        await anext(first)
        async with engine.generate(PROMPT, options(FOREVER)):
            with pytest.raises(BackendError, match="1 calls wait for this model already; the limit is 1") as refused:
                await answer(engine)
        async with engine.generate(PROMPT, options(FOREVER)):
            pass

    assert (refused.value.status, refused.value.code) == (429, "local_model_busy")
    assert int(refused.value.headers["Retry-After"]) >= 1


async def test_two_hundred_callers_on_a_queue_of_32(babbler):
    """Each gets a whole answer or is turned away at once; none of them waits in vain."""
    async with running(babbler, workers=2, max_waiting=32) as engine:
        answers = await asyncio.gather(*(answer(engine) for _ in range(200)), return_exceptions=True)
        again = await answer(engine)

    served = [each for each in answers if not isinstance(each, BaseException)]
    refused = [each for each in answers if isinstance(each, BackendError) and each.status == 429]
    assert (len(served), len(refused)) == (34, 166)
    assert served == [again] * 34


async def test_a_fault_of_the_library_is_one_of_the_backend(babbler):
    """The caller learns that it broke down, the next one is served."""
    async with running(babbler) as engine:
        with pytest.raises(BackendError, match="The local model broke down") as failed:
            await answer(engine, PROMPT, options(temperature=1.0, top_p=7.0))
        _, finish = await answer(engine)

    assert (failed.value.status, failed.value.code, finish) == (502, "local_model_failed", "length")


async def test_what_was_not_read_again_is_told(babbler):
    """Before the first token."""
    prompt = [*range(20, 120), 5, 6]
    told = options(prefix=100, prefix_key="team")
    cached = []
    async with running(babbler, kv_bytes_per_token=100, prefix_cache_bytes=10**6) as engine:
        for _ in range(3):
            async with engine.generate(prompt, told) as generation:
                await anext(generation)
                cached.append(generation.cached_tokens)

    assert cached == [0, 0, 100]


async def test_closing_ends_what_runs_and_what_waits(clock):
    """Nobody is left waiting, nobody is told that his answer was whole, and nobody new comes in."""
    async with (
        running(clock) as engine,
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

        assert not engine.running
        assert [(error.status, error.code) for error in refused] == [(503, "local_model_unavailable")] * 3


async def test_the_loop_is_free_while_a_prompt_is_read(clock):
    """Many short naps, none of them much too long."""
    async with running(clock) as engine:
        asked = asyncio.ensure_future(answer(engine, [5 + number % 200 for number in range(3000)], options(2)))
        naps = 0
        while not asked.done():
            await asyncio.sleep(0.001)
            naps += 1
        await asked

    assert naps > 5


def test_the_process_ends_cleanly_after_closing(babbler):
    """The library aborts at the process's end when a generator is still there."""
    program = f"""
import asyncio, json
from pathlib import Path
from backends.local.scheduling.admission import Admission
from backends.local.host.device import Placement
from backends.local.decoding.job import Options
from backends.local.host.thread_engine import InThread

path = Path({str(babbler.path)!r})
vocabulary = json.loads((path / "vocabulary.json").read_text())

async def ask(engine):
    async with engine.generate([5, 6, 7], Options(20, frozenset())) as generation:
        async for _ in generation:
            pass

async def main():
    engine = await InThread.started(path, vocabulary, Placement("cpu", workers=4), Admission(100, 4, None, 60))
    await asyncio.gather(*(ask(engine) for _ in range(20)))
    async with engine.generate([5, 6, 7], Options(10**6, frozenset())) as generation:
        await anext(generation)
        await engine.close()

asyncio.run(main())
"""
    for _ in range(3):
        ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)

        assert (ended.returncode, ended.stderr) == (0, "")
