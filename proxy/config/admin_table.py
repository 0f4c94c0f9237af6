"""The table [admin]: where operators are answered, and who they are."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from proxy.config.secrets import LongSecret, Secret
from proxy.config.table import Table
from proxy.identity.claims import compile_path

Role = Literal["owner", "team_admin", "viewer"]
OidcRole = Literal["owner", "team_admin", "viewer", "global_viewer"]


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


class OidcTable(Table):
    """How operators sign in with a browser at an [[issuer]], beside keys."""

    issuer: str
    """The name of the [[issuer]]. Its claims `caller` and `team` name the operator and the team."""
    client_id: Annotated[str, Field(min_length=1, max_length=256)]
    """What the issuer knows the console as; its tokens are for this audience. It redirects to
    URL/admin/oidc/callback, where URL is `url` of [admin]."""
    client_secret: Secret | None = None
    """The client's secret: "env:NAME" or "file:PATH". Default: none, for a client that only PKCE protects."""
    role: str = "groups"
    """The claim that names the role, written as in [[issuer]]: a text, or a list."""
    roles: dict[str, OidcRole]
    """The roles by the values of that claim: {platform = "owner"}. The first one in this order that the claim has
    counts; who has none is refused. A "team_admin" and a "viewer" are limited to the team that `team` of the [[issuer]]
    names; a "global_viewer" sees all teams."""
    scope: Annotated[str, Field(pattern=r"^[\x21\x23-\x5b\x5d-\x7e ]+$")] = "openid profile email"
    """The scopes that are requested from the issuer; some need "groups" for that claim."""

    @field_validator("role")
    @classmethod
    def _check_claim(cls, claim: str) -> str:
        compile_path(claim)
        return claim


class AdminTable(Table):
    """The listener for operators: metrics, health, admin API and console; without this table there is none."""

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
    """How many of the last requests each process keeps for the console, about 1 KB each."""
    session_s: Annotated[float, Field(ge=60, le=604_800)] = 28_800
    """How long an operator stays signed in, in seconds."""
    key: tuple[AdminKeyTable, ...] = ()
    """The keys of operators. Without any, and without `oidc`, API and console are open on loopback, and closed
    elsewhere."""
    oidc: OidcTable | None = None
    """Sign-in at an issuer. Default: keys only."""
