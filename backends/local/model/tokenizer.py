"""The model's tokenizer: text to token ids and back, with control tokens only where the chat template wrote them.

Source: https://huggingface.co/docs/tokenizers/api/decoders
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence

from tokenizers import Tokenizer

from backends.local.model.chat_template import ControlToken
from backends.local.model.detokenizer import Detokenizers, byte_letters
from backends.local.work_budget import current_budget
from proxy.wire.errors import RequestError

# Added tokens that are not marked special also control the model when they look like a tag: <tool_call>, [/INST].
TAG = re.compile(r"[<\[]\S*[>\]]")
BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
# The work of tokenizing a character of one byte; the slowest texts have characters of several bytes.
CHAR_UNITS, MAX_CHAR_BYTES = 150, 3
SPACE = "\u2581"


class ModelTokenizer:
    def __init__(self, tokenizer: Tokenizer) -> None:
        added = tokenizer.get_added_tokens_decoder()
        self._tokenizer = tokenizer
        self._detokenizers = Detokenizers(tokenizer)
        self.token_bytes = build_token_bytes(tokenizer)
        self._plain = _without_control_tokens(tokenizer)
        self.control_tokens = {
            token.content: token_id
            for token_id, token in added.items()
            if token.content.strip() and (token.special or TAG.fullmatch(token.content))
        }
        self.size = tokenizer.get_vocab_size(with_added_tokens=True)
        self.added_tokens = tuple(token.content for token in added.values())
        self._control_ids = frozenset(self.control_tokens.values())
        self._special_ids = frozenset(token_id for token_id, token in added.items() if token.special)

    def encode(self, pieces: Sequence[str]) -> list[int]:
        """Return the ids of a rendered prompt. Only its `ControlToken` pieces become control tokens."""
        text = "".join(pieces)
        _spend(text)
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        ids = encoding.ids
        found = [
            (token_id, span)
            for token_id, span in zip(ids, encoding.offsets, strict=True)
            if token_id in self._control_ids
        ]
        if _match(found, self._locate_control_tokens(pieces)):
            return ids
        return self._encode_separately(pieces)

    def build_detokenizer(self, prompt: Sequence[int], *, visible: Iterable[str] = ()) -> Callable[[int], str]:
        """Return a function that turns the tokens after a prompt into text, one at a time.

        It returns "" until a character is complete, and for control tokens that are not `visible`.
        """
        hidden = self._special_ids - {self.control_tokens[tag] for tag in visible if tag in self.control_tokens}
        return self._detokenizers.build(prompt, hidden)

    def _locate_control_tokens(self, pieces: Sequence[str]) -> list[tuple[int, int]]:
        """Return the control tokens that the template wrote, with their positions."""
        located, position = [], 0
        for piece in pieces:
            if isinstance(piece, ControlToken):
                located.append((self.control_tokens[piece], position))
            position += len(piece)
        return located

    def _encode_separately(self, pieces: Sequence[str]) -> list[int]:
        """Encode a prompt in which a caller's text looks like a control token: that text becomes ordinary tokens."""
        ids: list[int] = []
        for piece in pieces:
            if isinstance(piece, ControlToken):
                ids.append(self.control_tokens[piece])
                continue
            _spend(piece)
            encoded = self._plain.encode(piece, add_special_tokens=False).ids
            if not self._control_ids.isdisjoint(encoded):
                raise RequestError("The input contains a control token of this model.", param="input")
            ids += encoded
        return ids


def _spend(text: str) -> None:
    current_budget().spend(CHAR_UNITS * len(text) * (1 if text.isascii() else MAX_CHAR_BYTES))


def build_token_bytes(tokenizer: Tokenizer) -> Callable[[int], bytes]:
    """Return a function that returns the bytes of a token; none for an unknown id.

    A character may take several tokens, so that a token by itself need not be text.
    """
    added = {token_id: token.content.encode() for token_id, token in tokenizer.get_added_tokens_decoder().items()}
    decoder = tokenizer.decoder
    is_byte_level = decoder is not None and b"ByteLevel" in decoder.__getstate__()
    letters = byte_letters() if is_byte_level else None

    def token_bytes(token: int) -> bytes:
        if token in added:
            return added[token]
        text = tokenizer.id_to_token(token) or ""
        if letters is not None:
            return bytes(letters[letter] for letter in text if letter in letters)
        byte = BYTE_TOKEN.fullmatch(text)
        return bytes.fromhex(byte[1]) if byte else text.replace(SPACE, " ").encode()

    return token_bytes


def _match(found: Sequence[tuple[int, tuple[int, int]]], written: Sequence[tuple[int, int]]) -> bool:
    """Whether the control tokens found are exactly those written. Some tokens include the space around them."""
    return len(found) == len(written) and all(
        token == written_token and begin <= position < end
        for (token, (begin, end)), (written_token, position) in zip(found, written, strict=True)
    )


def _without_control_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """Return a second tokenizer to which every added token is text, because the switch applies to a whole instance."""
    described = json.loads(tokenizer.to_str())
    for token in described["added_tokens"]:
        token["special"] = True
    plain = Tokenizer.from_str(json.dumps(described))
    plain.encode_special_tokens = True
    return plain
