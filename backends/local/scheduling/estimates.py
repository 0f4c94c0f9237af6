"""Learns from finished answers: how long answers are, and how often a model follows its grammar by itself."""

# The weight of one answer in the moving average of lengths, and the length that is assumed before the first answer.
LENGTH_WEIGHT, INITIAL_TOKENS = 0.1, 64.0
# Where nearly all answers are cut off, their limits say more than the average.
MIN_COMPLETE_FRACTION = 0.25
# The weight of one answer in the moving average of adherence, from which average on jobs share batches, and how many
# jobs pass between two probes below it.
ADHERENCE_WEIGHT, SHARING_THRESHOLD, PROBE_EVERY = 0.2, 0.5, 16
# A row that left its batch after this many tokens was still worth sharing it.
MIN_USEFUL_TOKENS = 16


class AnswerLength:
    """Estimates how many tokens an answer has.

    An answer that was cut off at its limit only shows that it would have been longer. All tokens are therefore divided
    by the number of answers that ended by themselves: the mean of an exponential distribution with censored values.
    """

    def __init__(self) -> None:
        self._tokens, self._complete = INITIAL_TOKENS, 1.0  # averages per answer
        self.mean = INITIAL_TOKENS
        """The expected length of an answer without a limit."""

    def record(self, tokens: int, *, cut: bool) -> None:
        """Add an answer of this length; `cut`: it ended at its limit."""
        self._tokens += LENGTH_WEIGHT * (tokens - self._tokens)
        self._complete += LENGTH_WEIGHT * ((not cut) - self._complete)
        self.mean = self._tokens / max(self._complete, MIN_COMPLETE_FRACTION)

    def remaining(self, generated: int, limit: int) -> float:
        """Return how many further tokens to expect, at most `limit`; half the mean for an answer that is longer."""
        mean = self.mean
        return min(limit, max(mean - generated, mean / 2))


class GrammarAdherence:
    """Estimates whether jobs that are constrained from their first token on can share a batch.

    They can while most of them follow their grammar by themselves: a row that does not leaves its batch and has to be
    read again. Below the threshold one job in a while is a probe, because the next callers may want something else.
    """

    def __init__(self) -> None:
        self._average = 1.0
        self._refused = 0

    @property
    def is_high(self) -> bool:
        """Whether the model usually follows its grammars."""
        return self._average >= SHARING_THRESHOLD

    def admit_next(self) -> bool:
        """Return whether the next job may share a batch."""
        if self.is_high:
            return True
        self._refused += 1
        return self._refused % PROBE_EVERY == 0

    def record(self, *, left_after: int | None) -> None:
        """Add a job that shared a batch: it ended there (None), or left it after this many tokens."""
        useful = left_after is None or left_after >= MIN_USEFUL_TOKENS
        self._average += ADHERENCE_WEIGHT * (useful - self._average)
