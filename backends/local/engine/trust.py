"""Whether answers that a grammar holds from their first token on may share a batch, as those do that may begin freely.

They may while most of them keep to their grammar by themselves: each that does not leaves its batch at once and is read
again. A model of which few do is tried again now and then, for its next callers may ask for something else.
"""

# How much one answer weighs, from which share on they are trusted, and after how many that were not one is.
ONE_WEIGHS, TRUSTED, TRIED_EVERY = 0.2, 0.5, 16
# Who has said so many tokens before it left was worth the batch.
WORTH_TOKENS = 16


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
        self._share += ONE_WEIGHS * (kept - self._share)
