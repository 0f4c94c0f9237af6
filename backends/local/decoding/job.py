"""Defines what goes to the engine and what comes back: jobs one way, steps the other.

    Job(7, prompt, options)  ->  DecodingStep(7, cached_tokens=0)
                                 DecodingStep(7, [Token(42)])
                                 DecodingStep(7, [Token(5), Token(9)], "stop")

Jobs and steps are plain data, so the caller and the engine can live in one process or in two.
"""  # fmt: skip

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from msgspec import Struct

# "constraint_failed": the model disagrees with its grammar so often that following the grammar costs too much.
FinishReason = Literal["stop", "length", "failed", "constraint_failed"]
# How one run of a job ends. A row that leaves its batch continues later: alone when its grammar rejected a token, or
# with other jobs when the batch was preempted.
RunEnd = FinishReason | Literal["continue_alone", "preempted"]

# The library returns a prompt of one token as part of the answer. The same holds for what follows a static prompt.
MIN_PROMPT_TOKENS = 2


@dataclass(frozen=True, slots=True)
class DecodingOptions:
    """How one answer is decoded: at most `max_tokens` tokens, ending before the first of `stop_ids`."""

    max_tokens: int
    stop_ids: frozenset[int]
    temperature: float = 0.0  # 0: greedy
    top_p: float = 1.0
    top_k: int = 0  # 0: the engine chooses
    repetition_penalty: float = 1.0  # 1: none
    grammar: str = ""  # in llguidance's format; "": no constraint
    # Whether the grammar allows free text at first, so that rejections are unlikely for a while.
    allows_free_text: bool = False
    top_logprobs: int | None = None  # how many alternatives to report for each token; None: no logprobs at all
    prefix_tokens: int = 0  # how many prompt tokens are likely to be shared with other requests; 0: none
    prefix_key: str = ""  # which requests share it: a prefix is kept once it came twice under one key
    delivers_at_once: bool = True  # whether each token is needed when it is there; else they are delivered together

    @property
    def runs_alone(self) -> bool:
        """Whether the job needs a worker of its own: each of its tokens is inspected, or may have to be replaced."""
        return bool(self.top_logprobs or (self.grammar and not self.allows_free_text))


class Token(Struct, frozen=True, array_like=True, gc=False):
    """One token of an answer."""

    id: int
    logprob: float | None = None  # natural logarithm, before temperature
    top: Sequence[tuple[int, float]] = ()  # the most likely tokens with their logprobs, best first


@dataclass(slots=True)
class Job:
    """One answer to decode. Any thread may set `cancelled` or `preempted`; the job leaves its run within one step."""

    id: int
    prompt: Sequence[int]
    options: DecodingOptions
    cancelled: bool = False
    preempted: bool = False  # only read in a batch
    answer_tokens: int = 0  # how many tokens at the end of the prompt belong to the answer
    team: str = ""  # of the caller: teams take turns
    misdraws: int = 0  # how many runs in succession ended without a token of it, because a GPU drew none

    @property
    def partial_answer(self) -> Sequence[int]:
        """The part of the answer that the prompt already ends with."""
        return self.prompt[len(self.prompt) - self.answer_tokens :]

    def with_free_grammar(self) -> "Job":
        """Return the same job with a grammar that counts as free, so that it can join a batch."""
        return replace(self, options=replace(self.options, allows_free_text=True))

    def continuation(self, generated: Sequence[int], *, allows_free_text: bool = False) -> "Job":
        """Return the job that continues this one after these tokens; it `allows_free_text` or runs alone."""
        options = replace(
            self.options, max_tokens=self.options.max_tokens - len(generated), allows_free_text=allows_free_text
        )
        prompt = [*self.prompt, *generated]
        return Job(
            self.id, prompt, options, answer_tokens=self.answer_tokens + len(generated), team=self.team,
            misdraws=0 if generated else self.misdraws,
        )  # fmt: skip


# Called by a run for each token, and once for each job at its end, with a message when it failed.
EmitToken = Callable[[Job, Token], None]
EndRun = Callable[[Job, RunEnd, str], None]


class DecodingStep(Struct):
    """Progress of one job. The stop token that ends an answer is not among its tokens."""

    job: int
    tokens: Sequence[Token] = ()
    finish: FinishReason | None = None
    cached_tokens: int | None = None  # sent once, before the first token: how many prompt tokens came from the cache
    message: str = ""  # of a failure, for the log
