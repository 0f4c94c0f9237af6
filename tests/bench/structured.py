"""`python -m tests.bench.structured`: the cost of holding an answer to a grammar, measured in one run.

Every row runs with its grammar and without it, in turns; the table shows medians per token, also of the ratios. Prompt
prefixes that the library caches are read before the measurement.

m100 is a model of 100 million weights that generates w000, w001, w002 and so on, each one token. Its grammars allow two
words at every place; at some places the word that the model would generate is not one of them.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from tokenizers import Tokenizer

from backends.local.decoding.batch import run_batch
from backends.local.decoding.constrained import run_constrained
from backends.local.decoding.grammar_matcher import GrammarCompiler as Grammars
from backends.local.decoding.job import DecodingOptions as Options
from backends.local.decoding.job import Job
from backends.local.grammar import json_schema_grammar, schema_prompt
from backends.local.host.device import Placement
from backends.local.host.device import load_generator as place
from backends.local.model import read_model
from tests.bench.machine import describe_machine
from tests.bench.models import write_saying
from tests.models import END

DEMO = Path("backends/demo")
WORDS = 48
MISTAKES = {0: "follows", 8: "wrong at every 8th", 2: "wrong at every 2nd", 1: "wrong at each"}
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "city": {"type": "string"}},
    "required": ["name", "age", "city"],
    "additionalProperties": False,
}
ENUMS = {
    "type": "object",
    "properties": {f"key {n}": {"enum": [f"w{n:03}w{n + 100:03}", f"x{n:03}"]} for n in range(WORDS // 4)},
    "required": [f"key {n}" for n in range(WORDS // 4)],
    "additionalProperties": False,
}


class CountingGenerator:
    """Passes calls to the library's generator and counts them."""

    def __init__(self, generator: Any) -> None:
        self.generator, self.calls, self.device = generator, 0, generator.device

    def generate_batch(self, *args, **options):
        self.calls += 1
        return self.generator.generate_batch(*args, **options)


@dataclass(slots=True)
class LoadedModel:
    generator: CountingGenerator
    vocabulary: Sequence[str]
    grammars: Grammars
    stop_ids: frozenset[int]

    def run(self, prompt: Sequence[int], kept: int, tokens: int, grammar: str) -> tuple[float, int]:
        """Return the seconds per token and the number of tokens."""
        job = Job(1, prompt, Options(tokens, self.stop_ids, grammar=grammar))
        tokens_made, ends = [], []
        callbacks = (
            (lambda _, token: tokens_made.append(token.id)),
            (lambda _, finish, message: ends.append((finish, message))),
        )
        started = time.perf_counter()
        if grammar:
            run_constrained(self.generator, self.vocabulary, self.grammars, job, prompt[:kept], *callbacks)
        else:
            run_batch(self.generator, self.vocabulary, [job], prompt[:kept], *callbacks)
        seconds = time.perf_counter() - started
        assert ends[0][0] != "failed", ends
        return seconds / max(1, len(tokens_made)), len(tokens_made)


def write_counting(folder: Path) -> None:
    """Write m100: "go" is followed by w000, and each word of a number by the w of the next number."""
    write_saying(folder, [["go"], *([f"{letter}{number:03}" for letter in "wxy"] for number in range(WORDS))])


def grammar_wrong_at_every(nth: int) -> str:
    """Return a grammar of 48 words that forbids the model's own word at every nth place; 0: nowhere."""
    letters = ["xy" if nth and number % nth == nth - 1 else "wx" for number in range(WORDS)]
    return "start: " + " ".join(
        f'("{one}{number:03}" | "{other}{number:03}")' for number, (one, other) in enumerate(letters)
    )


@contextmanager
def load(folder: Path) -> Iterator[LoadedModel]:
    vocabulary = json.loads((folder / "vocabulary.json").read_text())
    tokenizer = (folder / "tokenizer.json").read_text(encoding="utf-8")
    stop_ids = frozenset({vocabulary.index(END)})
    generator = CountingGenerator(place(folder, vocabulary, Placement("cpu", workers=1)))
    yield LoadedModel(generator, vocabulary, Grammars(tokenizer, len(vocabulary), stop_ids), stop_ids)
    del generator.generator  # the interpreter may abort if it still exists at exit


def measure_row(label: str, model: LoadedModel, prompt: Sequence[int], kept: int, grammar: str, rounds: int) -> None:
    """Measure and print one row of the table."""
    pairs, tokens = [], WORDS
    for _ in range(rounds + 1):  # the first round warms up
        free_s, _ = model.run(prompt, kept, tokens, "")
        before = model.generator.calls
        held_s, tokens = model.run(prompt, kept, 4 * WORDS, grammar)
        pairs.append((free_s, held_s))
    calls = model.generator.calls - before
    free_s, held_s = (median(pair[side] for pair in pairs[1:]) for side in (0, 1))
    ratio = median(held / free for free, held in pairs[1:])
    cells = (label, f"{tokens}", f"{calls}", f"{free_s * 1000:.2f}", f"{held_s * 1000:.2f}", f"**{ratio:.2f}**")
    print(f"| {' | '.join(cells)} |", flush=True)  # noqa: T201


def measure_m100(rounds: int) -> None:
    with TemporaryDirectory(prefix="headgate-bench-") as name:
        write_counting(Path(name))
        with load(Path(name)) as model:
            go = Tokenizer.from_file(f"{name}/tokenizer.json").token_to_id("go")
            for length in (64, 512):
                cached = f"m100, {length} tokens cached"
                prompt = [*(5 + number * 37 % 250 for number in range(length - 1)), go]
                for nth, label in MISTAKES.items():
                    grammar = grammar_wrong_at_every(nth)
                    measure_row(f"{cached}, {label}", model, prompt, length - 2, grammar, rounds)
                grammar = json_schema_grammar(ENUMS)
                measure_row(f"{cached}, JSON of enums", model, prompt, length - 2, grammar, rounds)
            prompt = prompt[-64:]
            for nth in (0, 8, 1):
                grammar = grammar_wrong_at_every(nth)
                measure_row(f"m100, 64 tokens not cached, {MISTAKES[nth]}", model, prompt, 0, grammar, rounds)


def measure_demo(rounds: int) -> None:
    templates = read_model(DEMO)
    with load(DEMO) as model:
        for text, schema in (
            ("Emma is 41 years old and lives in Boston.", PERSON),
            ("Tom is 7 years old and lives in Riga.", PERSON),
            ("Return name and age as JSON: name is Ann, age is 5", None),
        ):
            messages = [{"role": "system", "content": schema_prompt(schema)}, {"role": "user", "content": text}]
            prompt = templates.prompt(messages, [])
            kept = len(prompt) - 2 if len(prompt) > 66 else 0
            measure_row(f"demo, {text}", model, prompt, kept, json_schema_grammar(schema or {"type": "object"}), rounds)


def measure_masks() -> None:
    """Print the cost of the grammar alone, with the vocabulary of the demo model."""
    with load(DEMO) as model:
        started = time.perf_counter()
        model.grammars.matcher(json_schema_grammar({"const": 1}))
        first_ms, started = (time.perf_counter() - started) * 1000, time.perf_counter()
        matcher, spent = model.grammars.matcher(json_schema_grammar(PERSON)), []
        compiled_ms = (time.perf_counter() - started) * 1000
        for number in (
            Tokenizer.from_file(str(DEMO / "tokenizer.json")).encode('{"name": "Emma", "age": 41, "city": "Bost').ids
        ):
            started = time.perf_counter()
            matcher.allows(number)
            matcher.consume(number)
            matcher.forced()
            spent.append((time.perf_counter() - started) * 1e6)
        text = f"Vocabulary and first grammar {first_ms:.1f} ms, another {compiled_ms:.1f} ms"
        print(f"\n{text}; a token {median(spent):.0f} us.")  # noqa: T201


def main() -> None:
    models: dict[str, Callable[[int], None]] = {"m100": measure_m100, "demo": measure_demo}
    options = argparse.ArgumentParser(prog="python -m tests.bench.structured", description="The cost of a grammar.")
    options.add_argument("--rounds", type=int, default=7, help="how often each row is measured (default 7)")
    options.add_argument("--only", choices=list(models), help="the model to measure")
    chosen = options.parse_args()
    print(f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {describe_machine()}, load {os.getloadavg()[0]:.1f}\n")  # noqa: T201
    print("| work | tokens | calls | ms per token, free | held | ratio |\n|---|---:|---:|---:|---:|---:|")  # noqa: T201
    for name in [chosen.only] if chosen.only else models:
        models[name](chosen.rounds)
    measure_masks()


if __name__ == "__main__":
    main()
