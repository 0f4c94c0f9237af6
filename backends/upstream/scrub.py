"""Removes the gateway's own key from what an upstream sends: some echo it in a refusal, and callers must not see it."""

import orjson

from proxy.wire.event import Batch, Event, Run, parse_payload, payload_of

REPLACEMENT = "[redacted]"
SHORTEST_CHARS = 8
"""A shorter key is not searched for, in characters: it could be a part of any text."""


class Scrubber:
    """Replaces one secret, as it is and as JSON may write it. None: nothing is replaced."""

    def __init__(self, secret: str | None) -> None:
        known = secret if secret and len(secret) >= SHORTEST_CHARS else None
        forms = (known, known.replace("/", "\\/"), orjson.dumps(known).decode()[1:-1]) if known else ()
        self._texts = tuple(dict.fromkeys(forms))
        self._bytes = tuple(text.encode() for text in self._texts)

    def text(self, text: str) -> str:
        """Return a text without the secret."""
        for secret in self._texts:
            text = text.replace(secret, REPLACEMENT)
        return text

    def data(self, data: bytes) -> bytes:
        """Return bytes without the secret: the same object where it does not occur."""
        for secret in self._bytes:
            if secret in data:
                data = data.replace(secret, REPLACEMENT.encode())
        return data

    def batch(self, batch: Batch) -> Batch:
        """Return the units of a stream without the secret. Each is made of whole frames, so it cannot be split.

        Raises ValueError for an event that cannot be parsed without it.
        """
        for secret in self._bytes:
            for unit in batch:
                if secret in unit.sse:
                    return [self._unit(unit) for unit in batch]
        return batch

    def _unit(self, unit: Event | Run) -> Event | Run:
        frames = self.data(unit.sse)
        if isinstance(unit, Run):
            return Run(frames)
        return Event(unit.type, frames, parse_payload(payload_of(frames)))
