"""Ids of requests, by which callers and operators name them."""

import os
from collections.abc import Iterator

ID_BYTES = 16
DRAWN_AT_ONCE = 64
"""The number of ids whose random bytes are drawn together, as each draw is a system call."""


def new_request_id() -> str:
    """Return an id that no other request has."""
    return f"req_{os.urandom(ID_BYTES).hex()}"


def request_ids() -> Iterator[str]:
    """Yield such ids. A process that is forked from this one would yield the same ones."""
    while True:
        drawn = os.urandom(ID_BYTES * DRAWN_AT_ONCE).hex()
        for start in range(0, len(drawn), 2 * ID_BYTES):
            yield f"req_{drawn[start : start + 2 * ID_BYTES]}"
