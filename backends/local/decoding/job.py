"""What passes between who asks for tokens and who makes them: jobs one way, steps the other.

    Job(7, prompt, options)  ->  Step(7, cached_tokens=0)  Step(7, [Token(42)])  Step(7, [Token(5), Token(9)], "stop")

All of it is plain data, so that the two may live in one process or in two.
"""  # fmt: skip

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

# "astray": its model would say something else than its grammar allows, over and over: to hold it costs too much.
Finish = Literal["stop", "length", "failed", "astray"]
# How a run of a job ends: with its answer, or in a batch that its grammar makes it leave, to go on alone, or that is
# called back, to go on with others.
End = Finish | Literal["alone", "again"]

# A prompt of one token would come back as part of the answer. So it is with what comes behind a kept prefix.
MIN_PROMPT_TOKENS = 2


@dataclass(frozen=True, slots=True)
class Options:
    """How one answer is made: at most `max_tokens` of them, none when one of `stop_ids` comes first."""

    max_tokens: int
    stop_ids: frozenset[int]
    temperature: float = 0.0  # 0: always the likeliest token
    top_p: float = 1.0
    top_k: int = 0  # 0: as many as the engine sees fit
    repetition_penalty: float = 1.0  # 1: none
    grammar: str = ""  # what the answer must be, as llguidance takes it; "": anything
    free: bool = False  # whether the grammar leaves it to the model how to begin: both are likely to agree for long
    top_logprobs: int | None = None  # for each token its own and that many of the likeliest; None: no logprobs at all
    prefix: int = 0  # how many tokens of the prompt others will have in common with it; 0: none
    prefix_key: str = ""  # among whom: a prefix is kept once it was seen twice under one key

    @property
    def alone(self) -> bool:
        """Whether it shares no batch from its first token on: somebody looks at each, or may have to choose it."""
        return bool(self.top_logprobs or (self.grammar and not self.free))


class Token(NamedTuple):
    id: int
    logprob: float | None = None  # natural logarithm, before temperature
    top: Sequence[tuple[int, float]] = ()  # the likeliest tokens, best first, with theirs


@dataclass(slots=True)
class Job:
    """One answer to be made. Whoever holds it may set `cancelled` from any thread; it ends within one step.

    So it is with `recalled`, where it shares a batch: then it is to go on with others.
    """

    id: int
    prompt: Sequence[int]
    options: Options
    cancelled: bool = False
    recalled: bool = False
    said: int = 0  # how many tokens at the end of the prompt are the beginning of the answer

    @property
    def begun(self) -> Sequence[int]:
        """The beginning of the answer, where the prompt ends with it."""
        return self.prompt[len(self.prompt) - self.said :]

    def freed(self) -> "Job":
        """The same, as if its grammar left the beginning to the model."""
        return replace(self, options=replace(self.options, free=True))

    def rest(self, made: Sequence[int], *, free: bool = False) -> "Job":
        """What is left of it when so much was made: to be made alone, by its grammar, unless it is left `free`."""
        options = replace(self.options, max_tokens=self.options.max_tokens - len(made), free=free)
        return Job(self.id, [*self.prompt, *made], options, said=self.said + len(made))


@dataclass(frozen=True, slots=True)
class Step:
    """News of one job. The token that ends an answer is not among its tokens."""

    job: int
    tokens: Sequence[Token] = ()
    finish: Finish | None = None
    cached_tokens: int | None = None  # told once, before the first token: how much of the prompt was not read again
    message: str = ""  # of a failure: what the engine said, for the log
