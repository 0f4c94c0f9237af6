"""What every table that people type has in common: no unknown keys, no changes, no secrets in sight."""

import os
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, SecretStr


class Table(BaseModel):
    """A TOML table. Its fields are its keys; an unknown key is an error, so that a slip of the pen is not a hole."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        hide_input_in_errors=True,  # a key that somebody typed by itself is refused, and not repeated in a traceback
    )


def _read_secret(value: object) -> SecretStr:
    """Raises ValueError for a value that names no secret: those stand in the environment or in a file."""
    if isinstance(value, SecretStr):
        return value
    kind, _, place = value.partition(":") if isinstance(value, str) else ("", "", "")
    if kind == "env" and place:
        secret = os.environ.get(place)
        if not secret:
            raise ValueError(f"the environment variable {place} is not set")
    elif kind == "file" and place:
        try:
            secret = Path(place).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ValueError(f"the file {place} cannot be read: {error.strerror}") from error
        if not secret:
            raise ValueError(f"the file {place} is empty")
    else:
        raise ValueError('a secret is given as "env:NAME" or "file:PATH", never by itself')
    return SecretStr(secret)


Secret = Annotated[SecretStr, BeforeValidator(_read_secret)]
