"""The logprobs of a text's tokens, as the protocol defines them.

Source: https://platform.openai.com/docs/api-reference/responses/object#responses/object-output
"""

from collections import deque
from collections.abc import Callable
from typing import Any

from backends.local.decoding.job import Token
from backends.local.speech import Text

JSON = dict[str, Any]


class LogprobTracker:
    """Assigns the tokens of one answer to its texts.

    A token whose text is part of two texts belongs to the first. Tokens of tags, reasoning and calls belong to none.
    """

    def __init__(self, token_bytes: Callable[[int], bytes], top: int) -> None:
        self._token_bytes = token_bytes
        self._top = top
        self._tokens: deque[tuple[int, int, Token]] = deque()  # with the offsets of their texts
        self._incomplete: list[Token] = []  # those that are part of a character which is not complete
        self._offset = 0

    def add(self, token: Token, text: str) -> None:
        """Add a token, with the text that it completed."""
        self._incomplete.append(token)
        if text:
            end = self._offset + len(text)
            self._tokens.extend((self._offset, end, each) for each in self._incomplete)
            self._offset, self._incomplete = end, []

    def take(self, segment: Text) -> list[JSON]:
        """Return the logprobs of a text's tokens. Texts must be given in order."""
        end = segment.offset + len(segment.text)
        taken: list[JSON] = []
        while self._tokens and self._tokens[0][0] < end:
            _, token_end, token = self._tokens.popleft()
            if token_end > segment.offset:
                top = [self._entry(*each) for each in token.top[: self._top]]
                # A token that a grammar forced has no logprob: its probability was 1.
                taken.append(self._entry(token.id, token.logprob or 0.0) | {"top_logprobs": top})
        return taken

    def _entry(self, token: int, logprob: float) -> JSON:
        content = self._token_bytes(token)
        return {"token": content.decode(errors="backslashreplace"), "bytes": list(content), "logprob": logprob}
