"""Runs one job whose answer must follow a grammar, at the speed of the model while the model follows it by itself.

    the model's token is allowed      it is taken, and the call goes on
    it is not                         another is chosen from the same logits, and a new call goes on behind it
    the grammar leaves no choice      its tokens are taken at once; the model may read them in a new call, or say them

The library chooses tokens without asking anybody, so its choice is accepted or corrected. At a pure temperature that
is exact: what is accepted or else drawn among the allowed has the distribution of the allowed. So it is for a job that
left a batch at such a token, for the model is asked for it again. With top_p or top_k the
library cuts before the grammar looks, and the correction after.
Source: https://opennmt.net/CTranslate2/python/ctranslate2.Generator.html, llguidance's docs/fast_forward.md
"""  # fmt: skip

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from backends.local.decoding.batch import Emit, Ended
from backends.local.decoding.grammar_matcher import Grammars, Matcher
from backends.local.decoding.job import End, Job, Token
from backends.local.decoding.restarts import Resuming
from backends.local.decoding.sampling import chosen, logits_of, sampling, told

# The library keeps a number for each token of its vocabulary and each step until its call returns.
MAX_LOGITS_BYTES, FLOAT_BYTES = 67_108_864, 4
MAX_STEPS = 256
# How often an answer is interrupted before more of its prompt is kept: memory is dear, and most are hardly ever.
INTERRUPTED = 2


def run_constrained(  # noqa: PLR0913, PLR0917  a seam: as run_batch
    generator: Any, vocabulary: Sequence[str], grammars: Grammars, job: Job, prefix: Sequence[int], emit: Emit,
    ended: Ended, *, keep: Callable[[], int] = int,
) -> None:  # fmt: skip
    """Make one answer by `job.options.grammar`, and return when it has ended: once.

    `prefix` is what the prompt begins with and the library is to keep; at least two tokens come behind it. An answer
    that is interrupted again asks `keep` for how many tokens that might be instead. Tokens that the grammar forced are
    emitted like all others.
    """
    try:
        answer = Answer(job, grammars.matcher(job.options.grammar), emit, kept=len(prefix))
        for calls in itertools.count():
            if answer.finish is not None or job.cancelled:
                break
            if calls == INTERRUPTED:
                answer.keep(keep())
            _call(generator, vocabulary, answer)
    except Exception as error:  # noqa: BLE001  whatever the libraries raise, this job has failed and others go on
        grammars.forget(job.options.grammar)
        ended(job, "failed", f"{type(error).__name__}: {error}")
    else:
        ended(job, answer.finish or "stop", "")


def _call(generator: Any, vocabulary: Sequence[str], answer: "Answer") -> None:
    """From where the answer stands as far as one call brings it."""
    options, prefix = answer.job.options, answer.job.prompt[: answer.kept]
    ids = [*answer.job.prompt[answer.kept :], *answer.made]
    at_once = max(1, min(MAX_STEPS, MAX_LOGITS_BYTES // (FLOAT_BYTES * len(vocabulary))))
    answer.resume(len(ids))
    generator.generate_batch(
        [[vocabulary[number] for number in ids]], max_length=min(at_once, options.max_tokens - len(answer.made)),
        static_prompt=[vocabulary[number] for number in prefix] or None, include_prompt_in_result=False, end_token=[],
        return_logits_vocab=True, callback=answer.take, **sampling(options, len(vocabulary)),
    )  # fmt: skip
    answer.check()


class Answer:
    """What there is of an answer, and where its grammar stands."""

    def __init__(self, job: Job, matcher: Matcher, emit: Emit, *, kept: int) -> None:
        self.job = job
        self.made: list[int] = []
        self.finish: End | None = None
        self._matcher = matcher
        self._emit = emit
        self._random = np.random.default_rng()
        self.kept = kept
        self._resuming = Resuming(kept)
        self._ahead: deque[int] = deque()  # forced, and not yet said by the model in the call that runs
        self._stepped = self._corrected = False
        self._error: Exception | None = None
        for number in job.begun:
            matcher.consume(number)
        self._check_matcher()
        self._force()

    def keep(self, tokens: int) -> None:
        """From now on the library is to keep so many of the prompt, should that be more than it does."""
        if tokens > self.kept:
            self.kept = tokens
            self._resuming.keep(tokens)

    def resume(self, tokens: int) -> None:
        """A call begins that reads so many tokens."""
        self._ahead.clear()
        self._stepped = False
        self._resuming.begins(tokens, corrected=self._corrected)
        self._corrected = False

    def take(self, result: Any) -> bool:
        """The library's callback; True ends the call. An exception in here would take down the process."""
        try:
            self._stepped = True
            self._resuming.steps()
            return self._over(result)
        except Exception as error:  # noqa: BLE001  told by `check` when the call is over
            self._error = error
            return True

    def check(self) -> None:
        """After a call. Raises what went wrong in it."""
        if self._error is not None:
            raise self._error
        if not self._stepped:
            raise RuntimeError("The library returned without a token.")
        if self.finish is None and self._resuming.astray:
            self.finish = "astray"

    def _over(self, result: Any) -> bool:
        if self.job.cancelled:
            self.finish = "stop"
            return True
        if self._ahead:
            return self._differs(result.token_id)
        agreed = self._agree(result)
        self._corrected = not agreed
        self._force()
        if self.job.recalled and self.finish is None:
            self.finish = "again"
        tokens = len(self.job.prompt) - self.kept + len(self.made)
        return self.finish is not None or not agreed or self._resuming.pays(len(self._ahead), tokens)

    def _differs(self, number: int) -> bool:
        """Whether the model says something else than what was forced: then it has to read that."""
        same = number == self._ahead.popleft()
        if not self._ahead or not same:
            self._resuming.followed(same=same)
        return not same

    def _agree(self, result: Any) -> bool:
        """Take the model's token, or the one that it should have chosen; whether they are the same."""
        number, told_of = result.token_id, self.job.options.top_logprobs
        allowed = self._matcher.allows(number)
        self._check_matcher()
        if allowed and told_of is None:
            self._add(number, Token(number))
            return True
        logits = logits_of(result, self._matcher.size)
        if not allowed:
            number = chosen(logits, self._matcher.allowed(), self.job.options, self._random)
        self._add(number, Token(number) if told_of is None else told(number, logits, told_of))
        return allowed

    def _force(self) -> None:
        """Take what leaves no choice. Who asks for logprobs gets them of every token, so the model has to say each."""
        while self.finish is None and self.job.options.top_logprobs is None:
            forced = self._matcher.forced()
            self._check_matcher()
            if not forced:
                return
            for number in forced:
                if self.finish is None:
                    self._add(number, Token(number))
                    self._ahead.append(number)

    def _add(self, number: int, token: Token) -> None:
        options = self.job.options
        if number in options.stop_ids and self._matcher.accepts:
            self.finish = "stop"
            return
        self._matcher.consume(number)
        self._check_matcher()
        self.made.append(number)
        if self._matcher.over:
            self.finish = "stop"
        elif len(self.made) >= options.max_tokens:
            self.finish = "length"
        self._emit(self.job, token)

    def _check_matcher(self) -> None:
        if self._matcher.error:
            raise ValueError(self._matcher.error)
