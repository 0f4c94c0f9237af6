"""Globs in settings: `*` stands for any characters, `?` for one. The only place where a glob is compiled."""

import re
from collections.abc import Iterable
from fnmatch import translate
from functools import lru_cache

from proxy.wire.fields import normalize

_SET = re.compile(r"\[!?\]?[^\]]*\]")
_UNUSUAL = "\0"
LONGEST_CACHED_CHARS = 128  # a longer text is not a name, and would only fill the cache


def compile_globs(globs: Iterable[str]) -> re.Pattern[str]:
    """Return one pattern that matches what any of the globs matches, in the case in which they are written."""
    return re.compile("|".join(map(translate, dict.fromkeys(globs))) or r"(?!)")


def is_glob(text: str) -> bool:
    """Whether a text has wildcards, so that it may match more than itself."""
    return re.search(r"[*?\[]", text) is not None


def overlap(first: str, second: str) -> bool:
    """Return whether some text matches both globs. A set of characters (`[ab]`) counts as any one character."""
    a, b = _SET.sub("?", first), _SET.sub("?", second)
    waiting, seen = [(0, 0)], {(0, 0)}
    while waiting:
        i, j = waiting.pop()
        if (i, j) == (len(a), len(b)):
            return True
        steps = []
        if a[i : i + 1] == "*":
            steps += [(i + 1, j), *([(i, j + 1)] if j < len(b) else [])]
        elif b[j : j + 1] == "*":
            steps += [(i, j + 1), *([(i + 1, j)] if i < len(a) else [])]
        elif i < len(a) and j < len(b) and (a[i] == b[j] or "?" in (a[i], b[j])):
            steps.append((i + 1, j + 1))
        waiting += [step for step in steps if step not in seen]
        seen.update(steps)
    return False


def covers(first: str, second: str) -> bool:
    """Return whether the first glob matches everything that the second matches. Sets of characters: only if equal.

    The second is tried with nothing for each `*`, and with more of an unusual character than the first could match
    without a `*` of its own.
    """
    if "[" in first + second:
        return first == second
    pattern, shortest = compile_globs([first]), second.replace("?", _UNUSUAL)
    texts = [shortest.replace("*", _UNUSUAL * count) for count in (0, len(first) + 1)]
    return all(map(pattern.match, texts))


class AllowList:
    """Names that are allowed, less those that are denied.

    `allow` matches a name exactly. `deny` also matches its normalized form: a lenient upstream may overlook case, width
    and invisible characters.
    """

    def __init__(self, allow: Iterable[str], deny: Iterable[str] = ()) -> None:
        allow, deny = tuple(allow), tuple(deny)
        self._allowed = None if "*" in allow else compile_globs(allow)
        self._denied = compile_globs((*deny, *map(normalize, deny))) if deny else None
        self.allows_all = self._allowed is None and self._denied is None
        self._cached = lru_cache(1024)(self._decide)  # the same few names are checked again and again

    def allows(self, value: object) -> bool:
        """Whether a value is allowed. One that is not a string is allowed only where everything is."""
        if type(value) is str and len(value) <= LONGEST_CACHED_CHARS:
            return self._cached(value)
        return self.allows_all or (isinstance(value, str) and self._decide(value))

    def denies(self, value: str) -> bool:
        """Whether a value is denied, whatever `allow` says."""
        return self._denied is not None and any(map(self._denied.match, (value, normalize(value))))

    def _decide(self, value: str) -> bool:
        if self._allowed is not None and not self._allowed.match(value):
            return False
        return not self.denies(value)
