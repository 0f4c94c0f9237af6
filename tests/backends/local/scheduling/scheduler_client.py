"""Runs a scheduler on a real model and records what it delivers."""

import asyncio
from contextlib import asynccontextmanager
from functools import partial

from backends.local.decoding.grammar_matcher import GrammarCompiler
from backends.local.decoding.job import DecodingOptions, Job
from backends.local.host.device import Placement, load_generator
from backends.local.scheduling.costs import Costs
from backends.local.scheduling.prefix_cache import PrefixCache
from backends.local.scheduling.scheduler import Scheduler

COSTS = Costs(0.001, 0.05, 0.0001, 100, 2)
PATIENCE_S = 20
FOREVER = 10**6  # tokens


class SchedulerClient:
    """Submits jobs and records their steps."""

    def __init__(self, model, generator, workers, prefixes, grammars):
        self.vocabulary = model.vocabulary
        self.prefixes = prefixes
        self.deliveries = []
        self.tokens, self.cached, self.ends, self.messages = {}, {}, {}, {}
        self._changed = asyncio.Event()
        deliver = partial(asyncio.get_running_loop().call_soon_threadsafe, self.deliver)
        self.scheduler = Scheduler(
            generator, model.vocabulary, COSTS, workers=workers, deliver=deliver, prefixes=prefixes, grammars=grammars
        )  # fmt: skip

    def deliver(self, steps):
        self.deliveries.append(steps)
        for step in steps:
            if step.cached_tokens is not None:
                assert step.job not in self.cached
                assert not self.tokens.get(step.job)
                self.cached[step.job] = step.cached_tokens
            assert step.job not in self.ends
            self.tokens.setdefault(step.job, []).extend(token.id for token in step.tokens)
            if step.finish is not None:
                self.ends[step.job] = step.finish
                self.messages[step.job] = step.message
        self._changed.set()

    def submit(self, number, prompt, max_tokens=10, *, stop_ids=(), team="", **other):
        job = Job(number, prompt, DecodingOptions(max_tokens, frozenset(stop_ids), **other), team=team)
        self.scheduler.submit(job)
        return job

    def text(self, number):
        return "".join(self.vocabulary[token] for token in self.tokens[number])

    async def until(self, done):
        async with asyncio.timeout(PATIENCE_S):
            while not done():
                self._changed.clear()
                await self._changed.wait()

    async def wait_for_end(self, *numbers):
        await self.until(lambda: all(number in self.ends for number in numbers))

    async def wait_for_start(self, *numbers):
        await self.until(lambda: all(self.tokens.get(number) for number in numbers))


@asynccontextmanager
async def run_scheduler(model, workers=1, prefix_bytes=0, grammars=None, compute_type="default"):
    generator = load_generator(*model, Placement("cpu", compute_type=compute_type, workers=workers))
    client = SchedulerClient(model, generator, workers, PrefixCache(prefix_bytes, 100), grammars)
    try:
        yield client
    finally:
        async with asyncio.timeout(PATIENCE_S):
            await client.scheduler.close()


def compile_grammars(model):
    return GrammarCompiler((model.path / "tokenizer.json").read_text(), len(model.vocabulary), {model.end})


def prompt(number, length=10):
    return [20 + number % 100, *range(30, 30 + length - 1)]
