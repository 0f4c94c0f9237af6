"""The keys under which owners are in the store."""

import hashlib
from functools import cache

from proxy.state.references import Kind, ids_of_output
from proxy.wire.fields import normalize


def owner_key(kind: Kind, value: str) -> str:
    """An id in another case or with white space is the same: an upstream may overlook both."""
    encoded = normalize(value).encode(errors="surrogatepass")
    return f"headgate:owner:{hashlib.sha256(_kind(kind) + len(encoded).to_bytes(8) + encoded).hexdigest()}"


def digest_of(*parts: str) -> str:
    """A key contains hashes only, no text of a caller's."""
    return hashlib.sha256(b"".join(map(_framed, parts))).hexdigest()


def item_keys(items: object, *, are_kept: bool) -> list[str]:
    """Return the keys of items, if they are kept, and of the containers in which their tools ran."""
    return [owner_key(kind, value) for kind, value in ids_of_output(items) if are_kept or kind == "container"]


def _framed(part: str) -> bytes:
    """Return a text with its length before it, so that no text can be moved from one part into another."""
    encoded = part.encode(errors="surrogatepass")
    return len(encoded).to_bytes(8) + encoded


@cache
def _kind(kind: Kind) -> bytes:
    return _framed(kind)
