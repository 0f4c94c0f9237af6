"""What looks like a key, a token or a password in a text, so that it can be replaced before the text is shown.

No pattern has a repetition within a repetition, and each is bounded, so that the time grows with the text only.
"""

import re

REDACTED = "[redacted]"
LONGEST_CHARS = 512
"""The longest key but for a PEM block, whose end need not be in the text."""
PREFIXES = (
    r"(?:sk|pk|rk|hg|hf|npm|xox[a-z]|xapp|gh[a-z]|github[-_]pat|glpat|gocspx)[-_][a-z0-9_./-]{12,512}",
    r"(?:a[ks]ia|aiza|eyj)[\w.-]{12,4096}",
    r"(?:ya29|sg)\.[\w.-]{20,512}",
    r"age-secret-key-1[a-z0-9]{40,80}",
)
"""Of OpenAI, Stripe, Headgate, Hugging Face, Slack, GitHub, GitLab, Google; AWS, JSON web tokens; SendGrid; age."""
_KEY = re.compile(
    r"(?i)\b(?:bearer\s{1,8}\S{1,4096}|" + "|".join(PREFIXES) + r"|hooks\.slack\.com/services/[\w/]{12,256})"
    r"|-----BEGIN [A-Z0-9 ]{0,32}PRIVATE KEY(?: BLOCK)?-----(?:(?!-----END)[\s\S]){0,16384}"
    r"|(?<=://)[^\s/:@]{1,128}:[^\s/@]{1,256}(?=@)"  # the user and password of a URL
    r"|(?:secret|password|passwd|api[-_]?key|access[-_]?key|access[-_]?token)[\"'\\]{0,2}\s{0,4}[=:]\s{0,4}[\"'\\]{0,2}[^\s\"'\\,;]{8,512}"
)


def redact_keys(text: str) -> str:
    """Return a text with each key in it replaced."""
    return _KEY.sub(REDACTED, text)
