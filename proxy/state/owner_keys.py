"""The keys under which owners are in the store."""

import hashlib

from proxy.state.references import Kind, ids_of_output
from proxy.wire.fields import normalize


def owner_key(kind: Kind, value: str) -> str:
    """An id in another case or with white space is the same: an upstream may overlook both."""
    return f"headgate:owner:{digest_of(kind, normalize(value))}"


def digest_of(*parts: str) -> str:
    """A key contains hashes only, no text of a caller's."""
    framed = b""
    for part in parts:
        encoded = part.encode(errors="surrogatepass")
        framed += len(encoded).to_bytes(8) + encoded
    return hashlib.sha256(framed).hexdigest()


def item_keys(items: object, *, are_kept: bool) -> list[str]:
    """Return the keys of items, if they are kept, and of the containers in which their tools ran."""
    return [owner_key(kind, value) for kind, value in ids_of_output(items) if are_kept or kind == "container"]
