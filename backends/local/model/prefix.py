"""How much of a prompt depends only on instructions and tools: what the engine can reuse for another call.

Probe conversations with different first user messages are rendered and tokenized like the prompt itself. Where they
begin with the same tokens, nothing depends on the user's message, not even the tokens of the last word before it.
"""

from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from threading import Lock
from typing import Any

import orjson
from cachetools import LRUCache

from backends.local.work_budget import WorkLimitReached
from proxy.wire.errors import RequestError

JSON = dict[str, Any]
Tokenize = Callable[[Sequence[JSON], Sequence[JSON], Mapping[str, Any]], list[int]]

MAX_CACHED = 128
# Their first characters differ so much that no tokenizer joins them to the text before them in the same way.
PROBES = ("a b", "0\n", "(é")
# A prompt of which less remains would be returned as part of the answer.
MIN_REMAINING = 2


class PrefixFinder:
    """Finds the shared beginnings of a model's prompts, and caches the most recently used ones."""

    def __init__(self, tokenize: Tokenize) -> None:
        self._tokenize = tokenize
        self._cache: LRUCache[bytes, tuple[int, ...]] = LRUCache(MAX_CACHED)
        self._lock = Lock()  # long prompts are prepared in threads

    def prefix_length(
        self, messages: Sequence[JSON], tools: Sequence[JSON], variables: Mapping[str, Any], ids: Sequence[int]
    ) -> int:
        """Return how many of a prompt's first tokens depend only on its leading instructions and its tools."""
        prefix = self._find(_leading(messages), tools, variables)
        beginning = tuple(ids[: len(prefix)])
        shared = len(prefix) if beginning == prefix else _common_length([prefix, beginning])
        return max(0, min(shared, len(ids) - MIN_REMAINING))

    def _find(self, head: Sequence[JSON], tools: Sequence[JSON], variables: Mapping[str, Any]) -> tuple[int, ...]:
        try:
            encoded = orjson.dumps([head, tools, variables], option=orjson.OPT_NON_STR_KEYS | orjson.OPT_SORT_KEYS)
        except TypeError:  # nested too deeply to encode
            return ()
        key = blake2b(encoded, digest_size=16).digest()
        with self._lock:
            prefix = self._cache.get(key)
        if prefix is None:
            try:
                prefix = self._probe(head, tools, variables)
            except WorkLimitReached:  # a request with a larger budget may succeed
                return ()
            with self._lock:
                self._cache[key] = prefix
        return prefix

    def _probe(self, head: Sequence[JSON], tools: Sequence[JSON], variables: Mapping[str, Any]) -> tuple[int, ...]:
        try:
            prompts = [self._tokenize([*head, {"role": "user", "content": text}], tools, variables) for text in PROBES]
        except RequestError:  # a template may refuse the probe although it accepts the conversation
            return ()
        return tuple(prompts[0][: _common_length(prompts)])


def _leading(messages: Sequence[JSON]) -> list[JSON]:
    """Return the system messages at the beginning."""
    end = next((index for index, each in enumerate(messages) if each.get("role") != "system"), len(messages))
    return list(messages[:end])


def _common_length(sequences: Sequence[Sequence[int]]) -> int:
    """Return how many elements all sequences have in common at the beginning."""
    same = (len(set(column)) == 1 for column in zip(*sequences, strict=False))
    return next((index for index, alike in enumerate(same) if not alike), min(map(len, sequences)))
