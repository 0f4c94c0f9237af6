"""Secrets of the config: the file only names them, as "env:NAME" or "file:PATH"."""

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, SecretStr

from proxy.wire.key_patterns import KEYS

MIN_SECRET_CHARS = 32
VARIABLE = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)+")
"""Variable names that messages may quote: no secret looks like `SEARCH_APP_KEY`."""


Reading = Literal["required", "if_there", "never"]
_reading: ContextVar[Reading] = ContextVar("reading", default="required")


@contextmanager
def reading_secrets(reading: Reading) -> Iterator[None]:
    """Let secrets that are not read, or that are not there, be placeholders inside the block: each place has its own.

    A gateway must never be served with them: anyone can make them.
    """
    token = _reading.set(reading)
    try:
        yield
    finally:
        _reading.reset(token)


def reads_files() -> bool:
    """Return whether the files that a config names exist on this machine, as where it is served."""
    return _reading.get() == "required"


def read_secret(value: object) -> SecretStr:
    """Return a secret. Raises ValueError for a value that does not name a secret, or names one that cannot be read.

    No message repeats a value that may be the secret itself, written in the wrong place.
    """
    if isinstance(value, SecretStr):
        return value
    kind, _, place = value.partition(":") if isinstance(value, str) else ("", "", "")
    read = _READERS.get(kind)
    if read is None or not place:
        raise ValueError('a secret must be "env:NAME" or "file:PATH", not the secret itself')
    reading = _reading.get()
    if reading == "never":
        return _placeholder(value)
    try:
        secret = read(place)
    except ValueError:
        if reading == "if_there":
            return _placeholder(value)
        raise
    if not secret.isprintable():
        raise ValueError("the secret that it names contains line breaks or control characters")
    KEYS.remember(secret)
    return SecretStr(secret)


def _read_variable(name: str) -> str:
    secret = os.environ.get(name)
    if not secret:
        shown = f"{name} " if VARIABLE.fullmatch(name) else "that it names "
        raise ValueError(f"the environment variable {shown}is {'not set' if secret is None else 'empty'}")
    return secret


def _read_file(path: str) -> str:
    try:
        secret = Path(path).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ValueError(f"the file that it names cannot be read: {error.strerror}") from None
    if not secret:
        raise ValueError("the file that it names is empty")
    return secret


_READERS = {"env": _read_variable, "file": _read_file}


def _placeholder(value: object) -> SecretStr:
    """Return a placeholder for a secret: equal for equal places, and valid wherever a key is."""
    return SecretStr(hashlib.sha256(f"placeholder {value}".encode()).hexdigest())


Secret = Annotated[SecretStr, BeforeValidator(read_secret)]


def _check_length(secret: SecretStr) -> SecretStr:
    """Raises ValueError for a secret that could be guessed."""
    if len(secret.get_secret_value()) < MIN_SECRET_CHARS:
        raise ValueError(f"a secret has at least {MIN_SECRET_CHARS} characters: openssl rand -base64 32 makes one")
    return secret


LongSecret = Annotated[Secret, AfterValidator(_check_length)]
"""A secret from which keys are derived."""
