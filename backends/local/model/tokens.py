"""Text to token ids and back; nobody but the chat template can write a control token into a prompt."""

import json
import re
from collections.abc import Callable, Iterable, Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from backends.local.model.spelling import spelling
from backends.local.model.template import Control
from proxy.wire.errors import RequestError

# Added tokens that are not marked special steer the model too when they look like a tag: <tool_call>, [/INST].
TAG = re.compile(r"[<\[]\S*[>\]]")
# How many tokens of the prompt a decoder must know so that the first word keeps its space.
PROMPT_TAIL = 8


class Tokens:
    """The model's tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        added = tokenizer.get_added_tokens_decoder()
        self._tokenizer = tokenizer
        self.spell = spelling(tokenizer)
        self._plain = _without_controls(tokenizer)
        self.controls = {
            token.content: number
            for number, token in added.items()
            if token.content.strip() and (token.special or TAG.fullmatch(token.content))
        }
        self.size = tokenizer.get_vocab_size(with_added_tokens=True)
        self.added = tuple(token.content for token in added.values())
        self._control_ids = frozenset(self.controls.values())
        self._special_ids = frozenset(number for number, token in added.items() if token.special)

    def encode(self, pieces: Sequence[str]) -> list[int]:
        """The ids of a rendered prompt. Only its `Control` pieces become control tokens, whatever its texts say."""
        encoding = self._tokenizer.encode("".join(pieces), add_special_tokens=False)
        ids = encoding.ids
        found = [
            (number, span) for number, span in zip(ids, encoding.offsets, strict=True) if number in self._control_ids
        ]
        if _are(found, self._written(pieces)):
            return ids
        return self._encode_apart(pieces)

    def decoder(self, prompt: Sequence[int], *, shows: Iterable[str] = ()) -> Callable[[int], str]:
        """Turns tokens into text one by one: "" until a character is whole, and for control tokens not in `shows`."""
        stream = DecodeStream(ids=list(prompt[-PROMPT_TAIL:]), skip_special_tokens=False)
        mute = self._special_ids - {self.controls[tag] for tag in shows if tag in self.controls}

        def hear(token: int) -> str:
            return "" if token in mute else stream.step(self._tokenizer, token) or ""

        return hear

    def _written(self, pieces: Sequence[str]) -> list[tuple[int, int]]:
        """The control tokens that the template wrote, and where each begins."""
        written, place = [], 0
        for piece in pieces:
            if isinstance(piece, Control):
                written.append((self.controls[piece], place))
            place += len(piece)
        return written

    def _encode_apart(self, pieces: Sequence[str]) -> list[int]:
        """As `encode`, for prompts in which somebody's text looks like a control token: it is read letter by letter."""
        ids: list[int] = []
        for piece in pieces:
            if isinstance(piece, Control):
                ids.append(self.controls[piece])
                continue
            read = self._plain.encode(piece, add_special_tokens=False).ids
            if not self._control_ids.isdisjoint(read):
                raise RequestError("The input holds a control token of this model.", param="input")
            ids += read
        return ids


def _are(found: Sequence[tuple[int, tuple[int, int]]], written: Sequence[tuple[int, int]]) -> bool:
    """Whether the control tokens found are those written, and not others in their stead. Some swallow space around."""
    return len(found) == len(written) and all(
        token == number and begin <= place < end
        for (token, (begin, end)), (number, place) in zip(found, written, strict=True)
    )


def _without_controls(tokenizer: Tokenizer) -> Tokenizer:
    """A second tokenizer to which every added token is text: the switch belongs to the whole instance."""
    described = json.loads(tokenizer.to_str())
    for token in described["added_tokens"]:
        token["special"] = True
    plain = Tokenizer.from_str(json.dumps(described))
    plain.encode_special_tokens = True
    return plain
