"""What is measured of a local model: each row is one line of ROWS, and one function that does its work in a round.

A work gives what it took of both lanes: the yardstick's figures, and those that are judged by them.
"""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal

from backends.local.grammar import schema_prompt
from backends.local.model import Model
from tests.bench.load import WrongAnswer
from tests.bench.local_caller import Caller, Heard, health_s
from tests.bench.local_gate import family_s
from tests.bench.local_raw import Raw
from tests.bench.models import text
from tests.bench.processes import Server
from tests.models import END

Taken = tuple[float, ...]
CALLERS, TOKENS = 16, 48
EQUAL = (64,) * CALLERS
MIXED = tuple(range(40, 88, 3))
LONG, KEPT = 1500, 1000
FEWEST = 16  # tokens that a request may ask for
IDLE_S = 1.0
AT_ONCE = 5  # how often what is over soon is measured in a round
# What the model says that follows its schema: JSON, and most of it is its own choice.
WORDS = [f"w{number:03} " for number in range(TOKENS - 2)]
PERSON_STEPS = [["\n"], ['{"story": "'], *([word] for word in WORDS), ['"}'], [END]]
STORY = {
    "type": "object",
    "properties": {"story": {"type": "string"}},
    "required": ["story"],
    "additionalProperties": False,
}
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "city": {"type": "string"}},
    "required": ["name", "age", "city"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class Bench:
    """What there is to be asked."""

    library: Raw
    gate: Server
    callers: Sequence[Caller]
    random: Model
    numbers: itertools.count = field(default_factory=lambda: itertools.count(1))

    def prompts(self, lengths: Sequence[int]) -> tuple[list[str], list[list[int]]]:
        """Inputs that never came before, and the tokens of their prompts: so many each."""
        texts = [text(length - 2, next(self.numbers)) for length in lengths]  # the template adds two
        ids = [self.random.prompt([{"role": "user", "content": each}], []) for each in texts]
        assert [len(each) for each in ids] == list(lengths)
        return texts, ids


@dataclass(frozen=True, slots=True)
class Row:
    """One line of work. It is judged by the last lane's first figure, against the yardstick's or alone."""

    name: str
    told: str
    lanes: tuple[str, str]
    unit: str  # how the figures of a lane are written
    judged: Literal["rate", "ratio", "difference", "alone"]
    aim: str
    work: Callable[[Bench], Awaitable[tuple[Taken, Taken]]]


async def throughput(
    bench: Bench, lengths: Sequence[int], *, turns: int = 2, stream: bool = True
) -> tuple[Taken, Taken]:
    """Tokens per second, and processor seconds for 1,000 of them, of callers who ask again as soon as they are answered.

    Before it is measured each has had one short answer. With no `turns` they ask once, all at the same moment.
    """
    texts, ids = bench.prompts(lengths)
    tokens = len(lengths) * TOKENS * max(1, turns)
    used_s, raw_s = family_s(bench.library.pid), 0.0
    for _ in range(max(1, turns)):
        raw_s += await bench.library.seconds(ids, TOKENS)
    raw_cpu_s = family_s(bench.library.pid) - used_s
    if turns:
        await _all_ask(bench, texts, FEWEST, 1, stream=stream)
    used_s, began = family_s(bench.gate.pid), time.perf_counter()
    await _all_ask(bench, texts, TOKENS, max(1, turns), stream=stream)
    served_s = time.perf_counter() - began
    served_cpu_s = family_s(bench.gate.pid) - used_s
    return (tokens / raw_s, 1000 * raw_cpu_s / tokens), (tokens / served_s, 1000 * served_cpu_s / tokens)


async def first_token(bench: Bench) -> tuple[Taken, Taken]:
    """Milliseconds of a prompt alone: reading it and making one token, until the first of its text is there."""
    raw_ms, served_ms = [], []
    for _ in range(AT_ONCE):
        texts, ids = bench.prompts([64])
        raw_ms.append(1000 * await bench.library.seconds(ids, 1))
        served_ms.append(1000 * (await _ask(bench.callers[0], texts[0], FEWEST)).first_s)
    return (median(raw_ms),), (median(served_ms),)


async def kept_prefix(bench: Bench) -> tuple[Taken, Taken]:
    """Milliseconds until the first text behind the same instructions: when they come first, and for the third time."""
    instructions, key = text(KEPT - 1, next(bench.numbers)), f"bench-{next(bench.numbers)}"
    heard = [
        await _ask(bench.callers[0], text(18, number), FEWEST, instructions=instructions, prompt_cache_key=key)
        for number in range(3)
    ]
    if heard[2].cached_tokens < KEPT:
        raise WrongAnswer(f"{heard[2].cached_tokens} tokens of the instructions were kept; there are {KEPT}")
    return (1000 * heard[0].first_s,), (1000 * heard[2].first_s,)


async def lag(bench: Bench) -> tuple[Taken, Taken]:
    """Milliseconds that the gate takes to answer: those that 99 of 100 keep to, and the median."""
    (given,), _ = bench.prompts([LONG])
    idle = await health_s(bench.gate.port, asyncio.sleep(IDLE_S))
    asking = asyncio.create_task(_ask(bench.callers[0], given, FEWEST))
    await asyncio.sleep(0)  # it has asked
    busy = await health_s(bench.gate.port, bench.callers[0].first)
    await asking
    return _percentiles_ms(idle), _percentiles_ms(busy)


def structured(model: str, schema: Mapping[str, Any]) -> Callable[[Bench], Awaitable[tuple[Taken, Taken]]]:
    """Milliseconds for each token of whole answers to the same prompts, without text.format and with it."""
    held: dict[str, Any] = {"text": {"format": {"type": "json_schema", "name": "bench", "schema": schema}}}
    free: dict[str, Any] = {"instructions": schema_prompt(schema)}  # what the gate tells the model of the schema

    async def work(bench: Bench) -> tuple[Taken, Taken]:
        lanes: tuple[list[float], list[float]] = ([], [])
        for _ in range(AT_ONCE):
            number = next(bench.numbers) % 90 + 10
            given = f"Emma is {number} years old and lives in Boston."  # other each time: nothing is kept
            heard = [await bench.callers[0].ask(model, input=given, **form) for form in (free, held)]
            if heard[0].input_tokens != heard[1].input_tokens:
                raise WrongAnswer(f"prompts of {heard[0].input_tokens} and {heard[1].input_tokens} tokens")
            for lane, each in zip(lanes, heard, strict=True):
                lane.append(1000 * each.seconds / each.output_tokens)
        return (median(lanes[0]),), (median(lanes[1]),)

    return work


async def _all_ask(bench: Bench, texts: Sequence[str], tokens: int, turns: int, *, stream: bool) -> None:
    """Every caller so many times, one answer behind the other."""

    async def turn_by_turn(caller: Caller, given: str) -> None:
        for _ in range(turns):
            await _ask(caller, given, tokens, stream=stream)

    await asyncio.gather(*(turn_by_turn(caller, given) for caller, given in zip(bench.callers, texts, strict=True)))


async def _ask(caller: Caller, given: str, tokens: int, **more: object) -> Heard:
    """Of the random model, which makes as many tokens as it may. Raises WrongAnswer."""
    heard = await caller.ask("random", input=given, max_output_tokens=tokens, **more)
    if heard.output_tokens != tokens:
        raise WrongAnswer(f"{heard.output_tokens} tokens came; {tokens} were asked for")
    return heard


def _percentiles_ms(sorted_s: Sequence[float]) -> Taken:
    return tuple(1000 * sorted_s[int(share * (len(sorted_s) - 1))] for share in (0.99, 0.5))


RAW, MS = ("raw", "served"), "{:,.1f} ms"
RATE = "{:,.0f} tokens/s ({:.2f} CPU s per 1,000)"
HELD = ("free", "by its schema")
ROWS = (
    Row(
        "whole", f"{CALLERS} callers, 64 tokens each and {TOKENS} more, answers in one piece as the library's", RAW,
        RATE, "rate", "≥ 0.95", lambda bench: throughput(bench, EQUAL, stream=False),
    ),
    Row(
        "equal", "the same as streams, a token at a time", RAW, RATE, "rate", "≥ 0.95",
        lambda bench: throughput(bench, EQUAL),
    ),
    Row(
        "mixed", f"{CALLERS} callers, {MIXED[0]} to {MIXED[-1]} tokens", RAW, RATE, "rate", "≥ 0.85",
        lambda bench: throughput(bench, MIXED),
    ),
    Row(
        "herd", f"{CALLERS} prompts of 64 tokens, all at once to an idle gate", RAW, RATE, "rate", "",
        lambda bench: throughput(bench, EQUAL, turns=0),
    ),
    Row("first", "first token of one prompt of 64", RAW, MS, "difference", "≤ +2 ms", first_token),
    Row("prefix", f"first token behind instructions of {KEPT:,}", ("read", "kept"), MS, "ratio", "", kept_prefix),
    Row(
        "lag", "GET /healthz every 5 ms, p99 (and p50)", ("idle", f"while {LONG:,} tokens are read"),
        "{:,.2f} ms ({:,.2f})", "alone", "< 5 ms", lag,
    ),
    Row(
        "structured", "JSON of a model of 100 million, a token", HELD, "{:,.2f} ms", "ratio", "≤ 1.2",
        structured("saying", STORY),
    ),
    Row(
        "demo", "JSON of the demo model, a token", HELD, "{:,.2f} ms", "ratio", "≤ 1.2", structured("demo", PERSON),
    ),
)  # fmt: skip
