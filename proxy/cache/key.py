"""The cache key: everything that can change an answer, in a canonical encoding.

    version  route  query  headers  hash of the fields

Each part has its length before it. Parameters, headers, fields and the names inside a field are in the order of their
names. Which of them count is said by classification.py.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from hashlib import sha256
from typing import Any

import orjson

from proxy.cache.classification import FIELDS_NOT_IN_KEY, PARAMETERS_NOT_IN_KEY, SIDE_EFFECTS, is_header_in_key
from proxy.routing.routes import Route
from proxy.wire.call import Call, unaffected_by
from proxy.wire.headers import HeaderNames

VERSION = b"headgate cache 7"
DEFAULTS = {"store": True, "background": False}
"""What a side effect is when the call does not name it: a call that names it so asks for nothing else."""

OFTEN_LEFT_OUT = FIELDS_NOT_IN_KEY | SIDE_EFFECTS
"""The fields that are not in the key, or only with some values."""

MANY_HEADERS = 32
"""Of more headers the names are not remembered."""


def encode_parts(parts: Iterable[bytes]) -> bytes:
    """Return an encoding that no other list of parts has: each has its length before it."""
    return b"".join([piece for part in parts for piece in (len(part).to_bytes(8), part)])


NEITHER = encode_parts((b"", b""))
"""The encoding of a call without parameters and headers that count."""


def encode_call(call: Call, route: str, forwarded: Mapping[str, str]) -> bytes:
    """Return what the key is the hash of: two calls have the same only if they have the same answer.

    `forwarded` are the headers of the call that a target of the route may see. Who shares the answer is added by the
    vault.
    """
    query = encode_parts(map(_bytes, relevant_parameters(call.query))) if call.query else b""
    listed = relevant_headers(forwarded) if forwarded else ()
    headers = encode_parts(_bytes(text) for header in listed for text in header) if listed else b""
    between = encode_parts((query, headers)) if query or headers else NEITHER
    return b"".join((_beginning(VERSION, route), between, call.fact(hash_fields)))


@unaffected_by(FIELDS_NOT_IN_KEY)
def hash_fields(call: Call) -> bytes:
    """Return a hash of the fields that count: the last part of a key, always of the same length."""
    return sha256(orjson.dumps(relevant_fields(call.body), option=orjson.OPT_SORT_KEYS)).digest()


@lru_cache(1024)
def _beginning(version: bytes, route: str) -> bytes:
    return encode_parts((version, _bytes(route)))


def relevant_parameters(query: str) -> list[str]:
    """Return the parameters that count as they were sent, in the order of their names; equal names keep theirs."""
    pairs = [pair for pair in query.split("&") if pair and name_of_parameter(pair) not in PARAMETERS_NOT_IN_KEY]
    return sorted(pairs, key=name_of_parameter)


def relevant_headers(forwarded: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the headers that count, in the order of their names."""
    return sorted([header for header in forwarded.items() if is_header_in_key(header[0])])


def relevant_fields(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that count, without side effects that the call does not ask for."""
    fields = {**body}
    for name in OFTEN_LEFT_OUT.intersection(body):
        value = fields[name]
        if name in FIELDS_NOT_IN_KEY or value is None or value is DEFAULTS.get(name):
            del fields[name]
    return fields


def forwarded_in_key(call: Call, route: Route) -> Mapping[str, str]:
    """Return the headers of a call that a target of the route may see and that count."""
    if not call.headers:
        return call.headers
    sent = tuple(call.headers)
    search = _names_in_key if len(sent) <= MANY_HEADERS else _names_in_key.__wrapped__
    names = search(route.header_names, sent)
    return {name: call.headers[name] for name in names} if names else {}


@lru_cache(256)
def _names_in_key(seen: Sequence[HeaderNames], sent: Sequence[str]) -> Sequence[str]:
    """Return which of these names count; a client sends the same ones in each of its requests."""
    forwarded = {name for names in seen for name in names.select(dict.fromkeys(sent, ""))}
    return tuple(name for name in sent if name in forwarded and is_header_in_key(name))


def name_of_parameter(pair: str) -> str:
    return pair.partition("=")[0]


def _bytes(text: str) -> bytes:
    """Return a text as bytes. A header may have bytes that are not UTF-8, which are lone surrogates in its text."""
    return text.encode(errors="surrogatepass")
