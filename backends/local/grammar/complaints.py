"""What the compiler says of a grammar, in words for callers: they do not know what it is made of."""

import re

SHOWN_CHARS = 200
TOO_MUCH = "it is too large, or its patterns are too complex."
# What it says -> what is told.
PLAIN = (
    (r"coerce_one_of", "'oneOf' whose choices may overlap is not supported; use 'anyOf'."),
    (r"NoExtensionBias|NoExtension", "nothing can match it."),
    (r"Unable to determine if regex is empty", TOO_MUCH),
    (r"Failed to generate regex for .* range", "'minimum' or 'maximum' is too large, or too exact."),
    (r"multipleOf' has too many digits", "'multipleOf' has too many digits."),
    (r"(?i)too (?:many|large|big|complex)|fuel|limit", TOO_MUCH),
    (r"(?s)regex parse error:.*\nerror: (?P<reason>[^\n]*)", "a pattern is not valid: {}."),
)


def plain(message: str) -> str:
    """A line; "" of "" alone."""
    message = message.replace("<non-verbose/>", "").strip()
    for said, told in PLAIN:
        found = re.search(said, message)
        if found is not None:
            return told.format(found.groupdict().get("reason", "").strip()[:SHOWN_CHARS])
    return " ".join(message.split())[:SHOWN_CHARS]
