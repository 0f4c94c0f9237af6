"""The keys under which owners are in the store."""

import hashlib

from proxy.state.references import Kind, containers_of, ids_of
from proxy.wire.fields import normalize


def owner_key(kind: Kind, value: str) -> str:
    """An id in another case or with white space is the same: an upstream may overlook both."""
    return f"headgate:owner:{digest_of(kind, normalize(value))}"


def digest_of(*parts: str) -> str:
    """A key contains hashes only, no text of a caller's."""
    digest = hashlib.sha256()
    for part in parts:
        encoded = part.encode(errors="surrogatepass")
        digest.update(len(encoded).to_bytes(8) + encoded)
    return digest.hexdigest()


def item_keys(items: object, *, are_kept: bool) -> list[str]:
    """Return the keys of items, if they are kept, and of the containers in which their tools ran."""
    keys = [owner_key("container", container) for container in containers_of(items)]
    return keys + ([owner_key("item", item_id) for item_id in ids_of(items)] if are_kept else [])
