"""The keys under which owners are in the store."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import sha256
from typing import TypeVar, get_args

from proxy.state.references import MAX_ID_CHARS, Kind, is_id
from proxy.wire.fields import normalize

_NORMAL = b"abcdefghijklmnopqrstuvwxyz0123456789_-"
"""The characters of ids in normal form, as almost all are."""

T = TypeVar("T")
AT_ONCE = 16
"""How many ids of one request are read or written at a time."""
OwnerKey = Callable[[Kind, str], str]
"""Returns the key of an id, by what the id names."""
USUAL_ID_CHARS = 64
"""How long ids are at most, in characters. Source: the OpenAPI document."""


def owner_key(kind: Kind, value: str) -> str:
    """An id in another case or with white space is the same: an upstream may overlook both."""
    frames, encoded = _FRAMES[kind], value.encode("utf-8", "surrogatepass")
    if len(encoded) >= len(frames) or encoded.translate(None, _NORMAL):
        encoded = normalize(value).encode("utf-8", "surrogatepass")
        frame = frames[0][:-8] + len(encoded).to_bytes(8)
    else:
        frame = frames[len(encoded)]
    return f"headgate:owner:{sha256(frame + encoded).hexdigest()}"


def private_owner_key(kind: Kind, value: str) -> str:
    """Return the key of an id in a store whose keys only this process sees: a hash would be most of the cost."""
    is_normal = value.isascii() and not value.encode().translate(None, _NORMAL)
    normal = value if is_normal else normalize(value)
    return f"headgate:owner:{kind}:{normal}" if len(normal) <= USUAL_ID_CHARS else owner_key(kind, value)


def digest_of(*parts: str) -> str:
    """Return a hash for a key: keys contain no text of a caller."""
    return sha256(b"".join(map(_framed, parts))).hexdigest()


def item_keys(items: object, key_of: OwnerKey, *, are_kept: bool = True) -> list[str]:
    """Return the keys of items, in a response or a list of an upstream, if they are kept, and of the containers in
    which their tools ran: later calls can run tools there.
    """
    keys: list[str] = []
    for item in items if isinstance(items, list) else ():
        if type(item) is not dict:  # as JSON is parsed
            continue
        if are_kept and "id" in item and type(value := item["id"]) is str and len(value) <= MAX_ID_CHARS:
            keys.append(key_of("item", value))
        if "container_id" in item and is_id(value := item["container_id"]):
            keys.append(key_of("container", value))
        if "environment" in item and isinstance(environment := item["environment"], dict):
            value = environment.get("container_id")
            if is_id(value):
                keys.append(key_of("container", value))
    return keys


def portions(values: Sequence[T]) -> Iterator[Sequence[T]]:
    """Yield values in portions that the store is asked for at a time."""
    return (values[start : start + AT_ONCE] for start in range(0, len(values), AT_ONCE))


def _framed(part: str) -> bytes:
    """Return a text with its length before it, so that no text can be moved from one part into another."""
    encoded = part.encode(errors="surrogatepass")
    return len(encoded).to_bytes(8) + encoded


_FRAMES: Mapping[Kind, list[bytes]] = {
    kind: [_framed(kind) + length.to_bytes(8) for length in range(257)] for kind in get_args(Kind)
}
"""What stands before an id of a kind, by the id's length: no text can be moved from one into the other."""
