"""Who shares a limit: the teams, callers, keys, models, or a team's end users and values of a field of `metadata`."""

from collections.abc import Callable
from typing import Annotated

from pydantic import AfterValidator

from proxy.context import Context
from proxy.wire.call import MODEL_OPERATIONS, Call, Operation

LIMITED: frozenset[Operation] = MODEL_OPERATIONS | {"relay", "bodiless"}
"""The operations that limits over time count."""
METADATA = "metadata."
END_USER = ("safety_identifier", "user")
"""The fields of a call that name its end user, the newer one first."""


def _known(per: str) -> str:
    if per not in ("all", *_SIMPLE) and not per.removeprefix(METADATA) != per != METADATA:
        raise ValueError(
            'per is "all", "team", "caller", "key", "end_user", "model", or "metadata." and the name of a field'
        )
    return per


Per = Annotated[str, AfterValidator(_known)]
"""What calls have in common that share a limit. Those of a team without that value share one; what callers name
themselves, end users and values of metadata, belongs to their team."""


def shared_by(per: str) -> Callable[[Call, Context], str]:
    """Return the function that names, for a call, those who share its limit."""
    if per.startswith(METADATA):
        field = per.removeprefix(METADATA)

        def of_metadata(call: Call, context: Context) -> str:
            metadata = call.body.get("metadata")
            value = metadata.get(field) if isinstance(metadata, dict) else None
            return _of_team(context, value if isinstance(value, str) else "")

        return of_metadata
    return _SIMPLE.get(per, lambda _call, _context: "")


def _end_user(call: Call, context: Context) -> str:
    named = next((value for field in END_USER if isinstance(value := call.body.get(field), str) and value), "")
    return _of_team(context, named)


def _key(_call: Call, context: Context) -> str:
    """Return the name of the key that was sent, issued or from the config; without a key, that of the caller."""
    return _of_team(context, f"{context.caller.name}/{context.caller.fingerprint}")


def _of_team(context: Context, name: str) -> str:
    """Return a name that is the team's own: what callers name they choose themselves, and so may another team."""
    team = context.caller.team
    if "/" in team or "%" in team:  # else team "a" with "b/c" would be team "a/b" with "c"
        team = team.replace("%", "%25").replace("/", "%2F")
    return f"{team}/{name}"


_SIMPLE: dict[str, Callable[[Call, Context], str]] = {
    "team": lambda _call, context: context.caller.team,
    "caller": lambda _call, context: _of_team(context, context.caller.name),
    "key": _key,
    "end_user": _end_user,
    "model": lambda call, _context: call.model,
}
