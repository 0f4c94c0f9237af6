"""Issued keys: who has which, and that one is created, rotated or revoked.

The secret of a new key is made where the operator connects: the processes and the store receive its hash only.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field
from typing_extensions import TypedDict

from proxy.admin.api.endpoint import AdminEndpoint, AdminRequest, Name, NoParameters, Parameters
from proxy.admin.api.formats import as_time
from proxy.admin.parts import GatewayParts
from proxy.admin.problem import Problem
from proxy.admin.roles import MANAGERS, Operator
from proxy.identity.key_book import (
    IssuedKey,
    KeyBook,
    append_created,
    append_revoked,
    append_rotated,
    key_from_json,
    used_key,
)
from proxy.identity.key_operations import (
    DEFAULT_LIFETIME_S,
    MAX_NAME_CHARS,
    MAX_TAGS,
    NEVER_S,
    TAG_NAME,
    TAG_VALUE,
    KeyOperationError,
    check_name,
    check_team,
    key_in_place_of,
    new_key,
    overlap_end,
    valid_key,
)
from proxy.stores import Store, StoreError

LONGEST_LIFETIME_S = 3_650 * 86_400.0
Lifetime = Annotated[float, Field(gt=0, le=LONGEST_LIFETIME_S, allow_inf_nan=False)]
TagName = Annotated[str, Field(pattern=f"^{TAG_NAME}$")]
TagValue = Annotated[str, Field(pattern=f"^{TAG_VALUE}$")]
CallerName = Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARS), AfterValidator(check_name)]


class KeyRequest(Parameters):
    name: CallerName
    """Its caller in logs and the selectors of policies."""
    team: CallerName
    """Whose cached answers and budgets it shares."""
    expires_in_s: Lifetime | None = DEFAULT_LIFETIME_S
    """How long it is valid, in seconds; null: for ever."""
    models: Annotated[list[Name], Field(max_length=64)] = Field(default=[])
    """Globs of the models that it may name; none: any."""
    tags: Annotated[dict[TagName, TagValue], Field(max_length=MAX_TAGS)] = Field(default={})
    """What is in the log line of each of its calls."""


class Rotation(Parameters):
    overlap_s: Annotated[float, Field(ge=0, le=LONGEST_LIFETIME_S, allow_inf_nan=False)] = 0
    """How long the old key is still valid, in seconds."""
    expires_in_s: Lifetime | Literal["never"] | None = None
    """How long the new one is valid, in seconds, or "never"; null: as long as the old one was to be."""


class KeyFacts(TypedDict):
    id: str
    name: str
    team: str
    status: str
    created: str | None
    expires: str | None
    revoked: str | None
    last_used: str | None
    models: list[str]
    tags: dict[str, str]


class KeyList(TypedDict):
    keys: list[KeyFacts]


class NewKey(TypedDict):
    secret: str
    key: KeyFacts


def _store(parts: GatewayParts) -> Store:
    if parts.config().keys is None:
        raise Problem(
            409, "keys_not_configured", "Issued keys need the table [keys] in the config, which may be empty."
        )
    return parts.config().state


async def read_keys(parts: GatewayParts, _argument: Mapping[str, Any]) -> Any:
    """Return all issued keys, and when each was used last. Raises Problem."""
    store = _store(parts)
    try:
        keys = [*(await KeyBook().read_on(store)).keys.values()]
        uses = await store.get_many([used_key(key.id) for key in keys]) if keys else []
    except StoreError as error:
        raise _unavailable() from error
    return await asyncio.to_thread(_packed, keys, uses)


def _packed(keys: Sequence[IssuedKey], uses: Sequence[bytes | None]) -> list[Any]:
    """Return keys as JSON, each with the time of its last use: in a thread, as there may be many thousands."""
    return [[asdict(key), None if use is None else float(use)] for key, use in zip(keys, uses, strict=True)]


async def change_key(parts: GatewayParts, argument: Mapping[str, Any]) -> Any:
    """Append a change to the journal of keys, or only check that it can be made. Raises Problem."""
    store, now = _store(parts), time.time()
    new = None if argument["new"] is None else key_from_json(argument["new"])
    try:
        book = await KeyBook().read_on(store)
        if new is not None and argument["id"] is None:
            config = parts.config()
            configured = ((caller.name, caller.team) for caller in config.callers)
            check_team(configured, config.teamless_callers, book, new.name, new.team, now)
        old = None if argument["id"] is None else valid_key(book, argument["id"], now)
        if not argument["is_check"]:
            await _append(store, old, new, argument["until"], now)
    except KeyOperationError as error:
        is_known = argument["id"] is None or argument["id"] in book.keys
        raise Problem(409 if is_known else 404, "key_not_changed" if is_known else "unknown_key", str(error)) from error
    except StoreError as error:
        raise _unavailable() from error
    return {}


async def _append(store: Store, old: IssuedKey | None, new: IssuedKey | None, until: float, now: float) -> None:
    if old is not None and new is not None:
        await append_rotated(store, old, new, until)
    elif new is not None:
        await append_created(store, new)
    elif old is not None:
        await append_revoked(store, old, now)


def _unavailable() -> Problem:
    return Problem(503, "state_unavailable", "The store of [state] cannot be reached at the moment.")


async def list_keys(request: AdminRequest) -> KeyList:
    """Return the keys of the operator's team, or all."""
    found = await request.services.processes.one("keys")
    return KeyList(keys=await asyncio.to_thread(_seen_by, request.operator, found))


def _seen_by(operator: Operator, found: Sequence[Any]) -> list[KeyFacts]:
    """Return what an operator sees of keys, the newest first: in a thread, as there may be many thousands."""
    keys = [(key_from_json(key), used_at) for key, used_at in found]
    seen = [_facts(key, used_at) for key, used_at in keys if operator.sees(key.team)]
    return sorted(seen, key=lambda key: str(key["created"]), reverse=True)


async def create_key(request: AdminRequest) -> NewKey:
    """Make a key, and return its secret: it is not kept."""
    order: KeyRequest = request.body
    request.operator.check_team(order.team)
    lifetime_s = NEVER_S if order.expires_in_s is None else order.expires_in_s
    secret, key = new_key(order.name, order.team, time.time(), lifetime_s, order.models, order.tags)
    try:
        await _change(request, "key.created", key, new=key)
    except Problem as problem:
        if problem.code == "key_not_changed" and request.operator.team:  # do not say whose the name is
            raise Problem(
                409, problem.code, "Another team has a caller with this name; a caller has one team."
            ) from None
        raise
    return NewKey(secret=secret, key=_facts(key, None))


async def rotate_key(request: AdminRequest) -> NewKey:
    """Make a key in place of another one, and return its secret."""
    rotation: Rotation = request.body
    old, now = await _known(request), time.time()
    lifetime_s = NEVER_S if rotation.expires_in_s == "never" else rotation.expires_in_s
    secret, key = key_in_place_of(old, now, lifetime_s)
    until = overlap_end(old, now, rotation.overlap_s)
    await _change(request, "key.rotated", old, old=old, new=key, until=until)
    return NewKey(secret=secret, key=_facts(key, None))


async def revoke_key(request: AdminRequest) -> KeyFacts:
    """Refuse a key from now on."""
    key = await _known(request)
    await _change(request, "key.revoked", key, old=key)
    return _facts(replace(key, revoked_at=time.time()), None)


async def _known(request: AdminRequest) -> IssuedKey:
    """Return the key that the path names. Raises Problem; a key of another team is as unknown as any."""
    for found, _ in await request.services.processes.one("keys"):
        key = key_from_json(found)
        if key.id == request.values["id"] and request.operator.sees(key.team):
            return key
    raise Problem(404, "unknown_key", "There is no key with this id.")


async def _change(
    request: AdminRequest, event: str, named: IssuedKey, *, old: IssuedKey | None = None,
    new: IssuedKey | None = None, until: float = 0.0,
) -> None:  # fmt: skip
    """Check a change, write it to the audit, and make it."""
    change = {"id": None if old is None else old.id, "new": None if new is None else asdict(new), "until": until}
    await request.services.processes.one("change_key", **change, is_check=True)
    fields = {"key_id": named.id, "name": named.name, "team": named.team}
    if old is not None and new is not None:
        fields["replaced_by"] = new.id
    await request.services.audit.record(request.operator, event, **fields)
    await request.services.processes.one("change_key", **change, is_check=False)


def _facts(key: IssuedKey, used_at: float | None) -> KeyFacts:
    return KeyFacts(
        id=key.id, name=key.name, team=key.team, status=key.status(time.time()), created=as_time(key.created_at),
        expires=as_time(key.expires_at), revoked=as_time(key.revoked_at), last_used=as_time(used_at),
        models=[*key.models], tags=dict(key.tags),
    )  # fmt: skip


ENDPOINTS = (
    AdminEndpoint("GET", "/keys", "Issued keys, the newest first", list_keys, KeyList),
    AdminEndpoint("POST", "/keys", "Make a key", create_key, NewKey, body=KeyRequest, roles=MANAGERS, status=201),
    AdminEndpoint(
        "POST", "/keys/{id}/rotate", "Make a key in place of another", rotate_key, NewKey, body=Rotation,
        roles=MANAGERS, status=201,
    ),
    AdminEndpoint("POST", "/keys/{id}/revoke", "End a key", revoke_key, KeyFacts, NoParameters, NoParameters, MANAGERS),
)  # fmt: skip
