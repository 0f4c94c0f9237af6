"""The table `[usage]`."""

from typing import Annotated

from pydantic import Field, PositiveInt

from proxy.config.table import Table

NamePart = Annotated[str, Field(min_length=1, max_length=64)]


class UsageTable(Table):
    """What each team, caller, key and model has used, hour by hour, in [state]."""

    keep_days: Annotated[float, Field(ge=0, le=3650)] = 400
    """How long an hour is kept after it, in days; 0: usage is not counted."""
    metadata: Annotated[tuple[NamePart, ...], Field(max_length=8)] = ()
    """Keys of the callers' metadata whose values have rows of their own; a tag of the caller's key with that name comes
    first."""
    flush_s: Annotated[float, Field(ge=0.05, le=300)] = 5
    """How often each process writes what it has counted, in seconds. A report can be this old, and this much is lost if
    a gateway of one process is killed."""
    max_rows: PositiveInt = 2_000
    """How many rows each process counts in an hour; beyond it models and metadata are "other". A team may have as many
    as it leaves free."""
    team_view: bool = False
    """Whether GET /v1/usage shows a caller the usage of its whole team. Default: its own only."""
