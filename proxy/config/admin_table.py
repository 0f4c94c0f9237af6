"""The table [admin]: where operators are answered, and who they are."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from proxy.config.secrets import LongSecret
from proxy.config.table import Table

Role = Literal["owner", "team_admin", "viewer"]


class AdminKeyTable(Table):
    """A key with which an operator signs in to the console, or that a program sends to the admin API."""

    name: Annotated[str, Field(min_length=1, max_length=128)]
    """Who uses it: the name in the audit."""
    key: LongSecret
    """The key, of 32 characters or more: "env:NAME" or "file:PATH"."""
    role: Role = "viewer"
    """ "owner": everything; "team_admin": sees its team, and issues keys for it; "viewer": changes nothing."""
    team: str = ""
    """The team that it is limited to; a "team_admin" needs one. Default: all teams."""

    @model_validator(mode="after")
    def _has_team(self) -> Self:
        if (self.role == "team_admin") > bool(self.team) or (self.role == "owner" and self.team):
            raise ValueError("a team_admin needs a team, and an owner has all of them")
        return self


class AdminTable(Table):
    """The listener of operators: metrics, health, admin API and console; without this table there is none."""

    host: str = "127.0.0.1"
    """The address to listen on. On any other than loopback the console and the API need a [[admin.key]], and only a
    firewall protects /metrics."""
    port: Annotated[int, Field(ge=0, le=65535)] = 9464
    """The port; 0 picks a free one."""
    url: Annotated[str, Field(pattern=r"^(https?://[^/?#\s]+)?$")] = ""
    """The address by which browsers reach it through a proxy: "https://gateway.example.com". Default: its own."""
    trace_url: Annotated[str, Field(pattern=r"^(https?://\S+)?$")] = ""
    """Where traces are shown, with {trace_id} in it: "https://traces.example.com/{trace_id}". Default: no links."""
    requests: Annotated[int, Field(ge=0, le=100_000)] = 1000
    """How many of the last requests each process keeps for the console, about 2 KB each."""
    session_s: Annotated[float, Field(ge=60, le=604_800)] = 28_800
    """How long an operator stays signed in, in seconds."""
    key: tuple[AdminKeyTable, ...] = ()
    """The keys of operators. Without any the API and the console are open on loopback, and closed elsewhere."""
