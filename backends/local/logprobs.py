"""Which tokens a text is made of, with their logprobs as the protocol has them.

Source: https://platform.openai.com/docs/api-reference/responses/object#responses/object-output
"""

from collections import deque
from collections.abc import Callable
from typing import Any

from backends.local.decoding.job import Token
from backends.local.speech import Text

JSON = dict[str, Any]


class Logprobs:
    """Hears the tokens of one answer, and tells for each text of it those that it has not told yet.

    A token whose text is part of two texts is told with the first. Tokens of tags, thoughts and calls are never told.
    """

    def __init__(self, spell: Callable[[int], bytes], top: int) -> None:
        self._spell = spell
        self._top = top
        self._heard: deque[tuple[int, int, Token]] = deque()  # with where its text begins and ends
        self._unsaid: list[Token] = []  # those that have begun a character which is not whole
        self._place = 0

    def hear(self, token: Token, text: str) -> None:
        """A token, and the text that there was more of when it came."""
        self._unsaid.append(token)
        if text:
            end = self._place + len(text)
            self._heard.extend((self._place, end, each) for each in self._unsaid)
            self._place, self._unsaid = end, []

    def of(self, said: Text) -> list[JSON]:
        """The logprobs of a text's tokens. Texts come in order."""
        end = said.at + len(said.text)
        told: list[JSON] = []
        while self._heard and self._heard[0][0] < end:
            _, ended, token = self._heard.popleft()
            if ended > said.at:
                top = [self._entry(*each) for each in token.top[: self._top]]
                # What a grammar left no choice about came without asking the model, and was certain.
                told.append(self._entry(token.id, token.logprob or 0.0) | {"top_logprobs": top})
        return told

    def _entry(self, token: int, logprob: float) -> JSON:
        spelt = self._spell(token)
        return {"token": spelt.decode(errors="backslashreplace"), "bytes": list(spelt), "logprob": logprob}
