"""Secrets of the config file: never written there, only named, as "env:NAME" or "file:PATH"."""

import os
import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, SecretStr

MIN_SECRET_CHARS = 32
VARIABLE = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)+")
"""Names of variables that messages repeat: no secret looks like `SEARCH_APP_KEY`."""


def read_secret(value: object) -> SecretStr:
    """Return a secret. Raises ValueError for a value that does not name a secret, or names one that cannot be read.

    No message repeats a value that may be the secret itself, written in the wrong place.
    """
    if isinstance(value, SecretStr):
        return value
    kind, _, place = value.partition(":") if isinstance(value, str) else ("", "", "")
    if kind == "env" and place:
        secret = os.environ.get(place)
        if not secret:
            shown = f"{place} " if VARIABLE.fullmatch(place) else "that it names "
            raise ValueError(f"the environment variable {shown}is not set")
    elif kind == "file" and place:
        try:
            secret = Path(place).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ValueError(f"the file that it names cannot be read: {error.strerror}") from None
        if not secret:
            raise ValueError("the file that it names is empty")
    else:
        raise ValueError('a secret must be "env:NAME" or "file:PATH", not the secret itself')
    if not secret.isprintable():
        raise ValueError("the secret that it names contains line breaks or control characters")
    return SecretStr(secret)


Secret = Annotated[SecretStr, BeforeValidator(read_secret)]


def _check_length(secret: SecretStr) -> SecretStr:
    """Raises ValueError for a secret that could be guessed."""
    if len(secret.get_secret_value()) < MIN_SECRET_CHARS:
        raise ValueError(f"a secret has at least {MIN_SECRET_CHARS} characters: openssl rand -base64 32 makes one")
    return secret


LongSecret = Annotated[Secret, AfterValidator(_check_length)]
"""A secret that keys are derived from."""
