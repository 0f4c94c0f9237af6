"""Generated tokens -> text, one at a time.

The library's `DecodeStream` does that for all tokenizers; it decodes the last tokens twice for each new one. The tokens
of a byte-level tokenizer are bytes, whatever is before them, so nearly all have a text of their own.
Source: https://github.com/huggingface/tokenizers/blob/main/tokenizers/src/pre_tokenizers/byte_level.rs (decode_chain)
"""

import json
from collections.abc import Callable, Collection, Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

# How many tokens of the prompt the stream needs so that the first word keeps its leading space.
PROMPT_TAIL_TOKENS = 8
REPLACEMENT = "\ufffd"

Detokenize = Callable[[int], str]


class Detokenizers:
    """Makes the functions that turn the tokens after a prompt into text: "" until a character is complete."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._letters = byte_letters() if is_byte_level(tokenizer) else None
        self._texts: dict[int, str | bytes] = {}  # of byte-level tokens, once seen; bytes: not a text by themselves

    def build(self, prompt: Sequence[int], hidden: Collection[int]) -> Detokenize:
        """Return the function for one answer; the text of `hidden` tokens is ""."""
        if self._letters is None or self._ends_in_character(prompt[-PROMPT_TAIL_TOKENS:]):
            return self._by_stream(prompt, hidden)
        return self._by_bytes(hidden)

    def _ends_in_character(self, tokens: Sequence[int]) -> bool:
        """Whether byte-level tokens end with a part of a character, which the next one may complete."""
        last = self._text_of(tokens[-1]) if tokens else ""
        if last and isinstance(last, str):
            return False  # whatever is before it
        texts = [self._text_of(token) for token in tokens]
        content = b"".join([text.encode() if isinstance(text, str) else text for text in texts])
        return content.decode(errors="replace").endswith(REPLACEMENT)

    def _by_stream(self, prompt: Sequence[int], hidden: Collection[int]) -> Detokenize:
        stream, tokenizer = (
            DecodeStream(ids=list(prompt[-PROMPT_TAIL_TOKENS:]), skip_special_tokens=False),
            self._tokenizer,
        )

        def detokenize(token: int) -> str:
            return "" if token in hidden else stream.step(tokenizer, token) or ""

        return detokenize

    def _by_bytes(self, hidden: Collection[int]) -> Detokenize:
        texts, pending = self._texts, b""

        def detokenize(token: int) -> str:
            nonlocal pending
            if token in hidden:
                return ""
            text = texts[token] if token in texts else self._text_of(token)
            if not pending and isinstance(text, str):
                return text
            pending += text.encode() if isinstance(text, str) else text
            decoded = pending.decode(errors="replace")
            if decoded.endswith(REPLACEMENT):  # which may become a character
                return ""
            pending = b""
            return decoded

        return detokenize

    def _text_of(self, token: int) -> str | bytes:
        """Return the text of a byte-level token, or its bytes if they are no text by themselves."""
        if token in self._texts:
            return self._texts[token]
        letters, content = self._letters or {}, self._tokenizer.id_to_token(token) or ""
        try:
            found = bytes(map(letters.__getitem__, content))
        except KeyError:  # an added token, which is a text
            found = content.encode()
        text = found.decode(errors="replace")
        self._texts[token] = known = found if REPLACEMENT in text else text
        return known


def is_byte_level(tokenizer: Tokenizer) -> bool:
    """Whether tokens are decoded as bytes and in no other way."""
    return tokenizer.decoder is not None and json.loads(tokenizer.decoder.__getstate__())["type"] == "ByteLevel"


def byte_letters() -> dict[str, int]:
    """Return the characters that represent bytes: printable ones as themselves, the others from U+0100 on.

    Source: https://github.com/openai/gpt-2/blob/master/src/encoder.py#L9
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}
