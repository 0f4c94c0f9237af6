"""Removes the gateway's own keys from what an upstream sends: some echo them in refusals, for callers to see.

Bytes are searched with `find`: `in` raises and catches a TypeError for each search, because it tries a number first.
Almost all data lacks a byte that a secret has, and one byte is found thirty times as fast as a text.
"""

import json
import re
from base64 import b64encode
from collections.abc import Iterator, Sequence
from urllib.parse import quote

import orjson

from proxy.wire.event import Batch, Event, Run, parse_leniently
from proxy.wire.large_bytes import WINDOW_BYTES, find_text, replace_text
from proxy.wire.sse_frame import payload_of

REPLACEMENT = "[redacted]"
SHORTEST_CHARS = 8
"""A shorter key is not searched for, in characters: it could be a part of any text."""
MAX_HARMLESS_NAMES = 64
"""How many lists of names of headers are remembered that have no key in them."""
WEB_CHARS = "+&<>='`"
"""What encoders for web pages escape in JSON although they need not."""
URL_SAFE = str.maketrans("+/", "-_")
BY_FREQUENCY = b'e"tanoisr_lcdupm,: 0123456789hgfybvkwx{}[].-zqjTSAICEDRNOLMPBHFGUWYVKJXQZ'
"""Bytes of JSON and of texts, about from the most frequent one to the rarest; all others are rarer still."""
Forms = tuple[tuple[int, tuple[bytes, ...]], ...]
"""Forms of secrets, each behind the rarest byte that it has."""


class Scrubber:
    """Replaces secrets in every form in which servers write them. None of them: nothing is replaced.

    The forms are the secret itself, as JSON may escape it, as URLs have it, and within base64. Base64 is not searched
    for in the parts of a stream that nothing follows (texts and arguments as they are generated): it would be a large
    part of the cost of forwarding them.
    """

    def __init__(self, *secrets: str | None) -> None:
        self.search_for(*secrets)

    def search_for(self, *secrets: str | None) -> None:
        """Replace these secrets from now on, and no others. One that is empty or very short is left out."""
        known = [secret for secret in secrets if secret and len(secret) >= SHORTEST_CHARS]
        plain = tuple(dict.fromkeys(form for secret in known for form in _plain_forms(secret)))
        encoded = (form for secret in known for form in _base64_forms(secret))
        self._texts = tuple(dict.fromkeys([*plain, *encoded]))
        self._names = tuple(text.lower() for text in self._texts)
        self._harmless_names: set[str] = set()
        self._in_names = re.compile("|".join(re.escape(text.lower()) for text in self._texts) or "(?!)")
        self._plain = tuple(text.encode() for text in plain)
        self._bytes = tuple(text.encode() for text in self._texts)
        self._plain_forms, self._forms = _by_rarest_byte(self._plain), _by_rarest_byte(self._bytes)
        self.run_patterns = tuple([(byte, re.compile(_any_of(texts))) for byte, texts in self._plain_forms])
        """What finds the secret as `run` does, each behind a byte of its matches; another object for other secrets."""

    def secrets(self, *, everywhere: bool) -> tuple[bytes, ...]:
        """Return the forms of the secret that are searched for: in a stream not those in base64."""
        return self._bytes if everywhere else self._plain

    def text(self, text: str) -> str:
        """Return a text without the secret."""
        for secret in self._texts:
            text = text.replace(secret, REPLACEMENT)
        return text

    def is_in_name(self, name: str) -> bool:
        """Whether the name of a header has the secret in it: names are the same in any case."""
        return self._in_names.search(name.lower()) is not None

    def is_in_fields(self, names: str, values: str) -> bool:
        """Whether the names, in lower case, or the values of headers, joined, have the secret in them, or seem to."""
        for secret in self._texts:
            if secret in values:
                return True
        return names not in self._harmless_names and self._is_in_names(names)

    def _is_in_names(self, names: str) -> bool:
        """Search names of headers, and remember those without the secret: an upstream sends the same ones each time."""
        if any(map(names.__contains__, self._names)):
            return True
        if len(self._harmless_names) < MAX_HARMLESS_NAMES:
            self._harmless_names.add(names)
        return False

    def data(self, data: bytes) -> bytes:
        """Return bytes without the secret: the same object where it does not occur."""
        is_large = len(data) > WINDOW_BYTES
        if not (is_large or _has_any(self._forms, data)):  # almost always
            return data
        for secret in self._bytes:
            if is_large:
                data = replace_text(data, secret, REPLACEMENT.encode())
            else:
                data = data.replace(secret, REPLACEMENT.encode())
        return data

    def run(self, data: bytes) -> bytes:
        """Return a part of a stream that nothing follows, without the secret. What base64 hides is not searched for."""
        return self.data(data) if self._has_plain(data) else data

    def is_in(self, unit: Event | Run) -> bool:
        """Whether a unit of a stream has the secret in it."""
        data = unit.raw
        if not unit.type:
            return self._has_plain(data)
        if len(data) <= WINDOW_BYTES:
            return _has_any(self._forms, data)
        return any(find_text(data, secret) >= 0 for secret in self._bytes)

    def _has_plain(self, data: bytes) -> bool:
        """Whether bytes have the secret, save in base64."""
        if len(data) <= WINDOW_BYTES:
            return _has_any(self._plain_forms, data)
        return any(find_text(data, secret) >= 0 for secret in self._plain)

    def batch(self, batch: Batch) -> Batch:
        """Return the units of a stream without the secret. Each is made of whole frames, so it cannot be split.

        Raises ValueError for an event that cannot be parsed without it.
        """
        # Searched together: what seems to be a secret across two of them is looked for in each.
        events: list[bytes] = []
        for unit in batch:
            if unit.type and len(data := unit.raw) <= WINDOW_BYTES:
                events.append(data)
            elif self.is_in(unit):
                break
        else:
            if not (events and _has_any(self._forms, b"".join(events))):
                return batch
        return [self._unit(each) for each in batch]

    def _unit(self, unit: Event | Run) -> Event | Run:
        frames = self.data(unit.sse)
        if isinstance(unit, Run):
            return Run(frames)
        return Event(unit.type, frames, parse_leniently(payload_of(frames)))


class StreamScrubber:
    """Replaces the secret in a body that arrives in chunks. Only what may be the beginning of a secret is held back."""

    def __init__(self, scrubber: Scrubber, *, everywhere: bool = True) -> None:
        """`everywhere` is whether base64 is searched too."""
        self._secrets = scrubber.secrets(everywhere=everywhere)
        self._held = b""

    def feed(self, chunk: bytes) -> bytes:
        """Return what can be passed on, which may be nothing yet."""
        data = self._held + chunk if self._held else chunk
        for secret in self._secrets:
            if secret in data:
                data = data.replace(secret, REPLACEMENT.encode())
        held = max((_overlap(data, secret) for secret in self._secrets), default=0)
        self._held = data[len(data) - held :] if held else b""
        return data[: len(data) - held] if held else data

    def close(self) -> bytes:
        """Return what was held back: the body ended before it became a secret."""
        held, self._held = self._held, b""
        return held


def _by_rarest_byte(secrets: Sequence[bytes]) -> Forms:
    """Return the secrets in groups that have one byte in common, which is rare."""
    groups: dict[int, tuple[bytes, ...]] = {}
    for secret in secrets:
        byte = max(secret, key=lambda byte: BY_FREQUENCY.find(byte) % 256)  # -1, which all others have, is the greatest
        groups[byte] = (*groups.get(byte, ()), secret)
    return tuple(groups.items())


def _any_of(secrets: Sequence[bytes]) -> bytes:
    """Return a pattern of these secrets."""
    return b"|".join(map(re.escape, secrets))


def _has_any(forms: Forms, data: bytes) -> bool:
    """Return whether a secret is in the data."""
    for byte, secrets in forms:
        if byte in data:
            for secret in secrets:
                if data.find(secret) >= 0:
                    return True
    return False


def _overlap(data: bytes, secret: bytes) -> int:
    """How long the end of the data is that is a beginning of the secret."""
    tail = data[-(len(secret) - 1) :]
    start = tail.find(secret[:1])
    while start >= 0:
        if secret.startswith(tail[start:]):
            return len(tail) - start
        start = tail.find(secret[:1], start + 1)
    return 0


def _plain_forms(secret: str) -> Iterator[str]:
    """The secret as it is, as JSON may write it, and percent-encoded."""
    yield secret
    for in_json in (orjson.dumps(secret).decode()[1:-1], json.dumps(secret)[1:-1]):
        yield from (in_json, in_json.replace("/", "\\/"))
        for digits in ("04X", "04x"):
            yield in_json.translate({ord(char): f"\\u{ord(char):{digits}}" for char in WEB_CHARS})
    for encoded in (quote(secret, safe=""), quote(secret)):
        yield from (encoded, re.sub("%..", lambda escape: escape[0].lower(), encoded))


def _base64_forms(secret: str) -> Iterator[str]:
    """What every base64 text has that contains the secret, at each of the three places where it may begin.

    Characters at its ends that depend on what stands beside it are left out.
    """
    data = secret.encode()
    for before in range(3):
        encoded = b64encode(bytes(before) + data).decode()
        form = encoded[(8 * before + 5) // 6 : 8 * (before + len(data)) // 6]
        yield from (form, form.translate(URL_SAFE), form.replace("/", "\\/"))
