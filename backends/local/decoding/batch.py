"""Runs one batch: one call of the library for several jobs with the same sampling.

    jobs  ->  generate_batch(prompts, callback=on_token)  ->  emit(job, token) ... end(job, "stop", "")

The library has one set of options for all rows. What differs by row is decided in the callback: token limits, stop
tokens, cancellation, preemption, and tokens that a row's grammar rejects.
Source: https://opennmt.net/CTranslate2/python/ctranslate2.Generator.html#ctranslate2.Generator.generate_batch
"""  # fmt: skip

import time
from collections.abc import Callable, Sequence
from typing import Any

from backends.local.decoding.failure import describe_failure
from backends.local.decoding.grammar_matcher import GrammarCompiler, GrammarMatcher
from backends.local.decoding.job import EmitToken, EndRun, Job, RunEnd, Token
from backends.local.decoding.sampling import (
    MAX_MISDRAWS,
    draws_on_gpu,
    is_misdraw_error,
    is_misdrawn,
    sampling_arguments,
)
from backends.local.decoding.thread_state import keep_thread_state

# How long the grammar of one row may delay the other rows in total before its job has to continue alone.
MAX_GRAMMAR_S = 0.5


def run_batch(  # noqa: PLR0913  the three ways to run jobs share this signature
    generator: Any, vocabulary: Sequence[str], jobs: Sequence[Job], prefix: Sequence[int], emit: EmitToken, end: EndRun,
    *, on_step: Callable[[], None] = lambda: None, grammars: GrammarCompiler | None = None,
) -> None:  # fmt: skip
    """Decode jobs with the same sampling; return when `end` has been called once for each of them.

    `prefix` is the common beginning of all prompts that the library keeps; each prompt has at least two more tokens.
    `on_step` is called after each step of all rows. The library calls the callbacks in a thread of its own. With
    `grammars` a row ends as "continue_alone" before a token that its grammar rejects, or when its grammar is slow.
    """
    draws = draws_on_gpu(generator, jobs[0].options)
    run = BatchRun(jobs, emit, end, on_step, grammars, check_below=len(vocabulary) if draws else 0)
    try:
        generator.generate_batch(
            [[vocabulary[token] for token in job.prompt[len(prefix):]] for job in run.jobs],
            static_prompt=[vocabulary[token] for token in prefix] or None, include_prompt_in_result=False,
            max_length=max(job.options.max_tokens for job in jobs), end_token=[], callback=run.on_token,
            return_scores=draws or any(job.options.top_logprobs is not None for job in jobs),
            **sampling_arguments(jobs[0].options, len(vocabulary)),
        )  # fmt: skip
    except Exception as error:  # noqa: BLE001  any error of the library fails this batch only
        if draws and is_misdraw_error(error):
            run.continue_open_rows()
        run.fail_open_rows(describe_failure(error))
    run.fail_open_rows("The library returned before the answer was complete.")


class BatchRun:
    """The rows of one call, longest prompt first: the library reports rows in this order at every step."""

    def __init__(
        self, jobs: Sequence[Job], emit: EmitToken, end: EndRun, on_step: Callable[[], None],
        grammars: GrammarCompiler | None = None, *, check_below: int = 0,
    ) -> None:  # fmt: skip
        """`check_below` is the size of the vocabulary when tokens may be misdrawn, else 0."""
        self.jobs = sorted(jobs, key=lambda job: -len(job.prompt))
        self._generated = [0] * len(jobs)
        self._open = [True] * len(jobs)
        self._last_row = len(jobs) - 1  # its token completes a step
        self._emit = emit
        self._end = end
        self._on_step = on_step
        self._grammars = grammars
        self._check_below = check_below
        self._matchers: dict[int, GrammarMatcher] = {}  # row -> matcher, created at the row's first token
        self._grammar_s = [0.0] * len(jobs)

    def on_token(self, result: Any) -> bool:
        """Process one token of one row; return True to end the row.

        An exception that leaves this callback would end the batch or the process.
        """
        try:
            keep_thread_state()
            row: int = result.batch_id
            completes_step = row == self._last_row
            ends = True
            if self._open[row]:
                end = self._end_with(row, result)
                ends = end is not None and self._close_row(row, end)
            if completes_step:
                self._on_step()
        except BaseException:  # noqa: BLE001  the row stays open, so it is reported as failed after the call
            return True
        return ends

    def continue_open_rows(self) -> None:
        """Let all rows that are still open continue in a later batch, except those that often got no token."""
        for row, is_open in enumerate(self._open):
            job = self.jobs[row]
            job.misdraws = 0 if self._generated[row] else job.misdraws + 1
            if is_open and job.misdraws <= MAX_MISDRAWS:
                self._close_row(row, "preempted")

    def fail_open_rows(self, message: str) -> None:
        """End all rows that are still open as failed."""
        for row, is_open in enumerate(self._open):
            if is_open:
                self._close_row(row, "failed", message)
        self._on_step()

    def _end_with(self, row: int, result: Any) -> RunEnd | None:
        """Emit the row's token unless the row ends before it; return how the row ends, if it does."""
        job, token_id = self.jobs[row], result.token_id
        options = job.options
        if job.cancelled:
            return "stop"
        end: RunEnd | None = "stop" if token_id in options.stop_ids else None
        if self._check_below or (options.grammar and self._grammars is not None):
            end = self._end_before(row, result)
        if end is None:
            generated = self._generated[row] = self._generated[row] + 1
            self._emit(job, Token(token_id) if options.top_logprobs is None else Token(token_id, result.log_prob))
            if row in self._matchers and self._matchers[row].is_complete:
                end = "stop"
            elif generated >= options.max_tokens or result.is_last:
                end = "length"
            elif job.preempted:
                end = "preempted"
            elif self._grammar_s[row] > MAX_GRAMMAR_S:
                end = "continue_alone"
        return end

    def _end_before(self, row: int, result: Any) -> RunEnd | None:
        """Return how the row ends without this token, if it does: at a stop token, or one that its grammar rejects."""
        if self._check_below and is_misdrawn(result, self._check_below):
            return "preempted"  # the token is drawn again in the next batch
        token_id: int = result.token_id
        try:
            matcher = self._matcher(row)
        except ValueError:
            return "continue_alone"  # the run that continues it reports what is wrong with the grammar
        stops = token_id in self.jobs[row].options.stop_ids and (matcher is None or matcher.may_stop)
        if matcher is not None and not self._accept(row, matcher, token_id, stops=stops):
            return "continue_alone"
        return "stop" if stops else None

    def _matcher(self, row: int) -> GrammarMatcher | None:
        """Return the row's matcher, or None without a grammar. Raises ValueError for an invalid grammar."""
        grammar = self.jobs[row].options.grammar
        if self._grammars is None or not grammar:
            return None
        if row not in self._matchers:
            began = time.perf_counter()
            matcher = self._matchers[row] = self._grammars.matcher(grammar)
            for token_id in self.jobs[row].partial_answer:
                matcher.consume(token_id)
            self._grammar_s[row] += time.perf_counter() - began
        return self._matchers[row]

    def _accept(self, row: int, matcher: GrammarMatcher, token_id: int, *, stops: bool) -> bool:
        """Return whether the grammar allows the token; the matcher consumes it unless the row stops here."""
        began = time.perf_counter()
        allowed = matcher.allows(token_id)
        if allowed and not stops:
            matcher.consume(token_id)
        self._grammar_s[row] += time.perf_counter() - began
        return allowed and not matcher.error

    def _close_row(self, row: int, end: RunEnd, message: str = "") -> bool:
        self._open[row] = False
        while self._last_row > 0 and not self._open[self._last_row]:
            self._last_row -= 1
        self._end(self.jobs[row], end, message)
        return True
