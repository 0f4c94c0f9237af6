"""The bytes that a token stands for: a character may take several tokens, so that none of them is text by itself.

Source: https://github.com/openai/gpt-2/blob/master/src/encoder.py#L9, https://huggingface.co/docs/tokenizers/api/decoders
"""

import re
from collections.abc import Callable

from tokenizers import Tokenizer

BYTE = re.compile(r"<0x([0-9A-F]{2})>")
SPACE = "\u2581"


def spelling(tokenizer: Tokenizer) -> Callable[[int], bytes]:
    """Tells the bytes of a token by its id; none for an id that the tokenizer does not know."""
    added = {number: token.content.encode() for number, token in tokenizer.get_added_tokens_decoder().items()}
    decoder = tokenizer.decoder
    bytes_as_letters = _bytes_as_letters() if decoder is not None and b"ByteLevel" in decoder.__getstate__() else None

    def spell(token: int) -> bytes:
        if token in added:
            return added[token]
        text = tokenizer.id_to_token(token) or ""
        if bytes_as_letters is not None:
            return bytes(bytes_as_letters[letter] for letter in text if letter in bytes_as_letters)
        byte = BYTE.fullmatch(text)
        return bytes.fromhex(byte[1]) if byte else text.replace(SPACE, " ").encode()

    return spell


def _bytes_as_letters() -> dict[str, int]:
    """Tokenizers of bytes write those that can be seen as they are, and the others as letters from U+0100 on."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    unseen = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(256 + place): byte for place, byte in enumerate(unseen)}
