"""The chain of an audit file, which shows changed, missing and added lines.

Each line has a number (`seq`, from 1), the hash of the line before it (`previous`, 64 zeros in the first), and its own
(`hash`): HMAC-SHA-256 under the secret of the file, or SHA-256 without one. Who can write to a file without a secret
can also compute the chain anew. What no chain shows by itself is that its end is missing: a head (the number and hash
of a line) that is kept elsewhere does.
"""

import hashlib
import hmac
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import orjson

FIRST_PREVIOUS = "0" * 64
_HEAD = re.compile(r"(\d{1,18}):([0-9a-f]{64})", re.ASCII)


class Head(NamedTuple):
    """The last line of a chain, or any of its lines: its number and its hash. Number 0: the chain has no line."""

    seq: int
    hash: str

    def __str__(self) -> str:
        return f"{self.seq}:{self.hash}"

    @staticmethod
    def parse(text: str) -> "Head":
        """Raises ValueError for what is not NUMBER:HASH."""
        match = _HEAD.fullmatch(text)
        if match is None:
            raise ValueError("a head is NUMBER:HASH, as `headgate audit head` prints it")
        return Head(int(match[1]), match[2])


START = Head(0, FIRST_PREVIOUS)


class Chain:
    """A chain that lines are added to, or compared with, one after the other."""

    def __init__(self, key: bytes | None = None, head: Head = START) -> None:
        """`head` is the line that the next one follows."""
        self._key = key
        self.head = head

    def link(self, lines: Iterable[bytes]) -> list[tuple[bytes, Head]]:
        """Return lines as they follow the head, each with the head that it makes; `head` is not changed.

        A line is a JSON object as orjson writes it; the fields of the chain are added behind its own.
        """
        linked, head = [], self.head
        for line in lines:
            fields = b'%b,"seq":%d,"previous":"%b"' % (line[:-1], head.seq + 1, head.hash.encode())
            head = Head(head.seq + 1, self._hash_of(fields + b"}"))
            linked.append((b'%b,"hash":"%b"}' % (fields, head.hash.encode()), head))
        return linked

    def follow(self, text: bytes) -> bool:
        """Whether a line of a file follows the head, unaltered; then it is the head."""
        try:
            line = orjson.loads(text)
            is_canonical = orjson.dumps(line) == text.removesuffix(b"\n")
            stated = line.pop("hash")
            is_next = (line["seq"], line["previous"]) == (self.head.seq + 1, self.head.hash)
            is_intact = is_canonical and is_next and hmac.compare_digest(self._hash_of(orjson.dumps(line)), stated)
        except (ValueError, KeyError, TypeError, AttributeError):
            return False
        if is_intact:
            self.head = Head(self.head.seq + 1, stated)
        return is_intact

    def _hash_of(self, encoded: bytes) -> str:
        return (
            hashlib.sha256(encoded).hexdigest()
            if self._key is None
            else hmac.digest(self._key, encoded, "sha256").hex()
        )


@dataclass(slots=True)
class Verification:
    """What became of a chain: how many of its lines are unaltered, and the number in its file of the first that is not.

    `contradicted` are heads that were expected, but other lines, or none, are in their place. Lines before the first
    one of the file are not among them.
    """

    head: Head
    count: int = 0
    altered: int | None = None
    contradicted: list[Head] = field(default_factory=list)


def verify(
    lines: Iterable[bytes], *, key: bytes | None = None, after: Head = START, expected: Sequence[Head] = ()
) -> Verification:
    """Follow the lines of a file, the first of which follows `after`, until one is altered or missing."""
    chain, found = Chain(key, after), Verification(after)
    hashes = {head.seq: head.hash for head in expected}
    known = {after.seq: after.hash}
    for text in lines:
        if not chain.follow(text):
            found.altered = found.count + 1
            break
        found.count += 1
        if chain.head.seq in hashes:
            known[chain.head.seq] = chain.head.hash
    found.head = chain.head
    found.contradicted = [head for head in expected if head.seq >= after.seq and known.get(head.seq) != head.hash]
    return found


def head_in(last: bytes) -> Head:
    """Return the head in the last line of a file. Raises ValueError if it is not a complete audit line."""
    try:
        if last.endswith(b"\n"):
            line = orjson.loads(last)
            return Head.parse(f"{line['seq']}:{line['hash']}")
    except (ValueError, KeyError, TypeError):
        pass
    raise ValueError("the last line of the audit file is incomplete, or not an audit line; move the file away")
