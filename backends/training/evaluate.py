"""Evaluates a model on dialogues that are not in the training text: the last answer must match exactly."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import ctranslate2
from tokenizers import Tokenizer

from backends.training.corpus import SUBJECTS, lesson
from backends.training.dialogue import Dialogue
from backends.training.prompt import CALL, CALL_END, END, split_last_answer
from backends.training.subjects.arithmetic import tables

SEED = "evaluation"
LONGEST_ANSWER = 400
VALID = {"objects", "schemas", "weather_call", "everyday_call"}
CLOSED = ("talk", "facts", "capitals", "counting", "arithmetic", "tables")

AnswerAll = Callable[[list[Dialogue]], list[str]]


@dataclass(frozen=True, slots=True)
class Score:
    """The number of exact answers of a subject, and for calls and JSON objects the number of parsable ones."""

    subject: str
    samples: int
    exact: int
    valid: int | None
    wrong: list[tuple[str, str, str]]


def evaluate(model: Path, samples: int, failures: int, *, served: bool) -> None:
    """Print a table of all subjects, for the engine alone or, with `served`, for the local backend with grammars."""
    answer_samples = build_served_answerer(model) if served else build_engine_answerer(model)
    print(f"{'subject':<18}{'samples':>8}{'exact %':>9}{'valid %':>9}")
    for score in score_all(answer_samples, samples):
        exact = 100 * score.exact / score.samples
        valid = "" if score.valid is None else f"{100 * score.valid / score.samples:.1f}"
        print(f"{score.subject:<18}{score.samples:>8}{exact:>9.1f}{valid:>9}", flush=True)
        for question, expected, answer in score.wrong[:failures]:
            print(f"    asked    {question[-300:]!r}\n    expected {expected!r}\n    answered {answer!r}")
    print(f"The questions of {', '.join(CLOSED)} are also in the training text; those of the other rows are not.")


def score_all(answer: AnswerAll, samples: int) -> Iterator[Score]:
    """Yield one score per subject, from samples with a seed that training does not use, and one for all sums."""
    for subject in SUBJECTS:
        asked = [lesson(Random(f"{SEED}/{subject}/{number}"), subject) for number in range(samples)]
        yield score_subject(subject, [split_last_answer(each.messages, each.tools) for each in asked], answer(asked))
    asked = list(tables())
    yield score_subject("tables", [split_last_answer(each.messages) for each in asked], answer(asked))


def score_subject(subject: str, pairs: list[tuple[str, str]], answers: list[str]) -> Score:
    judged = [(question, expected, answer) for (question, expected), answer in zip(pairs, answers, strict=True)]
    wrong = [each for each in judged if each[1] != each[2]]
    valid = sum(map(is_parsable, answers)) if subject in VALID else None
    return Score(subject, len(judged), len(judged) - len(wrong), valid, wrong)


def is_parsable(answer: str) -> bool:
    """Whether every call in the answer, or the whole answer if it has no calls, is a JSON object."""
    parts = [part.split(CALL_END)[0] for part in answer.split(CALL)[1:]] or [answer]
    try:
        return all(isinstance(json.loads(part), dict) for part in parts)
    except ValueError:
        return False


def build_engine_answerer(model: Path) -> AnswerAll:
    """Return a function that generates greedy answers with the engine alone."""
    generator = ctranslate2.Generator(str(model), inter_threads=2, intra_threads=1, max_queued_batches=-1)
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))

    def answer(asked: list[Dialogue]) -> list[str]:
        prompts = [split_last_answer(each.messages, each.tools)[0] for each in asked]
        tokens = [each.tokens for each in tokenizer.encode_batch(prompts, add_special_tokens=False)]
        results = generator.generate_batch(
            tokens, max_batch_size=1, max_length=LONGEST_ANSWER, include_prompt_in_result=False, end_token=END
        )
        return [tokenizer.decode(each.sequences_ids[0], skip_special_tokens=True) for each in results]

    return answer


def build_served_answerer(model: Path) -> AnswerAll:
    """Return a function that sends requests through the local backend. Training needs none of its dependencies."""
    from backends.training.served import answer_all

    return lambda asked: answer_all(model, asked, LONGEST_ANSWER)
