"""Runs one batch: what goes into the library's one call, and what its callback makes of the tokens.

    jobs  ->  generate_batch(prompts, callback=take)  ->  emit(job, token) ... ended(job, "stop", "")

Everything of one row alone (its limit, its stop tokens, that its caller left, that its grammar forbids what the model
would say, that it is called back) is the callback's business: the library knows but one set of options for all rows.
Source: https://opennmt.net/CTranslate2/python/ctranslate2.Generator.html#ctranslate2.Generator.generate_batch
"""  # fmt: skip

import time
from collections.abc import Callable, Sequence
from typing import Any

from backends.local.decoding.grammar_matcher import Grammars, Matcher
from backends.local.decoding.job import End, Job, Token
from backends.local.decoding.sampling import sampling

Emit = Callable[[Job, Token], None]
Ended = Callable[[Job, End, str], None]

# For how long in all the grammar of one row may keep the others waiting; then its job goes on alone.
MAX_GRAMMAR_S = 0.5


def run_batch(  # noqa: PLR0913  a seam: the same shape for every way to run jobs
    generator: Any, vocabulary: Sequence[str], jobs: Sequence[Job], prefix: Sequence[int], emit: Emit, ended: Ended,
    *, stepped: Callable[[], None] = lambda: None, grammars: Grammars | None = None,
) -> None:  # fmt: skip
    """Make the answers of jobs with the same sampling, and return when all have ended: each of them once.

    `prefix` is what all prompts begin with and the library is to keep; at least two tokens of each come behind it.
    `stepped` is called when every row has had its token. The library calls all three in a thread of its own. With
    `grammars` a row ends as "alone" before the token that its grammar forbids, or when that keeps others waiting.
    """
    batch = Batch(jobs, emit, ended, stepped, grammars)
    try:
        generator.generate_batch(
            [[vocabulary[number] for number in job.prompt[len(prefix):]] for job in batch.jobs],
            static_prompt=[vocabulary[number] for number in prefix] or None, include_prompt_in_result=False,
            max_length=max(job.options.max_tokens for job in jobs), end_token=[], callback=batch.take,
            return_scores=any(job.options.top_logprobs is not None for job in jobs),
            **sampling(jobs[0].options, len(vocabulary)),
        )  # fmt: skip
    except Exception as error:  # noqa: BLE001  whatever the library raises, its jobs have failed and the others go on
        batch.fail(f"{type(error).__name__}: {error}")
    batch.fail("The library returned before it was at the end.")


class Batch:
    """The rows of one call, longest prompt first: in this order the library tells of them at every step."""

    def __init__(
        self, jobs: Sequence[Job], emit: Emit, ended: Ended, stepped: Callable[[], None],
        grammars: Grammars | None = None,
    ) -> None:  # fmt: skip
        self.jobs = sorted(jobs, key=lambda job: -len(job.prompt))
        self._made = [0] * len(jobs)
        self._open = [True] * len(jobs)
        self._last = len(jobs) - 1  # the row with which a step is complete
        self._emit = emit
        self._ended = ended
        self._stepped = stepped
        self._grammars = grammars
        self._matchers: dict[int, Matcher] = {}  # of the rows that have a grammar, from their first token on
        self._grammar_s = [0.0] * len(jobs)

    def take(self, result: Any) -> bool:
        """A token of one row; True ends the row. An exception in here would take down the batch, or the process."""
        try:
            row: int = result.batch_id
            complete = row == self._last
            over = self._over(row, result)
            if complete:
                self._stepped()
        except BaseException:  # noqa: BLE001  the row stays open, so it is told as failed when the call is over
            return True
        return over

    def fail(self, message: str) -> None:
        """Whatever is still open ends here."""
        for row, is_open in enumerate(self._open):
            if is_open:
                self._end(row, "failed", message)
        self._stepped()

    def _over(self, row: int, result: Any) -> bool:
        if not self._open[row]:
            return True
        finish = self._finish(row, result)
        return finish is not None and self._end(row, finish)

    def _finish(self, row: int, result: Any) -> End | None:
        """What becomes of a row with this token."""
        job, number = self.jobs[row], result.token_id
        if job.cancelled:
            return "stop"
        ended = self._ended_before(row, number)
        if ended is not None:
            return ended
        self._made[row] += 1
        self._emit(job, Token(number) if job.options.top_logprobs is None else Token(number, result.log_prob))
        if row in self._matchers and self._matchers[row].over:
            return "stop"
        if result.is_last or self._made[row] >= job.options.max_tokens:
            return "length"
        if job.recalled:
            return "again"
        return "alone" if self._grammar_s[row] > MAX_GRAMMAR_S else None

    def _ended_before(self, row: int, number: int) -> End | None:
        """How a row ends without this token, if it does: one that ends answers, or that its grammar forbids."""
        try:
            matcher = self._matcher(row)
        except ValueError:
            return "alone"  # whoever goes on with it will say what is wrong
        ends = number in self.jobs[row].options.stop_ids and (matcher is None or matcher.accepts)
        if matcher is not None and not self._follows(row, matcher, number, ends=ends):
            return "alone"
        return "stop" if ends else None

    def _matcher(self, row: int) -> Matcher | None:
        """What follows the row through its grammar, should it have one. Raises ValueError for a bad one."""
        grammar = self.jobs[row].options.grammar
        if self._grammars is None or not grammar:
            return None
        if row not in self._matchers:
            began = time.perf_counter()
            matcher = self._matchers[row] = self._grammars.matcher(grammar)
            for number in self.jobs[row].begun:
                matcher.consume(number)
            self._grammar_s[row] += time.perf_counter() - began
        return self._matchers[row]

    def _follows(self, row: int, matcher: Matcher, number: int, *, ends: bool) -> bool:
        """Whether the grammar allows this token; the matcher is then behind it."""
        began = time.perf_counter()
        allowed = matcher.allows(number)
        if allowed and not ends:
            matcher.consume(number)
        self._grammar_s[row] += time.perf_counter() - began
        return allowed and not matcher.error

    def _end(self, row: int, finish: End, message: str = "") -> bool:
        self._open[row] = False
        while self._last > 0 and not self._open[self._last]:
            self._last -= 1
        self._ended(self.jobs[row], finish, message)
        return True
