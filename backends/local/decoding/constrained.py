"""Decodes one answer under a grammar, at the model's own speed while the model follows the grammar by itself.

    the model's token is allowed       it is accepted, and the call continues
    the model's token is not allowed   another one is chosen from the same logits, and a new call continues after it
    the grammar allows one text only   its tokens are accepted at once; the model generates or reads them

The library offers no way to change its logits, so its choice is accepted or corrected afterwards. With
temperature alone this is exact: accepting a token or else sampling among the allowed ones gives the distribution of
the allowed ones. The same holds for a job that left a batch before such a token, because the model generates that
token again. With top_p or top_k the library truncates before the grammar is applied, a correction after it.
Source: https://opennmt.net/CTranslate2/python/ctranslate2.Generator.html, llguidance's docs/fast_forward.md
"""  # fmt: skip

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from backends.local.decoding.failure import describe_failure
from backends.local.decoding.grammar_matcher import GrammarCompiler, GrammarMatcher
from backends.local.decoding.job import EmitToken, EndRun, Job, RunEnd, Token
from backends.local.decoding.restarts import RestartCosts
from backends.local.decoding.sampling import (
    MAX_MISDRAWS,
    choose_token,
    draws_on_gpu,
    is_misdraw_error,
    is_misdrawn,
    read_logits,
    sampling_arguments,
    token_with_logprobs,
)
from backends.local.decoding.thread_state import keep_thread_state

# The library keeps one number for each token of the vocabulary and each step until its call returns.
MAX_LOGITS_BYTES, FLOAT_BYTES = 67_108_864, 4
MAX_STEPS = 256
# After how many calls more of the prompt is kept: memory is scarce, and most answers need one or two calls.
CALLS_BEFORE_KEEPING = 2


def run_constrained(  # noqa: PLR0913, PLR0917  the three ways to run jobs share this signature
    generator: Any, vocabulary: Sequence[str], grammars: GrammarCompiler, job: Job, prefix: Sequence[int],
    emit: EmitToken, end: EndRun, *, extend_prefix: Callable[[], int] = int,
) -> None:  # fmt: skip
    """Decode one answer under `job.options.grammar`; return after `end` has been called once.

    `prefix` is the beginning of the prompt that the library keeps; the prompt has at least two more tokens. Once an
    answer has needed several calls, `extend_prefix` returns how many tokens may be kept from then on. Tokens that
    the grammar forces are emitted like all others.
    """
    try:
        answer = ConstrainedAnswer(job, grammars.matcher(job.options.grammar), emit, prefix_tokens=len(prefix))
        for calls in itertools.count():
            if answer.end is not None or job.cancelled:
                break
            if calls == CALLS_BEFORE_KEEPING:
                answer.extend_prefix(extend_prefix())
            _call(generator, vocabulary, answer)
    except Exception as error:  # noqa: BLE001  any error of the libraries fails this job only
        grammars.forget(job.options.grammar)
        end(job, "failed", describe_failure(error))
    else:
        end(job, answer.end or "stop", "")


def _call(generator: Any, vocabulary: Sequence[str], answer: "ConstrainedAnswer") -> None:
    """Continue the answer with one call of the library."""
    options, prefix = answer.job.options, answer.job.prompt[: answer.prefix_tokens]
    ids = [*answer.job.prompt[answer.prefix_tokens :], *answer.generated]
    steps = max(1, min(MAX_STEPS, MAX_LOGITS_BYTES // (FLOAT_BYTES * len(vocabulary))))
    draws = draws_on_gpu(generator, options)
    answer.begin_call(len(ids), may_be_misdrawn=draws)
    try:
        generator.generate_batch(
            [[vocabulary[token] for token in ids]], max_length=min(steps, options.max_tokens - len(answer.generated)),
            static_prompt=[vocabulary[token] for token in prefix] or None, include_prompt_in_result=False, end_token=[],
            return_logits_vocab=True, return_scores=draws, callback=answer.on_token,
            **sampling_arguments(options, len(vocabulary)),
        )  # fmt: skip
    except ValueError as error:
        if not (draws and is_misdraw_error(error) and answer.may_draw_again()):
            raise
        return
    answer.end_call()


class ConstrainedAnswer:
    """The tokens of one answer and the state of its grammar."""

    def __init__(self, job: Job, matcher: GrammarMatcher, emit: EmitToken, *, prefix_tokens: int) -> None:
        self.job = job
        self.generated: list[int] = []
        self.end: RunEnd | None = None
        self.prefix_tokens = prefix_tokens
        self._matcher = matcher
        self._emit = emit
        self._random = np.random.default_rng()
        self._costs = RestartCosts(prefix_tokens)
        self._forced: deque[int] = deque()  # accepted, and not yet generated by the model in the running call
        self._called_back = self._corrected = self._may_be_misdrawn = False
        self._misdraws = 0
        self._error: Exception | None = None
        for token_id in job.partial_answer:
            matcher.consume(token_id)
        self._raise_matcher_error()
        self._accept_forced()

    def extend_prefix(self, tokens: int) -> None:
        """Let the library keep this many tokens of the prompt from the next call on, if that is more than now."""
        if tokens > self.prefix_tokens:
            self.prefix_tokens = tokens
            self._costs.set_unread_prefix(tokens)

    def begin_call(self, tokens: int, *, may_be_misdrawn: bool = False) -> None:
        """Prepare for a call that reads this many tokens."""
        self._may_be_misdrawn = may_be_misdrawn
        self._forced.clear()
        self._called_back = False
        self._costs.begin_call(tokens, corrected=self._corrected)
        self._corrected = False

    def on_token(self, result: Any) -> bool:
        """Process one token; return True to end the call. An exception that leaves it would end the process."""
        try:
            keep_thread_state()
            self._called_back, self._misdraws = True, 0
            self._costs.record_token()
            return self._process(result)
        except Exception as error:  # noqa: BLE001  raised by `end_call` after the call
            self._error = error
            return True

    def may_draw_again(self) -> bool:
        """Return whether another call may draw the token that a GPU did not draw in this one."""
        self._misdraws += 1
        return self._misdraws <= MAX_MISDRAWS

    def end_call(self) -> None:
        """Raise the exception of the callback, if there was one; end an answer that has been corrected too often."""
        if self._error is not None:
            raise self._error
        if not self._called_back:
            raise RuntimeError("The library returned without a token.")
        if self.end is None and self._costs.exceed_limit:
            self.end = "constraint_failed"

    def _process(self, result: Any) -> bool:
        if self.job.cancelled:
            self.end = "stop"
            return True
        if self._forced:
            return self._differs_from_forced(result.token_id)
        agreed = self._accept_or_correct(result)
        self._corrected = not agreed
        self._accept_forced()
        if self.job.preempted and self.end is None:
            self.end = "preempted"
        tokens = len(self.job.prompt) - self.prefix_tokens + len(self.generated)
        return self.end is not None or not agreed or self._costs.should_restart(len(self._forced), tokens)

    def _differs_from_forced(self, token_id: int) -> bool:
        """Return whether the model generated another token than the forced one; then a new call has to read those."""
        same = token_id == self._forced.popleft()
        if not self._forced or not same:
            self._costs.record_forced(matched=same)
        return not same

    def _accept_or_correct(self, result: Any) -> bool:
        """Accept the model's token or the best allowed one instead; return whether it was the model's."""
        token_id, top_logprobs = result.token_id, self.job.options.top_logprobs
        allowed = self._matcher.allows(token_id)
        if self._may_be_misdrawn and is_misdrawn(result, self._matcher.vocabulary_size):
            allowed = False
        self._raise_matcher_error()
        if allowed and top_logprobs is None:
            self._accept(token_id, Token(token_id))
            return True
        logits = read_logits(result, self._matcher.vocabulary_size)
        if not allowed:
            token_id = choose_token(logits, self._matcher.allowed(), self.job.options, self._random)
        plain = top_logprobs is None
        self._accept(token_id, Token(token_id) if plain else token_with_logprobs(token_id, logits, top_logprobs or 0))
        return allowed

    def _accept_forced(self) -> None:
        """Accept all tokens that the grammar forces. With logprobs the model has to generate each of them itself."""
        while self.end is None and self.job.options.top_logprobs is None:
            forced = self._matcher.forced()
            self._raise_matcher_error()
            if not forced:
                return
            for token_id in forced:
                if self.end is None:
                    self._accept(token_id, Token(token_id))
                    self._forced.append(token_id)

    def _accept(self, token_id: int, token: Token) -> None:
        options = self.job.options
        if token_id in options.stop_ids and self._matcher.may_stop:
            self.end = "stop"
            return
        self._matcher.consume(token_id)
        self._raise_matcher_error()
        self.generated.append(token_id)
        if self._matcher.is_complete:
            self.end = "stop"
        elif len(self.generated) >= options.max_tokens:
            self.end = "length"
        self._emit(self.job, token)

    def _raise_matcher_error(self) -> None:
        if self._matcher.error:
            raise ValueError(self._matcher.error)
