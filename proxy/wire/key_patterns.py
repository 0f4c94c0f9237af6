"""Finds keys, tokens and passwords in texts, by their form or because the gateway knows them: they are replaced before
the text is shown.

Whether a text has one is found by Rust's `regex`, by way of pydantic, in linear time. Only a text that has one is then
searched by Python's own engine: its patterns are bounded, and possessive, so that nothing is tried twice.
"""

import json
import re
from collections.abc import Callable

from proxy.wire.linear_pattern import compile_linear

REDACTED = "[redacted]"
LONGEST_CHARS = 512
"""The longest key but for a PEM block, whose end need not be in the text."""
SHORTEST_KNOWN_CHARS, LONGEST_KNOWN_CHARS = 12, 256
"""Shorter ones of those that the gateway knows could be words."""
MAX_KNOWN = 1000
"""How many keys that the gateway knows are looked for; keys that it has issued are found by their form."""
MAX_NAMES, LONGEST_NAME_CHARS = 1000, 64
"""How many names of at most so many characters are remembered in which no key was found."""
SPACE = r"[\s\x1c-\x1f]"
NAMES = r"(?:secret|password|passwd|api[-_]?key|access[-_]?key|access[-_]?token)"
HYPHEN = r"(?:[-_]|%2d|%5f)"
"""What stands between the parts of a key, as it is or as URLs may have it."""
FURTHER = r"(?:[a-z0-9_./-]|%2[df]|%5f)"
"""A character behind the beginning of a key."""
PREFIXED = (
    (rf"(?:sk|hg|xox[a-z]|xapp|gh[a-z]|github{HYPHEN}pat|glpat|gocspx){HYPHEN}", FURTHER, 12, 512),
    (rf"[pr]k{HYPHEN}(?:live|test|prod|lf|[0-9]{{1,16}}){HYPHEN}", FURTHER, 12, 512),
    (r"(?:hf|npm)(?:_|%5f)", r"[a-z0-9]", 20, 512),
    (r"a[ks]ia", r"[a-z0-9]", 16, 128),
    (r"(?:aiza|eyj)", r"[\w.-]", 12, 4096),
    (r"(?:ya29|sg)\.", r"[\w.-]", 24, 512),
    (r"age-secret-key-1", r"[a-z0-9]", 40, 80),
    (r"hooks\.slack\.com/services/", r"[\w/]", 12, 256),
    (rf"bearer(?:{SPACE}|%20|\+){{1,8}}", r"\S", 1, 4096),
)
"""Beginning, further characters, and the least and greatest number of those: of OpenAI, Headgate, Slack, GitHub,
GitLab, Google; Stripe and others; Hugging Face, npm; AWS; Google, JSON web tokens; SendGrid; age; and whatever follows
`Bearer`. What follows `Basic` is found by its form. Names that only begin so must stay: `hf-llama-3-70b`,
`pk_customer_number`, `asia-southeast1-a`.
"""
_FORM = re.compile(
    r"(?:\b|(?<=%[0-9a-f]{2}))(?!bearer (?:auth|tokens?)[.,;:]?(?:\s|$))(?:"  # two words of a sentence
    + "|".join(f"{start}{more}{{{least},{most}}}+" for start, more, least, most in PREFIXED)
    # A user and a password in base64, where almost every text has a digit.
    + rf")|\bbasic(?:{SPACE}|%20|\+){{1,8}}(?=[a-z+/]{{0,512}}+[0-9=])[a-z0-9+/]{{8,4096}}+={{0,2}}"
    r"|-----BEGIN [A-Z0-9 ]{0,32}PRIVATE KEY(?: BLOCK)?-----(?:(?!-----END)[\s\S]){0,16384}+"
    r"|(?<=://)[^\s/:@]{0,128}+:[^\s/@]{1,256}+(?=@)"  # the password of a URL, and its user
    # A refusal that names such a field says what was expected; a config says where the secret is.
    rf"|{NAMES}[\"'\\]{{0,2}}+\s{{0,4}}+[=:]\s{{0,4}}+[\"'\\]{{0,2}}+(?!expected |env:|file:)[^\s\"'\\,;]{{8,512}}+",
    re.IGNORECASE,
)
_LINEAR_FORM = (
    r"(?i)(?:^|[^a-z0-9_]|%[0-9a-f]{2})(?:"
    + "|".join(start for start, _, _, _ in PREFIXED)
    + rf")|basic(?:{SPACE}|%20|\+)|-----BEGIN |://[^\s/@]+@|{NAMES}[\"'\\\x09-\x20]*[=:]"
)
"""What finds at least the beginnings of all of these: this engine has no look-around, and is slow to count."""


class KeyFinder:
    """Finds keys in texts: those of known forms, and those that it was given."""

    def __init__(self) -> None:
        self._known: set[str] = set()
        self._all = _FORM
        self._names: set[str] = set()  # in which it has found no key
        self._finds: Callable[[str], bool] = self._learn

    def remember(self, key: str) -> None:
        """Find this key too from now on, whatever it looks like, as it is and as JSON has it."""
        is_usual = SHORTEST_KNOWN_CHARS <= len(key) <= LONGEST_KNOWN_CHARS
        if is_usual and key not in self._known and len(self._known) < MAX_KNOWN:
            self._known |= {key, json.dumps(key, ensure_ascii=False)[1:-1]}
            self._finds = self._learn
            self._names.clear()

    def _learn(self, text: str) -> bool:
        """Compile what finds all keys, once for those that were added meanwhile, and use it."""
        linear = _LINEAR_FORM
        if self._known:
            known = "|".join(map(re.escape, sorted(self._known, key=len, reverse=True)))
            self._all = re.compile(f"(?i:{known})|{_FORM.pattern}", _FORM.flags)  # a host is put into lower case
            linear = f"(?i:{known})|{linear}"
        self._finds = compile_linear(linear)
        return self._finds(text)

    def has_key(self, text: str) -> bool:
        """Return whether a text may contain a key; True for some that do not."""
        # The engine does not take halves of surrogate pairs.
        return self._finds(text if text.isascii() else text.encode(errors="replace").decode())

    def redact(self, text: str) -> str:
        """Return a text with each key in it replaced."""
        return self._all.sub(REDACTED, text) if self.has_key(text) else text

    def redact_name(self, name: str) -> str:
        """Return the same for a name that recurs, such as that of a model: one without a key is searched once."""
        if name in self._names:
            return name
        if self.has_key(name):
            return self._all.sub(REDACTED, name)
        if len(name) <= LONGEST_NAME_CHARS:
            if len(self._names) >= MAX_NAMES:
                self._names.clear()
            self._names.add(name)
        return name


KEYS = KeyFinder()
"""The finder of this process: the keys that it knows must not be in any output."""
has_key, redact_keys, redact_name = KEYS.has_key, KEYS.redact, KEYS.redact_name
