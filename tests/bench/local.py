"""`python -m tests.bench.local`: what the scheduler makes of a model, against the library itself, measured in one run.

A model of 100 million random weights; the library's own split over the workers is the yardstick. Both take turns in every
round, and the table tells medians of their ratios, so that what else happens on the machine hits both.
"""

import argparse
import asyncio
import itertools
import os
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from backends.local.engine.admission import Admission
from backends.local.engine.device import Placement
from backends.local.engine.job import Options
from backends.local.engine.thread import InThread
from tests.bench.machine import described
from tests.bench.models import M100, write_random

EQUAL = (64,) * 16
MIXED = tuple(range(40, 88, 3))
TOKENS = 48
LONG = 1500
Prompts = Sequence[Sequence[int]]


@dataclass(slots=True)
class Bench:
    """One engine, and the generator that it schedules for."""

    engine: InThread
    vocabulary: Sequence[str]
    numbers: itertools.count

    def prompts(self, lengths: Sequence[int]) -> list[list[int]]:
        """Different each time, so that nothing is kept of them."""
        first = next(self.numbers)
        return [
            [100 + (first * 31 + row * 7 + at) % 30_000 for at in range(length)] for row, length in enumerate(lengths)
        ]

    @property
    def generator(self):
        return self.engine._scheduler._generator

    def raw(self, prompts: Prompts, tokens: int = TOKENS, workers: int = 2) -> tuple[float, float]:
        """Seconds, and those until the first token, of the library's best: sorted, cut in two, a batch per worker."""
        firsts: list[float] = []
        ordered = sorted(prompts, key=len)
        size = -(-len(ordered) // workers)

        def run(part: Prompts) -> None:
            def callback(result) -> bool:
                firsts.append(time.perf_counter())
                return False

            self.generator.generate_batch(
                [[self.vocabulary[number] for number in prompt] for prompt in part], max_length=tokens, end_token=[],
                include_prompt_in_result=False, callback=callback,
            )  # fmt: skip

        began = time.perf_counter()
        threads = [threading.Thread(target=run, args=(ordered[at : at + size],)) for at in range(0, len(ordered), size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - began, min(firsts) - began

    async def ours(self, prompts: Prompts, options: Options) -> tuple[float, float]:
        """The same by the scheduler, every token brought to whoever asked for it."""
        firsts: list[float] = []

        async def ask(prompt: Sequence[int]) -> None:
            async with self.engine.generate(prompt, options) as generation:
                firsts.extend([time.perf_counter() async for _ in generation])

        began = time.perf_counter()
        await asyncio.gather(*map(ask, prompts))
        return time.perf_counter() - began, min(firsts) - began


def plain(tokens: int = TOKENS, **other) -> Options:
    return Options(tokens, frozenset(), **other)


async def throughput(bench: Bench, lengths: Sequence[int]) -> tuple[float, float]:
    """Tokens per second: the library's, ours."""
    raw_s, _ = await asyncio.to_thread(bench.raw, bench.prompts(lengths))
    own_s, _ = await bench.ours(bench.prompts(lengths), plain())
    return len(lengths) * TOKENS / raw_s, len(lengths) * TOKENS / own_s


async def first_token(bench: Bench) -> tuple[float, float]:
    """Milliseconds until the first token of one prompt alone."""
    _, raw_s = await asyncio.to_thread(bench.raw, bench.prompts([64]), 2)
    _, own_s = await bench.ours(bench.prompts([64]), plain(2))
    return raw_s * 1000, own_s * 1000


async def kept_prefix(bench: Bench) -> tuple[float, float]:
    """Milliseconds until the first token behind a beginning of 1,000: read for the first time, kept."""
    (prompt,) = bench.prompts([1020])
    told = plain(2, prefix=1000, prefix_key="bench")
    times = [(await bench.ours([[*prompt[:1000], *prompt[at : at + 20]]], told))[1] for at in range(3)]
    return times[0] * 1000, times[2] * 1000


async def lag(bench: Bench) -> tuple[float, float]:
    """Milliseconds that the loop is late at worst in 99 of 100 cases: with nothing to do, while a prompt is read."""

    async def late(until: Awaitable[object]) -> float:
        work, late_s = asyncio.ensure_future(until), []
        while not work.done():
            began = time.perf_counter()
            await asyncio.sleep(0.001)
            late_s.append(time.perf_counter() - began - 0.001)
        return sorted(late_s)[int(0.99 * (len(late_s) - 1))] * 1000

    idle = await late(asyncio.sleep(0.5))
    return idle, await late(bench.ours(bench.prompts([LONG]), plain(2)))


ROWS: dict[str, tuple[str, Callable[[Bench], Awaitable[tuple[float, float]]]]] = {
    "equal": ("16 prompts of 64 tokens, 48 more each: tokens per second", lambda bench: throughput(bench, EQUAL)),
    "mixed": ("16 prompts of 40 to 85 tokens: tokens per second", lambda bench: throughput(bench, MIXED)),
    "first": ("first token of one prompt of 64: ms", first_token),
    "prefix": ("first token behind 1,000 tokens, read and kept: ms", kept_prefix),
    "lag": (f"the loop late, p99, idle and while {LONG:,} tokens are read: ms", lag),
}


@asynccontextmanager
async def started(folder: Path, workers: int) -> AsyncIterator[Bench]:
    vocabulary = write_random(folder, M100)
    engine = await InThread.started(
        folder, vocabulary, Placement("cpu", workers=workers), Admission(64, workers, None, 600),
        kv_bytes_per_token=M100.kv_bytes_per_token, prefix_cache_bytes=2**30,
    )  # fmt: skip
    try:
        yield Bench(engine, vocabulary, itertools.count(1))
    finally:
        await engine.close()


async def measured(names: Sequence[str], rounds: int, workers: int) -> None:
    with TemporaryDirectory(prefix="headgate-bench-") as folder:
        async with started(Path(folder), workers) as bench:
            print(f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {described()}, load {os.getloadavg()[0]:.1f}")  # noqa: T201
            print(f"Costs: {bench.engine._scheduler._costs}\n")  # noqa: T201
            print("| work | library | scheduler | ratio |\n|---|---:|---:|---:|")  # noqa: T201
            for name in names:
                told, work = ROWS[name]
                pairs = [await work(bench) for _ in range(rounds)]
                first, second = (median(pair[side] for pair in pairs) for side in (0, 1))
                ratio = median(second / first for first, second in pairs)
                print(f"| {told} | {first:,.1f} | {second:,.1f} | **{ratio:.2f}** |", flush=True)  # noqa: T201


def main() -> None:
    options = argparse.ArgumentParser(
        prog="python -m tests.bench.local", description="The scheduler against the library."
    )
    options.add_argument("--rounds", type=int, default=5, help="how often each is measured (default 5)")
    options.add_argument("--workers", type=int, default=2, help="batches at once (default 2)")
    options.add_argument("--only", action="append", choices=list(ROWS), help="one row; may be given again")
    chosen = options.parse_args()
    asyncio.run(measured(chosen.only or list(ROWS), chosen.rounds, chosen.workers))


if __name__ == "__main__":
    main()
