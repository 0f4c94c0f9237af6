"""The engine: ids in, ids out."""

import asyncio
import subprocess
import sys
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest

from backends.local.device import Placement
from backends.local.engine import Engine, Generation, Options
from backends.local.model import read_model
from proxy.wire.errors import BackendError
from tests.models import write_model

PATIENCE_S = 20


@asynccontextmanager
async def running(model, *, workers=1, max_waiting=8):
    engine = await Engine.started(model, Placement("cpu", 0, "default", workers, 1), max_waiting=max_waiting)
    try:
        async with asyncio.timeout(PATIENCE_S):
            yield engine
    finally:
        await engine.close()


def prompt_for(model, text="Hi"):
    return model.prompt([{"role": "user", "content": text}], [])


def options(model, max_tokens=100, **other):
    return Options(max_tokens, model.stop_ids, **other)


async def all_of(generation):
    return [number async for ids in generation for number in ids]


async def answer(engine, prompt, chosen):
    async with engine.generate(prompt, chosen) as generation:
        return await all_of(generation), generation.finish


@pytest.fixture(scope="module")
def random_model(tmp_path_factory):
    return read_model(write_model(tmp_path_factory.mktemp("random")))


@pytest.fixture(scope="module")
def endless_model(endless):
    return read_model(endless)


async def test_a_generation_brings_every_token_and_why_it_ended(model):
    """The token that ends it is not part of it."""
    async with running(model) as engine:
        ids, finish = await answer(engine, prompt_for(model), options(model))

    assert ("".join(map(model.tokens.decoder([]), ids)), finish) == ("Hello there!", "stop")


async def test_a_generation_ends_at_its_limit(model):
    """With exactly as many tokens as were allowed."""
    async with running(model) as engine:
        results = [await answer(engine, prompt_for(model), options(model, count)) for count in (1, 2, 3, 4)]

    assert [(len(ids), end) for ids, end in results] == [(1, "length"), (2, "length"), (3, "length"), (3, "stop")]


async def test_any_stop_token_ends_it(model):
    """Also one that the model says in the middle."""
    async with running(model) as engine:
        prompt = prompt_for(model)
        ids, _ = await answer(engine, prompt, options(model))

        assert (ids[:1], "stop") == await answer(engine, prompt, Options(100, frozenset({ids[1]})))


async def test_without_a_temperature_the_answer_is_always_the_same(random_model):
    """So it is with a top_p that leaves one token, and with values next to nothing."""
    greedy = [{}, {"temperature": 1e-40}, {"temperature": 1, "top_p": 0}, {"temperature": 1, "top_p": 1e-45}]
    async with running(random_model) as engine:
        prompt = prompt_for(random_model)
        answers = [await answer(engine, prompt, options(random_model, 40, **how)) for how in greedy]

    assert [answers[0]] * 4 == answers


async def test_with_a_temperature_the_answer_varies(random_model):
    """With and without top_p."""
    hot = [{}, {"temperature": 2}, {"temperature": 2}, {"temperature": 2, "top_p": 0.99}]
    async with running(random_model) as engine:
        prompt = prompt_for(random_model)
        answers = [tuple((await answer(engine, prompt, options(random_model, 60, **how)))[0]) for how in hot]

    assert len(set(answers)) == 4


async def test_everybody_gets_his_own_answer(random_model):
    """Twenty at once on two workers get what each would get alone."""
    prompts = [prompt_for(random_model, "x" * length) for length in range(20)]
    chosen = options(random_model, 30)
    async with running(random_model, workers=2, max_waiting=20) as engine:
        alone = [await answer(engine, prompt, chosen) for prompt in prompts]
        together = await asyncio.gather(*(answer(engine, prompt, chosen) for prompt in prompts))

    assert alone == together
    assert len({tuple(ids) for ids, _ in alone}) == 20


async def test_leaving_frees_the_worker(endless_model):
    """The only worker is busy with an answer without end; once that is left, the next one gets it."""
    prompt = prompt_for(endless_model)
    async with running(endless_model) as engine:
        async with engine.generate(prompt, options(endless_model, 10**6)) as generation:
            assert await anext(generation)
        _, finish = await answer(engine, prompt, options(endless_model, 5))

    assert finish == "length"


async def test_cancelling_the_caller_frees_the_worker(endless_model):
    """A caller that is gone is a cancelled task."""
    prompt = prompt_for(endless_model)
    async with running(endless_model) as engine:
        begun = asyncio.Event()

        async def call():
            async with engine.generate(prompt, options(endless_model, 10**6)) as generation:
                async for _ in generation:
                    begun.set()

        task = asyncio.create_task(call())
        await begun.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        _, finish = await answer(engine, prompt, options(endless_model, 5))

    assert finish == "length"


async def test_too_many_are_turned_away(endless_model):
    """At once, with a time to come back; a place is free again as soon as somebody who waits has left."""
    prompt, forever = prompt_for(endless_model), options(endless_model, 10**6)
    async with running(endless_model, max_waiting=1) as engine, engine.generate(prompt, forever) as first:
        await anext(first)
        async with engine.generate(prompt, forever):
            with pytest.raises(BackendError, match="1 calls wait for this model already; the limit is 1") as refused:
                await answer(engine, prompt, forever)
        await asyncio.sleep(0)
        async with engine.generate(prompt, forever):
            pass

    assert (refused.value.status, refused.value.code) == (429, "local_model_busy")
    assert int(refused.value.headers["Retry-After"]) >= 1


async def test_those_who_wait_get_their_turn_in_order(endless_model):
    """First come, first served."""
    prompt = prompt_for(endless_model)
    served = []

    async def call(number):
        await answer(engine, prompt, options(endless_model, 3))
        served.append(number)

    async with running(endless_model) as engine:
        async with engine.generate(prompt, options(endless_model, 10**6)) as first:
            await anext(first)
            tasks = [asyncio.create_task(call(number)) for number in range(5)]
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)

    assert served == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("prompt", [[], [1], [1, -1], [1, 10**6]])
async def test_a_prompt_that_would_crash_the_library_is_refused(model, prompt):
    async with running(model) as engine:
        with pytest.raises(ValueError, match="at least two tokens, all of the model's vocabulary"):
            await answer(engine, prompt, options(model))


async def test_a_fault_of_the_library_is_one_of_the_backend(model):
    """The caller learns that it broke down, the next one is served."""
    async with running(model) as engine:
        with pytest.raises(BackendError, match="The local model broke down") as failed:
            await answer(engine, prompt_for(model), options(model, temperature=1, top_p=7))
        _, finish = await answer(engine, prompt_for(model), options(model))

    assert (failed.value.status, failed.value.code, finish) == (502, "local_model_failed", "stop")


async def test_closing_ends_what_runs_and_what_waits(endless_model):
    """Nobody is left waiting, nobody is told that his answer was whole, and nobody new comes in."""
    prompt, forever = prompt_for(endless_model), options(endless_model, 10**6)
    async with (
        running(endless_model) as engine,
        engine.generate(prompt, forever) as first,
        engine.generate(prompt, forever) as second,
    ):
        await anext(first)
        await engine.close()
        refused = []
        for generation in (first, second):
            with pytest.raises(BackendError) as error:
                await all_of(generation)
            refused.append(error.value)
        with pytest.raises(BackendError) as error:
            await answer(engine, prompt, forever)
        refused.append(error.value)

        assert not engine.running
        assert [(error.status, error.code) for error in refused] == [(503, "local_model_unavailable")] * 3


async def test_tokens_that_came_since_the_last_look_come_together():
    """One wake-up for all of them."""
    generation = Generation(frozenset())
    for number in range(3):
        generation.step(SimpleNamespace(token_id=number, is_last=False))

    assert await anext(generation) == [0, 1, 2]


async def test_an_odd_step_ends_the_generation_and_no_more():
    """An exception in the library's thread would take the process down."""
    assert Generation(frozenset()).step(None) is True


async def test_a_step_after_leaving_ends_the_generation():
    """The step that is being made when the caller leaves is the last one."""
    generation = Generation(frozenset())
    generation.cancelled = True

    assert generation.step(SimpleNamespace(token_id=1, is_last=False)) is True


def test_the_process_ends_cleanly_after_closing(folder):
    """The library aborts at the process's end when a generator is still there."""
    program = f"""
import asyncio
from pathlib import Path
from backends.local import Local
from proxy.wire.call import Call, Caller

local = Local(name="local", path=Path({str(folder)!r}), workers=4)

async def main():
    await local.start()
    for _ in range(20):
        async with local.respond(Call(Caller("a", "a"), {{"model": "m", "input": "Hi"}}, {{}})) as reply:
            async for _ in reply.batches:
                pass
    await local.close()

asyncio.run(main())
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)

    assert (ended.returncode, ended.stderr) == (0, "")
