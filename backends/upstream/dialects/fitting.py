"""Removes from a call the fields that its upstream refuses and that do not change the answer."""

from collections.abc import Collection, Sequence
from typing import Any

from proxy.wire.call import Call

INCLUDE = "include"


def fit(
    call: Call, drop_fields: Sequence[str], includes: Collection[str] | None, held: Collection[str]
) -> tuple[Call, list[str]]:
    """Return the call without these fields, and the names of those that have no effect now.

    A name like "text.verbosity" is a field within a field. `includes` are the values of `include` that stay; None: all.
    What the gateway enforces itself (`held`) has its effect without being sent.
    """
    body: dict[str, Any] = {}  # the fields that change; None: it is dropped
    dropped: list[str] = []
    for name in drop_fields:
        outer, _, inner = name.partition(".")
        value = body.get(outer, call.body.get(outer))
        inside = value if isinstance(value, dict) else {}
        if outer not in call.body or (inner and inner not in inside):
            continue
        body[outer] = {key: kept for key, kept in inside.items() if key != inner} if inner else None
        if value is not None and name not in held:
            dropped.append(name)
    values = call.body.get(INCLUDE) if includes is not None else None
    if includes is not None and isinstance(values, list) and not all(_is_in(value, includes) for value in values):
        body[INCLUDE] = [value for value in values if _is_in(value, includes)] or None
        dropped += [f"{INCLUDE}.{value}" for value in values if not _is_in(value, includes)]
    if not body:
        return call, dropped
    kept = call.without_fields(*(name for name, value in body.items() if value is None))
    return kept.with_fields(**{name: value for name, value in body.items() if value is not None}), dropped


def _is_in(value: object, includes: Collection[str]) -> bool:
    """Whether a value stays: what is not a string is refused by the upstream itself."""
    return not isinstance(value, str) or value in includes
