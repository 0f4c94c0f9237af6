"""Counts the values of a JSON text before it is parsed: parsing costs time and memory by values, not by bytes."""

from proxy.wire.large_bytes import WINDOW_BYTES, count_text, find_text

VALUE_BYTES = 128
"""The memory of a parsed value beside its text, in bytes: the largest are small objects."""
NUMBER_BYTES = 40
"""The memory of a number, in bytes; true, false and null take less."""
SEPARATORS = b",[{"
_UP_TO_THREE_BYTES, _UP_TO_LATIN = bytes(range(0xF0)), bytes(range(0xC4))
"""The bytes of UTF-8 that begin no character beyond U+FFFF, and none beyond U+00FF."""
_SURROGATES = tuple(
    b"\\u" + first + second for first in (b"d", b"D") for second in (b"8", b"9", b"a", b"A", b"b", b"B")
)
NARROW_BYTES = 8192
"""In a shorter text characters count as one byte: it takes 40 KB at most, which each call may use without counting."""


def count_values(raw: bytes, limit: int) -> int:
    """Return at least how many values the text has if these are at most `limit`, otherwise a number beyond the limit.

    Each value but the first follows a comma or the start of an object or array; an empty one is counted twice. Commas
    inside strings do not count, but finding the strings is slow, so it is done only if there are too many without it.
    A text of strings with more than four quotes for each allowed value is beyond the limit as well.
    """
    separators = _count(raw, SEPARATORS, 0, len(raw), limit)
    if separators < limit:
        return separators + 1
    if _count(raw, b'"', 0, len(raw), 4 * limit) > 4 * limit:  # too many strings, or a waste of time
        return limit + 1
    return _count_outside_strings(raw, limit)


def has_more_values(raw: bytes, limit: int) -> bool:
    """Return whether a text has more than `limit` values. A text of n bytes has at most n, so most are not counted."""
    return len(raw) > limit and count_values(raw, limit) > limit


def parsed_size(raw: bytes, limit: int) -> tuple[int, int]:
    """Return how many values a text has, as `count_values` does, and about how many bytes it takes beside itself.

    That is what it is parsed to, and its encoding if it is changed. All that is parsed and kept is counted by this.
    """
    size = len(raw)
    if size <= NARROW_BYTES and size < limit:  # it has no more values than that
        values = 1 + size - len(raw.translate(None, SEPARATORS))
        return values, 2 * size + VALUE_BYTES * values
    values = count_values(raw, limit)
    if size <= NARROW_BYTES or values > limit:
        return values, 2 * size + VALUE_BYTES * values
    values_bytes = VALUE_BYTES * values
    if values_bytes > size:
        # More values than there are objects, arrays and strings are numbers: or separators in a text, which are none.
        others = count_text(raw, b"{") + count_text(raw, b"[") + count_text(raw, b'"') // 2
        values_bytes -= (VALUE_BYTES - NUMBER_BYTES) * max(0, values - others)
    return values, (1 + count_char_bytes(raw)) * size + values_bytes


def count_char_bytes(raw: bytes) -> int:
    """Return how many bytes each character of the text's strings may take in memory: 1, 2 or 4.

    One character decides for all of its string: beyond U+00FF each takes two bytes, beyond U+FFFF four.
    """
    widest = 1
    for start in range(0, len(raw), WINDOW_BYTES):
        window = raw[start : start + WINDOW_BYTES + 3]  # the beginning of an escape may be cut
        has_escapes = b"\\u" in window
        if not has_escapes and window.isascii():
            continue
        if window.translate(None, _UP_TO_THREE_BYTES) or (has_escapes and any(map(window.__contains__, _SURROGATES))):
            return 4
        widest = 2 if has_escapes or window.translate(None, _UP_TO_LATIN) else widest
    return widest


def _count(raw: bytes, characters: bytes, start: int, end: int, limit: int) -> int:
    """How often the characters occur, counted until there are more than `limit`."""
    count = 0
    while start < end and count <= limit:
        stop = min(start + WINDOW_BYTES, end)
        window = raw if stop - start == len(raw) else raw[start:stop]
        if len(window) < WINDOW_BYTES or any(character in window for character in characters):
            count += len(window) - len(window.translate(None, characters))  # faster than counting each character
        start = stop
    return count


def _count_outside_strings(raw: bytes, limit: int) -> int:
    count = 1
    position = 0
    while count <= limit:
        start = find_text(raw, b'"', position)
        count += _count(raw, SEPARATORS, position, len(raw) if start < 0 else start, limit)
        if start < 0:
            break
        position = _end_of_string(raw, start)
    return count


def _end_of_string(raw: bytes, start: int) -> int:
    """The index after the quote that closes the string at `start`; the end of the text if none does."""
    end = find_text(raw, b'"', start + 1)
    while end >= 0:
        escape = end
        while raw[escape - 1] == 0x5C:  # a quote after an odd number of backslashes is part of the string
            escape -= 1
        if (end - escape) % 2 == 0:
            return end + 1
        end = find_text(raw, b'"', end + 1)
    return len(raw)
