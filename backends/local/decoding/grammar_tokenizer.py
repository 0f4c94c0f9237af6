"""Builds the tokenizer that grammars use. It never encodes a grammar's text as a control token.

llguidance encodes the texts of a grammar with the model's tokenizer, which reads <|im_end|> in a text as the end of the
answer. A second tokenizer, to which control tokens are plain text, encodes them here; a grammar names control tokens
without quotes.
Source: https://github.com/guidance-ai/llguidance/blob/main/python/llguidance/_tokenizer.py
"""

import json
import re
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer

MAX_WORD_BYTES = 64
# As in backends/local/model/tokenizer.py: added tokens that look like tags control the model, too.
TAG = re.compile(r"[<\[]\S*[>\]]")


def build_tokenizer(tokenizer_json: str, vocabulary_size: int, stop_ids: Sequence[int]) -> Any:
    """Return an LLTokenizer. Takes a second or two for a large vocabulary."""
    from llguidance import LLTokenizer, TokenizerWrapper

    config = json.loads(tokenizer_json)
    original = LLTokenizer(tokenizer_json, n_vocab=vocabulary_size, eos_token=list(stop_ids))
    plain = PlainTextTokenizer(config, original, vocabulary_size, stop_ids)
    return LLTokenizer(TokenizerWrapper(plain), n_vocab=vocabulary_size, eos_token=list(stop_ids))


class PlainTextTokenizer:
    """Encodes control tokens in a text as plain text. Its attributes are what llguidance's TokenizerWrapper reads."""

    bos_token_id = None

    def __init__(self, config: dict[str, Any], original: Any, vocabulary_size: int, stop_ids: Sequence[int]) -> None:
        self.eos_token_id = stop_ids[0] if stop_ids else original.eos_token
        self.tokens = [original.decode_bytes([number]) for number in range(vocabulary_size)]
        controls = {token["id"] for token in config["added_tokens"] if _is_control(token)}
        special = (number for number in range(vocabulary_size) if original.is_special_token(number))
        self.special_token_ids = sorted(controls.union(stop_ids, special))
        for token in config["added_tokens"]:
            token["special"] = _is_control(token)
        self._tokenizer = Tokenizer.from_str(json.dumps(_without_prefix_space(config)))
        self._tokenizer.encode_special_tokens = True
        excluded = set(self.special_token_ids)
        self._ids = {word: number for number, word in enumerate(self.tokens) if word and number not in excluded}
        self._longest = min(max(map(len, self._ids)), MAX_WORD_BYTES)

    def __call__(self, text: str) -> list[int]:
        if isinstance(text, bytes):  # the wrapper tests whether bytes are supported
            raise TypeError("The text is bytes; a string is required.")
        ids = list(self._tokenizer.encode(text, add_special_tokens=False).ids)
        wanted = text.encode()
        return ids if b"".join(self.tokens[number] for number in ids) == wanted else self._encode_greedily(wanted)

    def _encode_greedily(self, wanted: bytes) -> list[int]:
        """Encode with the longest tokens that match, for a tokenizer that normalizes its input."""
        ids: list[int] = []
        start = 0
        while start < len(wanted):
            ends = range(min(start + self._longest, len(wanted)), start, -1)
            end = next((end for end in ends if wanted[start:end] in self._ids), None)
            if end is None:
                return ids
            ids.append(self._ids[wanted[start:end]])
            start = end
        return ids


def _without_prefix_space(config: Any) -> Any:
    """Return the config of a tokenizer that adds no space in front of a text: forced texts start anywhere."""
    if isinstance(config, list):
        return [_without_prefix_space(each) for each in config if not (isinstance(each, dict) and _prepends(each))]
    if not isinstance(config, dict):
        return config
    changed = {name: None if name == "normalizer" and _prepends(value) else value for name, value in config.items()}
    for name in ("normalizer", "pre_tokenizer", "normalizers", "pretokenizers"):
        if name in changed:
            changed[name] = _without_prefix_space(changed[name])
    for name, value in (("add_prefix_space", False), ("prepend_scheme", "never")):
        if name in changed:
            changed[name] = value
    return changed


def _prepends(step: Any) -> bool:
    return isinstance(step, dict) and step.get("type") == "Prepend"


def _is_control(token: dict[str, Any]) -> bool:
    return bool(token["content"].strip() and (token["special"] or TAG.fullmatch(token["content"])))
