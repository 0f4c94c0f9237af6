"""`[[issuer]]`: an OIDC provider or a Kubernetes cluster whose tokens are accepted, and whom their claims name."""

from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import Field, PositiveFloat, StringConstraints, ValidationInfo, field_validator, model_validator

from proxy.config.secrets import Secret, reads_files
from proxy.config.table import Table
from proxy.identity.claims import ClaimMap, compile_path, is_name
from proxy.identity.key_set import ALGORITHMS, Algorithm, parse_key_set

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
Text = Annotated[str, StringConstraints(min_length=1, max_length=512)]
Audiences = Annotated[tuple[Text, ...], Field(min_length=1)]
MAX_DOCUMENT_BYTES = 1_048_576


class IssuerTable(Table):
    name: Name
    """Its name in logs, metrics and /readyz."""
    url: str
    """The issuer, exactly as the claim `iss` of its tokens has it: "https://login.example.com"."""
    audience: Text | Audiences
    """The audience, or several, of which a token must have one in `aud`."""
    caller: str = "sub"
    """The claim that names the caller. Claims are written as sub, groups[0] or "kubernetes.io".namespace; users must
    not be able to choose this one."""
    caller_prefix: str = ""
    """What stands before the caller's name: subjects are unique within their issuer only."""
    team: str = ""
    """The claim that names the team: a text, or a list of which the first is taken, or the first one of `teams`."""
    teams: dict[str, str] | None = None
    """The teams by the values of that claim; others have none. Default: the value is the team's name."""
    default_team: str = ""
    """The team of tokens whose claim names none. Default: they are refused."""
    tags: dict[Name, str] = Field(default_factory=dict)
    """Claims that are in the log line of each call, by the name of their tag."""
    require: dict[str, str | bool | int | tuple[str | int, ...]] = Field(default_factory=dict)
    """Claims that a token must have, each with its value or a list of values that are accepted."""
    algorithms: Annotated[tuple[Algorithm, ...], Field(min_length=1)] = ALGORITHMS
    """The algorithms of signatures that are accepted. There are none with a shared secret."""
    clock_skew_s: Annotated[float, Field(ge=0, le=600)] = 60
    """How far the clocks of issuer and gateway may differ, in seconds."""
    max_token_bytes: Annotated[int, Field(ge=256, le=65_536)] = 16_384
    """The longest token, in bytes."""
    jwks_url: str = ""
    """Where its keys are. Default: where `/.well-known/openid-configuration` below `url` says."""
    jwks_file: Path | None = None
    """Or a file with its keys, where the issuer cannot be reached."""
    ca_file: Path | None = None
    """The certificates that its server is checked with. Default: those of the system."""
    token_file: Path | None = None
    """A file with a token that is sent to `url` and `jwks_url` as Bearer, as a cluster of Kubernetes asks for."""
    proxy: Annotated[str, StringConstraints(pattern=r"^http://[^/?#@]+$")] | None = None
    """A proxy through which it is reached, by CONNECT: http://proxy.example:3128. Default: none, whatever the
    environment says."""
    proxy_auth: Secret | None = None
    """What the proxy asks for, as "user:password"."""
    refresh_s: Annotated[float, Field(ge=1, le=86_400)] = 300
    """How often its keys are fetched, in seconds."""
    stale_s: PositiveFloat = 86_400
    """How long its last keys are used while it cannot be reached, in seconds."""
    timeout_s: Annotated[float, Field(gt=0, le=60)] = 5
    """How long fetching its keys may take, in seconds."""

    @field_validator("url", "jwks_url")
    @classmethod
    def _check_url(cls, url: str, info: ValidationInfo) -> str:
        if url and (not is_safe(url) or (info.field_name == "url" and "?" in url)):
            raise ValueError("an address is https://HOST/..., without a user name; http:// on loopback only")
        return url

    @field_validator("caller", "team")
    @classmethod
    def _check_claim(cls, claim: str) -> str:
        if claim:
            compile_path(claim)
        return claim

    @field_validator("tags", "require")
    @classmethod
    def _check_claims(cls, claims: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        for claim in claims.values() if info.field_name == "tags" else claims:
            compile_path(claim)
        return claims

    @field_validator("ca_file", "token_file")
    @classmethod
    def _check_file(cls, path: Path | None) -> Path | None:
        if path is not None and reads_files():
            try:
                path.read_bytes()
            except OSError as error:
                raise ValueError(f"the file cannot be read: {error.strerror}") from None
        return path

    @field_validator("jwks_file")
    @classmethod
    def _check_keys(cls, path: Path | None) -> Path | None:
        if path is not None and reads_files():
            try:
                parse_key_set(read_document(path))
            except OSError as error:
                raise ValueError(f"the file cannot be read: {error.strerror}") from None
        return path

    @model_validator(mode="after")
    def _check_teams(self) -> Self:
        if not self.caller:
            raise ValueError('caller: name a claim, such as "sub"')
        if not self.team and not self.default_team:
            raise ValueError("give the claim that names the team as `team`, or one team for all as `default_team`")
        if self.teams is not None and not self.team:
            raise ValueError("`teams` needs the claim whose values it has, as `team`")
        if not all(map(is_name, (self.teams or {}).values())):
            raise ValueError("teams: a team has 1 to 128 printable characters")
        if self.jwks_file is not None and (self.jwks_url or self.ca_file or self.token_file or self.proxy):
            raise ValueError("with `jwks_file` nothing is fetched: leave out jwks_url, ca_file, token_file and proxy")
        return self

    @model_validator(mode="after")
    def _check_proxy(self) -> Self:
        if self.proxy_auth is not None and (self.proxy is None or ":" not in self.proxy_auth.get_secret_value()):
            raise ValueError('proxy_auth is "user:password" of `proxy`')
        if self.proxy is not None and any(map(is_local, filter(None, (self.url, self.jwks_url)))):
            raise ValueError("proxy: an issuer on this machine, by http://, is reached without one")
        return self

    @property
    def audiences(self) -> Sequence[str]:
        return (self.audience,) if isinstance(self.audience, str) else self.audience

    def claim_map(self) -> ClaimMap:
        """Return how its claims name callers."""
        return ClaimMap(
            self.name, compile_path(self.caller), self.caller_prefix, compile_path(self.team) if self.team else (),
            self.teams, self.default_team, tuple((tag, compile_path(claim)) for tag, claim in self.tags.items()),
            tuple((claim, compile_path(claim), allowed) for claim, allowed in self.require.items()),
        )  # fmt: skip


def read_document(path: Path) -> bytes:
    """Return a key set in a file. Raises OSError, and ValueError for one that is too large."""
    with path.open("rb") as file:
        data = file.read(MAX_DOCUMENT_BYTES + 1)
    if len(data) > MAX_DOCUMENT_BYTES:
        raise ValueError(f"it is larger than {MAX_DOCUMENT_BYTES} bytes")
    return data


def is_safe(url: str) -> bool:
    """Whether an address may be fetched from: by TLS, or from this machine."""
    try:
        parts = urlsplit(url)
        has_port = parts.port is None or parts.port > 0
    except ValueError:
        return False
    is_plain = not parts.username and not parts.password and not parts.fragment
    return bool(parts.hostname) and has_port and is_plain and (parts.scheme == "https" or is_local(url))


def is_local(url: str) -> bool:
    """Whether an address is http:// on this machine."""
    parts = urlsplit(url)
    try:
        return parts.scheme == "http" and (
            parts.hostname == "localhost" or ip_address(parts.hostname or "").is_loopback
        )
    except ValueError:
        return False
