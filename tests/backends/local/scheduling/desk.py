"""A scheduler in front of a real model, and all that it tells."""

import asyncio
from contextlib import asynccontextmanager

from backends.local.decoding.grammar_matcher import Grammars
from backends.local.decoding.job import Job, Options
from backends.local.host.device import Placement, place
from backends.local.scheduling.costs import Costs
from backends.local.scheduling.prefix_cache import Prefixes
from backends.local.scheduling.scheduler import Scheduler

COSTS = Costs(0.001, 0.05, 0.0001, 100, 2)
PATIENCE_S = 20
FOREVER = 10**6  # tokens


class Desk:
    """A scheduler, and all that it delivered."""

    def __init__(self, tiny, generator, workers, prefixes, grammars):
        self.vocabulary = tiny.vocabulary
        self.prefixes = prefixes
        self.deliveries = []
        self.tokens, self.cached, self.ends, self.messages = {}, {}, {}, {}
        self._news = asyncio.Event()
        self.scheduler = Scheduler(
            generator, tiny.vocabulary, COSTS, workers=workers, deliver=self.deliver, prefixes=prefixes,
            grammars=grammars,
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
        self._news.set()

    def submit(self, number, prompt, max_tokens=10, *, stop_ids=(), **other):
        job = Job(number, prompt, Options(max_tokens, frozenset(stop_ids), **other))
        self.scheduler.submit(job)
        return job

    def said(self, number):
        return "".join(self.vocabulary[token] for token in self.tokens[number])

    async def until(self, done):
        async with asyncio.timeout(PATIENCE_S):
            while not done():
                self._news.clear()
                await self._news.wait()

    async def ended(self, *numbers):
        await self.until(lambda: all(number in self.ends for number in numbers))

    async def begun(self, *numbers):
        await self.until(lambda: all(self.tokens.get(number) for number in numbers))


@asynccontextmanager
async def working(tiny, workers=1, prefix_bytes=0, grammars=None, compute_type="default"):
    generator = place(*tiny, Placement("cpu", compute_type=compute_type, workers=workers))
    desk = Desk(tiny, generator, workers, Prefixes(prefix_bytes, 100), grammars)
    try:
        yield desk
    finally:
        async with asyncio.timeout(PATIENCE_S):
            await desk.scheduler.close()


def grammars_of(tiny):
    return Grammars((tiny.path / "tokenizer.json").read_text(), len(tiny.vocabulary), {tiny.end})


def prompt(number, length=10):
    return [20 + number % 100, *range(30, 30 + length - 1)]
