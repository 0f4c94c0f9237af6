"""Removes the gateway's own key from what an upstream sends: some echo it in a refusal, and callers must not see it."""

import orjson

from proxy.wire.event import Batch, Event, Run

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

    @property
    def secrets(self) -> tuple[bytes, ...]:
        """Return the forms of the secret that are searched for."""
        return self._bytes

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
        """Return the units of a stream without the secret. Each is made of whole frames, so it cannot be split."""
        if not any(secret in unit.sse for unit in batch for secret in self._bytes):
            return batch
        return [
            Run(self.data(unit.sse)) if isinstance(unit, Run) else Event(unit.type, self.data(unit.sse))
            for unit in batch
        ]


class StreamScrubber:
    """Replaces the secret in a body that arrives in chunks. Only what may be the beginning of a secret is held back."""

    def __init__(self, scrubber: Scrubber) -> None:
        self._scrubber = scrubber
        self._held = b""

    def feed(self, chunk: bytes) -> bytes:
        """Return what can be passed on, which may be nothing yet."""
        data = self._scrubber.data(self._held + chunk if self._held else chunk)
        held = max((_overlap(data, secret) for secret in self._scrubber.secrets), default=0)
        self._held = data[len(data) - held :] if held else b""
        return data[: len(data) - held] if held else data

    def close(self) -> bytes:
        """Return what was held back: the body ended before it became a secret."""
        held, self._held = self._held, b""
        return held


def _overlap(data: bytes, secret: bytes) -> int:
    """How long the end of the data is that is a beginning of the secret."""
    longest = min(len(data), len(secret) - 1)
    return next((size for size in range(longest, 0, -1) if data.endswith(secret[:size])), 0)
