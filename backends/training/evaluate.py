"""Tests the finished model on dialogues that training never saw: the last answer must be right to the letter."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import ctranslate2
from tokenizers import Tokenizer

from backends.training.corpus import SUBJECTS, lesson
from backends.training.dialogue import Dialogue
from backends.training.prompt import CALL, CALL_END, END, question_and_answer
from backends.training.subjects.arithmetic import tables

SEED = "evaluation"
LONGEST_ANSWER = 400
VALID = {"objects", "schemas", "weather_call", "everyday_call"}
CLOSED = ("talk", "facts", "capitals", "counting", "arithmetic", "tables")

Answer = Callable[[list[Dialogue]], list[str]]


@dataclass(frozen=True, slots=True)
class Score:
    """How many answers were exact; `valid` counts those that can at least be parsed, for calls and JSON objects."""

    subject: str
    samples: int
    exact: int
    valid: int | None
    wrong: list[tuple[str, str, str]]


def evaluate(model: Path, samples: int, failures: int, *, served: bool) -> None:
    """Print a table of all subjects: of the bare model, or of what callers get, with grammars."""
    asked = served_answerer(model) if served else answerer(model)
    print(f"{'subject':<18}{'samples':>8}{'exact %':>9}{'valid %':>9}")
    for score in scores(asked, samples):
        valid = "" if score.valid is None else f"{100 * score.valid / score.samples:.1f}"
        print(f"{score.subject:<18}{score.samples:>8}{100 * score.exact / score.samples:>9.1f}{valid:>9}", flush=True)
        for question, expected, answer in score.wrong[:failures]:
            print(f"    asked    {question[-300:]!r}\n    expected {expected!r}\n    answered {answer!r}")
    print(f"What is asked in {', '.join(CLOSED)} also occurs in training; the other rows are new to the model.")


def scores(answer: Answer, samples: int) -> Iterator[Score]:
    """One score per subject, from samples drawn with a seed that training does not use, and one for all sums."""
    for subject in SUBJECTS:
        asked = [lesson(Random(f"{SEED}/{subject}/{number}"), subject) for number in range(samples)]
        yield score(subject, [question_and_answer(each.messages, each.tools) for each in asked], answer(asked))
    asked = list(tables())
    yield score("tables", [question_and_answer(each.messages) for each in asked], answer(asked))


def score(subject: str, pairs: list[tuple[str, str]], answers: list[str]) -> Score:
    judged = [(question, expected, answer) for (question, expected), answer in zip(pairs, answers, strict=True)]
    wrong = [each for each in judged if each[1] != each[2]]
    valid = sum(map(parses, answers)) if subject in VALID else None
    return Score(subject, len(judged), len(judged) - len(wrong), valid, wrong)


def parses(answer: str) -> bool:
    """Whether every call in the answer, or else the whole answer, is a JSON object."""
    parts = [part.split(CALL_END)[0] for part in answer.split(CALL)[1:]] or [answer]
    try:
        return all(isinstance(json.loads(part), dict) for part in parts)
    except ValueError:
        return False


def answerer(model: Path) -> Answer:
    """Greedy answers of the model as it ships."""
    generator = ctranslate2.Generator(str(model), inter_threads=2, intra_threads=1, max_queued_batches=-1)
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))

    def answer(asked: list[Dialogue]) -> list[str]:
        prompts = [question_and_answer(each.messages, each.tools)[0] for each in asked]
        tokens = [each.tokens for each in tokenizer.encode_batch(prompts, add_special_tokens=False)]
        results = generator.generate_batch(
            tokens, max_batch_size=1, max_length=LONGEST_ANSWER, include_prompt_in_result=False, end_token=END
        )
        return [tokenizer.decode(each.sequences_ids[0], skip_special_tokens=True) for each in results]

    return answer


def served_answerer(model: Path) -> Answer:
    """What callers get of it. The environment that trains need not have what serving takes."""
    from backends.training.served import ask_served

    return lambda asked: ask_served(model, asked, LONGEST_ANSWER)
