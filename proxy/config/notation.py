"""Values as a config file has them, for people."""

import json
from collections.abc import Mapping
from typing import Any

from pydantic import SecretStr

from proxy.config.positions import BARE_KEY


def as_typed(value: Any) -> str:
    """Return a value as a config file has it; of a secret only that it is there."""
    if isinstance(value, SecretStr):
        return "***"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(as_typed, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_key(key)} = {as_typed(each)}' for key, each in value.items())}}}"
    return json.dumps(value, ensure_ascii=False, default=str)


def _key(name: str) -> str:
    """Return a key, in quotes if it needs them: a dot would part it in two."""
    return name if BARE_KEY.fullmatch(name) else json.dumps(name, ensure_ascii=False)
