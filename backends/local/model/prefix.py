"""How much of a prompt comes from instructions and tools alone: what the engine can keep from one call to the next.

Two probes with other first messages of a user are rendered and cut into tokens like the prompt itself. Where they
begin alike, nothing depends on what the user says, not even how the last word before it is cut.
"""

from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from threading import Lock
from typing import Any

import orjson
from cachetools import LRUCache

from proxy.wire.errors import RequestError

JSON = dict[str, Any]
Read = Callable[[Sequence[JSON], Sequence[JSON], Mapping[str, Any]], list[int]]

KEPT = 128
# They begin with what no tokenizer joins to the same letters before them.
PROBES = ("a b", "0\n", "(é")
# A prompt of which less is left would be given back as part of the answer.
LEAST_LEFT = 2


class Prefixes:
    """Remembers the beginnings of the prompts of a model, the last used ones of them."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._kept: LRUCache[bytes, tuple[int, ...]] = LRUCache(KEPT)
        self._lock = Lock()  # long prompts are read in threads of their own

    def length(
        self, messages: Sequence[JSON], tools: Sequence[JSON], variables: Mapping[str, Any], ids: Sequence[int]
    ) -> int:
        """How many of a prompt's first tokens come from its leading instructions and its tools."""
        known = self._known(_leading(messages), tools, variables)
        begun = tuple(ids[: len(known)])
        shared = len(known) if begun == known else _shared([known, begun])
        return max(0, min(shared, len(ids) - LEAST_LEFT))

    def _known(self, head: Sequence[JSON], tools: Sequence[JSON], variables: Mapping[str, Any]) -> tuple[int, ...]:
        try:
            told = orjson.dumps([head, tools, variables], option=orjson.OPT_NON_STR_KEYS | orjson.OPT_SORT_KEYS)
        except TypeError:  # nested deeper than any reader goes
            return ()
        key = blake2b(told, digest_size=16).digest()
        with self._lock:
            known = self._kept.get(key)
        if known is None:
            known = self._probed(head, tools, variables)
            with self._lock:
                self._kept[key] = known
        return known

    def _probed(self, head: Sequence[JSON], tools: Sequence[JSON], variables: Mapping[str, Any]) -> tuple[int, ...]:
        try:
            probes = [self._read([*head, {"role": "user", "content": said}], tools, variables) for said in PROBES]
        except RequestError:  # a template may refuse a conversation that the real one is not
            return ()
        return tuple(probes[0][: _shared(probes)])


def _leading(messages: Sequence[JSON]) -> list[JSON]:
    end = next((index for index, each in enumerate(messages) if each.get("role") != "system"), len(messages))
    return list(messages[:end])


def _shared(sequences: Sequence[Sequence[int]]) -> int:
    """How many elements all of them have in common at the beginning."""
    same = (len(set(column)) == 1 for column in zip(*sequences, strict=False))
    return next((index for index, alike in enumerate(same) if not alike), min(map(len, sequences)))
