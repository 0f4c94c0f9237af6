"""A model's vocabulary as grammars need it: no text of a grammar is ever spelled with a control token.

Of a tokenizer.json llguidance spells with the tokenizer as it stands, which reads <|im_end|> in a text as the end. Here
the same tokens are spelled by a second one, to which the controls are text; a grammar names them without quotes.
Source: https://github.com/guidance-ai/llguidance/blob/main/python/llguidance/_tokenizer.py
"""

import json
import re
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer

MAX_WORD_BYTES = 64
# As in backends/local/model/tokens.py: who looks like a tag steers the model too.
TAG = re.compile(r"[<\[]\S*[>\]]")


def spelled(tokenizer_json: str, vocabulary_size: int, stop_ids: Sequence[int]) -> Any:
    """An LLTokenizer. Takes a second or two for a large vocabulary."""
    from llguidance import LLTokenizer, TokenizerWrapper

    described = json.loads(tokenizer_json)
    read = LLTokenizer(tokenizer_json, n_vocab=vocabulary_size, eos_token=list(stop_ids))
    words = Words(described, read, vocabulary_size, stop_ids)
    return LLTokenizer(TokenizerWrapper(words), n_vocab=vocabulary_size, eos_token=list(stop_ids))


class Words:
    """As llguidance's TokenizerWrapper reads it."""

    bos_token_id = None

    def __init__(self, described: dict[str, Any], read: Any, vocabulary_size: int, stop_ids: Sequence[int]) -> None:
        self.eos_token_id = stop_ids[0] if stop_ids else read.eos_token
        self.tokens = [read.decode_bytes([number]) for number in range(vocabulary_size)]
        controls = {token["id"] for token in described["added_tokens"] if _is_control(token)}
        self.special_token_ids = sorted(
            controls.union(stop_ids, (number for number in range(vocabulary_size) if read.is_special_token(number)))
        )
        for token in described["added_tokens"]:
            token["special"] = _is_control(token)
        self._plain = Tokenizer.from_str(json.dumps(_without_prefix(described)))
        self._plain.encode_special_tokens = True
        never = set(self.special_token_ids)
        self._ids = {word: number for number, word in enumerate(self.tokens) if word and number not in never}
        self._longest = min(max(map(len, self._ids)), MAX_WORD_BYTES)

    def __call__(self, text: str) -> list[int]:
        if isinstance(text, bytes):  # it tries whether bytes are taken
            raise TypeError("Text is given as a string.")
        ids = list(self._plain.encode(text, add_special_tokens=False).ids)
        wanted = text.encode()
        return ids if b"".join(self.tokens[number] for number in ids) == wanted else self._exactly(wanted)

    def _exactly(self, wanted: bytes) -> list[int]:
        """In the longest words that fit, for a tokenizer that changes what it reads."""
        ids: list[int] = []
        place = 0
        while place < len(wanted):
            ends = range(min(place + self._longest, len(wanted)), place, -1)
            end = next((end for end in ends if wanted[place:end] in self._ids), None)
            if end is None:
                return ids
            ids.append(self._ids[wanted[place:end]])
            place = end
        return ids


def _without_prefix(described: Any) -> Any:
    """A tokenizer that puts no blank before what it reads: forced texts begin anywhere."""
    if isinstance(described, list):
        return [_without_prefix(each) for each in described if not (isinstance(each, dict) and _prepends(each))]
    if not isinstance(described, dict):
        return described
    changed = {name: None if name == "normalizer" and _prepends(one) else one for name, one in described.items()}
    for name in ("normalizer", "pre_tokenizer", "normalizers", "pretokenizers"):
        if name in changed:
            changed[name] = _without_prefix(changed[name])
    for name, value in (("add_prefix_space", False), ("prepend_scheme", "never")):
        if name in changed:
            changed[name] = value
    return changed


def _prepends(step: Any) -> bool:
    return isinstance(step, dict) and step.get("type") == "Prepend"


def _is_control(token: dict[str, Any]) -> bool:
    return bool(token["content"].strip() and (token["special"] or TAG.fullmatch(token["content"])))
