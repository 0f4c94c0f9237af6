"""Whether answers that a grammar holds from their first token on may share a batch, as those do that may begin freely.

They may while most of them keep to their grammar by themselves: each that does not leaves its batch at once and is read
again. A model of which few do is tried again now and then, for its next callers may ask for something else.
"""

# How much one answer weighs, from which share on they are trusted, and after how many that were not one is.
TRUST_WEIGHS, TRUSTED, TRIED_EVERY = 0.2, 0.5, 16
# Who has said so many tokens before it left was worth the batch.
WORTH_TOKENS = 16


# How much one answer weighs in the mean of their lengths, and what that is before the first.
ONE_WEIGHS, FIRST_GUESS = 0.1, 64.0
# Where nearly all are cut off, their limits tell more than their mean.
FEWEST_ENDS = 0.25


class MeanLength:
    """How many tokens answers have, lately.

    One that was cut off at its limit tells only that it would have had more: all tokens are divided by how many answers
    came to an end of their own, the mean of an exponential distribution of which some values are censored.
    """

    def __init__(self) -> None:
        self._tokens, self._ends = FIRST_GUESS, 1.0  # means of one answer

    def see(self, tokens: int, *, cut: bool) -> None:
        self._tokens += ONE_WEIGHS * (tokens - self._tokens)
        self._ends += ONE_WEIGHS * ((not cut) - self._ends)

    @property
    def tokens(self) -> float:
        return self._tokens / max(self._ends, FEWEST_ENDS)

    def left(self, said: int, limit: int) -> float:
        """How many an answer will yet have, within its limit: of one that has more than usual nobody knows."""
        usual = self.tokens
        return min(limit, max(usual - said, usual / 2))


class Trust:
    """Of one model."""

    def __init__(self) -> None:
        self._share = 1.0
        self._asked = 0

    @property
    def firm(self) -> bool:
        return self._share >= TRUSTED

    def given(self) -> bool:
        """Whether the next one may."""
        if self.firm:
            return True
        self._asked += 1
        return self._asked % TRIED_EVERY == 0

    def see(self, *, left_after: int | None) -> None:
        """One that might ended in its batch, or left it after so many tokens."""
        kept = left_after is None or left_after >= WORTH_TOKENS
        self._share += TRUST_WEIGHS * (kept - self._share)
