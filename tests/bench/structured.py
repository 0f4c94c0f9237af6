"""`python -m tests.bench.structured`: what it costs to hold an answer to a grammar, measured in one run.

Every work is done with its grammar and without, in turns; the table tells the medians for each token, and of their
ratios. What the library keeps of a prompt is read before.

m100 is a model of 100 million weights that says w000, w001, w002 and so on, each a token; its grammars allow one other
word wherever it stands, and at some places not the one that it says.
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
from tests.bench.machine import described
from tests.bench.models import write_saying
from tests.models import END

DEMO = Path("backends/demo")
WORDS = 48
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


class Calls:
    """The library's generator, with how often it was called."""

    def __init__(self, generator: Any) -> None:
        self.generator, self.calls = generator, 0

    def generate_batch(self, *args, **options):
        self.calls += 1
        return self.generator.generate_batch(*args, **options)


@dataclass(slots=True)
class Speaker:
    generator: Calls
    vocabulary: Sequence[str]
    grammars: Grammars
    stop_ids: frozenset[int]

    def run(self, prompt: Sequence[int], kept: int, tokens: int, grammar: str) -> tuple[float, int]:
        """Seconds for each token, and how many there were."""
        job = Job(1, prompt, Options(tokens, self.stop_ids, grammar=grammar))
        made, ends = [], []
        heard = (lambda _, token: made.append(token.id)), (lambda _, finish, message: ends.append((finish, message)))
        began = time.perf_counter()
        if grammar:
            run_constrained(self.generator, self.vocabulary, self.grammars, job, prompt[:kept], *heard)
        else:
            run_batch(self.generator, self.vocabulary, [job], prompt[:kept], *heard)
        seconds = time.perf_counter() - began
        assert ends[0][0] != "failed", ends
        return seconds / max(1, len(made)), len(made)


def write_counting(folder: Path) -> None:
    """m100: behind "go" comes w000, and behind each word of a number the w of the next."""
    write_saying(folder, [["go"], *([f"{letter}{number:03}" for letter in "wxy"] for number in range(WORDS))])


def wrong_at_every(nth: int) -> str:
    """48 words; the model's own is not among those allowed at every so manieth place; 0: nowhere."""
    letters = ["xy" if nth and number % nth == nth - 1 else "wx" for number in range(WORDS)]
    return "start: " + " ".join(
        f'("{one}{number:03}" | "{other}{number:03}")' for number, (one, other) in enumerate(letters)
    )


@contextmanager
def loaded(folder: Path) -> Iterator[Speaker]:
    vocabulary = json.loads((folder / "vocabulary.json").read_text())
    tokenizer = (folder / "tokenizer.json").read_text(encoding="utf-8")
    stop_ids = frozenset({vocabulary.index(END)})
    generator = Calls(place(folder, vocabulary, Placement("cpu", workers=1)))
    yield Speaker(generator, vocabulary, Grammars(tokenizer, len(vocabulary), stop_ids), stop_ids)
    del generator.generator  # nobody may hold it when the interpreter ends


def row(told: str, speaker: Speaker, prompt: Sequence[int], kept: int, grammar: str, rounds: int) -> None:
    """One line of the table."""
    pairs, tokens = [], WORDS
    for _ in range(rounds + 1):  # the first warms up
        free_s, _ = speaker.run(prompt, kept, tokens, "")
        before = speaker.generator.calls
        held_s, tokens = speaker.run(prompt, kept, 4 * WORDS, grammar)
        pairs.append((free_s, held_s))
    calls = speaker.generator.calls - before
    free_s, held_s = (median(pair[side] for pair in pairs[1:]) for side in (0, 1))
    ratio = median(held / free for free, held in pairs[1:])
    cells = (told, f"{tokens}", f"{calls}", f"{free_s * 1000:.2f}", f"{held_s * 1000:.2f}", f"**{ratio:.2f}**")
    print(f"| {' | '.join(cells)} |", flush=True)  # noqa: T201


def m100(rounds: int) -> None:
    with TemporaryDirectory(prefix="headgate-bench-") as name:
        write_counting(Path(name))
        with loaded(Path(name)) as speaker:
            go = Tokenizer.from_file(f"{name}/tokenizer.json").token_to_id("go")
            for length in (64, 512):
                prompt = [*(5 + number * 37 % 250 for number in range(length - 1)), go]
                for nth, told in {0: "follows", 8: "wrong at every 8th", 2: "at every 2nd", 1: "at each"}.items():
                    row(f"m100, {length} tokens kept, {told}", speaker, prompt, length - 2, wrong_at_every(nth), rounds)
                row(
                    f"m100, {length} tokens kept, JSON of enums",
                    speaker,
                    prompt,
                    length - 2,
                    json_schema_grammar(ENUMS),
                    rounds,
                )
            prompt = prompt[-64:]
            for nth, told in {0: "follows", 8: "wrong at every 8th", 1: "at each"}.items():
                row(f"m100, 64 tokens not kept, {told}", speaker, prompt, 0, wrong_at_every(nth), rounds)


def demo(rounds: int) -> None:
    model = read_model(DEMO)
    with loaded(DEMO) as speaker:
        for text, schema in (
            ("Emma is 41 years old and lives in Boston.", PERSON),
            ("Tom is 7 years old and lives in Riga.", PERSON),
            ("Return name and age as JSON: name is Ann, age is 5", None),
        ):
            messages = [{"role": "system", "content": schema_prompt(schema)}, {"role": "user", "content": text}]
            prompt = model.prompt(messages, [])
            kept = len(prompt) - 2 if len(prompt) > 66 else 0
            row(f"demo, {text}", speaker, prompt, kept, json_schema_grammar(schema or {"type": "object"}), rounds)


def masks() -> None:
    """What the grammar alone costs, with the demo's vocabulary."""
    with loaded(DEMO) as speaker:
        began = time.perf_counter()
        speaker.grammars.matcher(json_schema_grammar({"const": 1}))
        first_ms, began = (time.perf_counter() - began) * 1000, time.perf_counter()
        matcher, spent = speaker.grammars.matcher(json_schema_grammar(PERSON)), []
        compiled_ms = (time.perf_counter() - began) * 1000
        for number in (
            Tokenizer.from_file(str(DEMO / "tokenizer.json")).encode('{"name": "Emma", "age": 41, "city": "Bost').ids
        ):
            began = time.perf_counter()
            matcher.allows(number)
            matcher.consume(number)
            matcher.forced()
            spent.append((time.perf_counter() - began) * 1e6)
        told = f"Vocabulary and first grammar {first_ms:.1f} ms, another {compiled_ms:.1f} ms"
        print(f"\n{told}; a token {median(spent):.0f} us.")  # noqa: T201


def main() -> None:
    works: dict[str, Callable[[int], None]] = {"m100": m100, "demo": demo}
    options = argparse.ArgumentParser(prog="python -m tests.bench.structured", description="The price of a grammar.")
    options.add_argument("--rounds", type=int, default=7, help="how often each is measured (default 7)")
    options.add_argument("--only", choices=list(works), help="one model")
    chosen = options.parse_args()
    print(f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {described()}, load {os.getloadavg()[0]:.1f}\n")  # noqa: T201
    print("| work | tokens | calls | ms a token, free | held | ratio |\n|---|---:|---:|---:|---:|---:|")  # noqa: T201
    for name in [chosen.only] if chosen.only else works:
        works[name](chosen.rounds)
    masks()


if __name__ == "__main__":
    main()
