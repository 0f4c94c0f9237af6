"""The rows of the benchmark of local models: each is one line of ROWS and one function that measures a round.

A measuring function returns the values of two sides: the baseline, and the side that is compared with it.
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
from tests.bench.load import UnexpectedAnswer
from tests.bench.local_caller import LocalCaller, TimedAnswer, measure_health_s
from tests.bench.local_headgate import process_tree_cpu_s
from tests.bench.local_library import LibraryProcess
from tests.bench.models import write_text
from tests.bench.processes import ServerProcess
from tests.models import END

Values = tuple[float, ...]
CALLERS, TOKENS = 16, 48
EQUAL = (64,) * CALLERS
MIXED = tuple(range(40, 88, 3))
LONG, INSTRUCTIONS = 1500, 1000
MIN_OUTPUT_TOKENS = 16  # the smallest max_output_tokens that a request may have
IDLE_S = 1.0
REPEATS = 5  # how often short work is measured in a round
# The output of the model "saying": JSON that follows its schema, most of which a grammar would also allow otherwise.
WORDS = [f"w{number:03} " for number in range(TOKENS - 2)]
STORY_STEPS = [["\n"], ['{"story": "'], *([word] for word in WORDS), ['"}'], [END]]
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
class LocalBench:
    """The running processes that the rows measure."""

    library: LibraryProcess
    headgate: ServerProcess
    callers: Sequence[LocalCaller]
    random: Model
    numbers: itertools.count = field(default_factory=lambda: itertools.count(1))

    def new_prompts(self, lengths: Sequence[int]) -> tuple[list[str], list[list[int]]]:
        """Return inputs that were not used before, and the token ids of their prompts, with these lengths."""
        texts = [write_text(length - 2, next(self.numbers)) for length in lengths]  # the template adds two
        ids = [self.random.prompt([{"role": "user", "content": each}], []) for each in texts]
        assert [len(each) for each in ids] == list(lengths)
        return texts, ids


@dataclass(frozen=True, slots=True)
class LocalRow:
    """One row. Its result is the first value of the last side, alone or compared with the baseline's."""

    name: str
    label: str
    sides: tuple[str, str]
    unit: str  # how the values of a side are formatted
    result: Literal["rate", "ratio", "difference", "alone"]
    aim: str
    measure: Callable[[LocalBench], Awaitable[tuple[Values, Values]]]


async def throughput(
    bench: LocalBench, lengths: Sequence[int], *, turns: int = 2, stream: bool = True
) -> tuple[Values, Values]:
    """Tokens per second and processor seconds per 1,000 tokens, of callers that send the next request at once.

    Each caller gets one short answer before the measurement. With `turns=0` each sends one request, all at once.
    """
    texts, ids = bench.new_prompts(lengths)
    tokens = len(lengths) * TOKENS * max(1, turns)
    cpu_before, raw_s = process_tree_cpu_s(bench.library.pid), 0.0
    for _ in range(max(1, turns)):
        raw_s += await bench.library.generate_s(ids, TOKENS)
    raw_cpu_s = process_tree_cpu_s(bench.library.pid) - cpu_before
    if turns:
        await _request_all(bench, texts, MIN_OUTPUT_TOKENS, 1, stream=stream)
    cpu_before, started = process_tree_cpu_s(bench.headgate.pid), time.perf_counter()
    await _request_all(bench, texts, TOKENS, max(1, turns), stream=stream)
    served_s = time.perf_counter() - started
    served_cpu_s = process_tree_cpu_s(bench.headgate.pid) - cpu_before
    return (tokens / raw_s, 1000 * raw_cpu_s / tokens), (tokens / served_s, 1000 * served_cpu_s / tokens)


async def first_token(bench: LocalBench) -> tuple[Values, Values]:
    """Milliseconds to read one prompt and generate a token, and to the first text of the same request to Headgate."""
    raw_ms, served_ms = [], []
    for _ in range(REPEATS):
        texts, ids = bench.new_prompts([64])
        raw_ms.append(1000 * await bench.library.generate_s(ids, 1))
        served_ms.append(1000 * (await _request(bench.callers[0], texts[0], MIN_OUTPUT_TOKENS)).first_text_s)
    return (median(raw_ms),), (median(served_ms),)


async def kept_prefix(bench: LocalBench) -> tuple[Values, Values]:
    """Milliseconds to the first text after the same instructions: in their first request and in their third."""
    instructions, key = write_text(INSTRUCTIONS - 1, next(bench.numbers)), f"bench-{next(bench.numbers)}"
    answers = [
        await _request(
            bench.callers[0], write_text(18, number), MIN_OUTPUT_TOKENS,
            instructions=instructions, prompt_cache_key=key,
        )
        for number in range(3)
    ]  # fmt: skip
    if answers[2].cached_tokens < INSTRUCTIONS:
        raise UnexpectedAnswer(f"cached_tokens is {answers[2].cached_tokens}; the instructions have {INSTRUCTIONS}")
    return (1000 * answers[0].first_text_s,), (1000 * answers[2].first_text_s,)


async def health_latency(bench: LocalBench) -> tuple[Values, Values]:
    """Milliseconds of GET /healthz, 99th percentile and median: idle, and while a long prompt is read."""
    (given,), _ = bench.new_prompts([LONG])
    idle = await measure_health_s(bench.headgate.port, asyncio.sleep(IDLE_S))
    request = asyncio.create_task(_request(bench.callers[0], given, MIN_OUTPUT_TOKENS))
    await asyncio.sleep(0)  # lets the task send its request
    busy = await measure_health_s(bench.headgate.port, bench.callers[0].first_text)
    await request
    return _percentiles_ms(idle), _percentiles_ms(busy)


def structured(model: str, schema: Mapping[str, Any]) -> Callable[[LocalBench], Awaitable[tuple[Values, Values]]]:
    """Return a function that measures milliseconds per token of the same prompts, without a grammar and with it."""
    held: dict[str, Any] = {"text": {"format": {"type": "json_schema", "name": "bench", "schema": schema}}}
    free: dict[str, Any] = {"instructions": schema_prompt(schema)}  # the text that Headgate adds for the schema

    async def measure(bench: LocalBench) -> tuple[Values, Values]:
        sides: tuple[list[float], list[float]] = ([], [])
        for _ in range(REPEATS):
            number = next(bench.numbers) % 90 + 10
            given = f"Emma is {number} years old and lives in Boston."  # a new number each time, so nothing is cached
            answers = [await bench.callers[0].request(model, input=given, **form) for form in (free, held)]
            if answers[0].input_tokens != answers[1].input_tokens:
                raise UnexpectedAnswer(
                    f"the prompts have {answers[0].input_tokens} and {answers[1].input_tokens} tokens; "
                    "they must have the same number"
                )
            for side, answer in zip(sides, answers, strict=True):
                side.append(1000 * answer.total_s / answer.output_tokens)
        return (median(sides[0]),), (median(sides[1]),)

    return measure


async def _request_all(bench: LocalBench, texts: Sequence[str], tokens: int, turns: int, *, stream: bool) -> None:
    """Let every caller send its request `turns` times, one after the other."""

    async def take_turns(caller: LocalCaller, given: str) -> None:
        for _ in range(turns):
            await _request(caller, given, tokens, stream=stream)

    await asyncio.gather(*(take_turns(caller, given) for caller, given in zip(bench.callers, texts, strict=True)))


async def _request(caller: LocalCaller, given: str, tokens: int, **fields: object) -> TimedAnswer:
    """Request an answer of the random model, which never ends by itself. Raises UnexpectedAnswer if it does."""
    answer = await caller.request("random", input=given, max_output_tokens=tokens, **fields)
    if answer.output_tokens != tokens:
        raise UnexpectedAnswer(f"the answer has {answer.output_tokens} tokens; {tokens} were requested")
    return answer


def _percentiles_ms(sorted_s: Sequence[float]) -> Values:
    return tuple(1000 * sorted_s[int(share * (len(sorted_s) - 1))] for share in (0.99, 0.5))


RAW, MS = ("raw", "served"), "{:,.1f} ms"
RATE = "{:,.0f} tokens/s ({:.2f} CPU s per 1,000)"
HELD = ("free", "held to its schema")
ROWS = (
    LocalRow(
        "whole", f"{CALLERS} callers, prompts of 64 tokens, JSON answers of {TOKENS}", RAW, RATE, "rate", "≥ 0.95",
        lambda bench: throughput(bench, EQUAL, stream=False),
    ),
    LocalRow(
        "equal", "the same as streams, one token per event", RAW, RATE, "rate", "≥ 0.95",
        lambda bench: throughput(bench, EQUAL),
    ),
    LocalRow(
        "mixed", f"{CALLERS} callers, prompts of {MIXED[0]} to {MIXED[-1]} tokens, streams", RAW, RATE, "rate",
        "≥ 0.85", lambda bench: throughput(bench, MIXED),
    ),
    LocalRow(
        "herd", f"{CALLERS} prompts of 64 tokens at once to an idle Headgate, streams", RAW, RATE, "rate", "",
        lambda bench: throughput(bench, EQUAL, turns=0),
    ),
    LocalRow("first", "first token of one prompt of 64", RAW, MS, "difference", "≤ +2 ms", first_token),
    LocalRow(
        "prefix", f"first token after {INSTRUCTIONS:,} tokens of instructions", ("read", "cached"), MS, "ratio", "",
        kept_prefix,
    ),
    LocalRow(
        "lag", "GET /healthz every 5 ms, p99 (and p50)", ("idle", f"while {LONG:,} tokens are read"),
        "{:,.2f} ms ({:,.2f})", "alone", "< 5 ms", health_latency,
    ),
    LocalRow(
        "structured", "JSON of a model of 100 million weights, per token", HELD, "{:,.2f} ms", "ratio", "≤ 1.2",
        structured("saying", STORY),
    ),
    LocalRow(
        "demo", "JSON of the demo model, per token", HELD, "{:,.2f} ms", "ratio", "≤ 1.2", structured("demo", PERSON),
    ),
)  # fmt: skip
