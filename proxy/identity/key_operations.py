"""Operations on issued keys, shared by the command line and the admin API."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from proxy.identity.key_book import IssuedKey, KeyBook
from proxy.identity.key_format import make_key

DEFAULT_LIFETIME_S = 90 * 86_400.0
NEVER_S = float("inf")
MAX_NAME_CHARS, MAX_TAGS = 128, 16
TAG_NAME, TAG_VALUE = "[A-Za-z0-9_.-]{1,64}", "[A-Za-z0-9_.:/@-]{1,128}"
TAG = re.compile(f"{TAG_NAME}={TAG_VALUE}", re.ASCII)


class KeyOperationError(ValueError):
    """An operation that is not possible; the message is for the operator."""


def check_name(text: str) -> str:
    """Return the name of a caller or a team. Raises ValueError for what cannot be one."""
    if not 0 < len(text) <= MAX_NAME_CHARS or not text.isprintable():
        raise ValueError(f"has 1 to {MAX_NAME_CHARS} printable characters")
    return text


def new_key(
    name: str, team: str, now: float, lifetime_s: float, models: Sequence[str], tags: Mapping[str, str]
) -> tuple[str, IssuedKey]:
    """Return a new key and its record."""
    secret = make_key()
    more: dict[str, Any] = {"expires_at": end_of(now, lifetime_s), "models": tuple(models), "tags": dict(tags)}
    return secret, IssuedKey.of(secret, name, team, now, **more)


def key_in_place_of(old: IssuedKey, now: float, lifetime_s: float | None) -> tuple[str, IssuedKey]:
    """Return a new key with the rights of another one, and by default with the same lifetime."""
    if lifetime_s is None:
        lifetime_s = NEVER_S if old.expires_at is None else old.expires_at - old.created_at
    return new_key(old.name, old.team, now, lifetime_s, old.models, old.tags)


def overlap_end(old: IssuedKey, now: float, overlap_s: float) -> float:
    """Return when a replaced key stops being valid."""
    until = now + overlap_s
    return until if old.expires_at is None else min(until, old.expires_at)


def end_of(now: float, lifetime_s: float) -> float | None:
    """Return when a key expires; None for never."""
    return None if lifetime_s == NEVER_S else now + lifetime_s


def check_team(
    configured: Iterable[tuple[str, str]], teamless: Collection[str], book: KeyBook, name: str, team: str, now: float
) -> None:
    """Raises KeyOperationError for a name in two teams, because selectors of policies and limits go by names.

    And for a team that is another caller without a team. `configured` are the names and teams of the callers of the
    config, `teamless` the names of those who have none.
    """
    if team in teamless and team != name:
        raise KeyOperationError(f"'{team}' is a caller without a team, which no other caller can join")
    issued = ((other.name, other.team) for other in book.keys.values() if other.status(now) == "valid")
    for known_name, known_team in (*configured, *issued):
        if known_name == name and known_team != team:
            raise KeyOperationError(f"'{name}' is in the team '{known_team}'; a caller has one team")


def valid_key(book: KeyBook, key_id: str, now: float) -> IssuedKey:
    """Return a key that is valid. Raises KeyOperationError."""
    key = book.keys.get(key_id)
    if key is None:
        raise KeyOperationError(f"there is no key '{key_id}'; `headgate key list` prints all")
    if (status := key.status(now)) != "valid":
        raise KeyOperationError(f"{key_id} is {status} already")
    return key
