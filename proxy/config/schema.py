"""The tables of config.toml that every gate has; those with `use` are completed by the class that they name."""

import hashlib
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from proxy.config.secrets import Secret
from proxy.config.table import Table

Mode = Literal["enforce", "report", "off"]


class Server(Table):
    host: str = "127.0.0.1"
    """Where to listen. Anything but loopback needs at least one [[caller]]."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    """The port; 0 takes a free one."""
    hosts: tuple[str, ...] = ()
    """The Host names that are answered; left out: any with callers, only loopback's own without."""
    drain_s: NonNegativeFloat = 30
    """How long running calls may go on after SIGTERM, in seconds."""
    max_body_bytes: PositiveInt = 134_217_728
    """How large a request's body may be, in bytes; real ones with files reach 73 MB."""
    head_timeout_s: PositiveFloat = 20
    """How long a request's head may take to arrive, in seconds."""
    body_timeout_s: PositiveFloat = 20
    """How long its body may take, in seconds; every 64 KiB that arrive give one second more."""
    idle_timeout_s: PositiveFloat = 75
    """How long a connection is kept open between two requests, in seconds."""
    keep_alive_s: PositiveFloat = 15
    """How long a stream may be silent before a comment is sent to keep it alive, in seconds."""


class CallerTable(Table):
    name: Annotated[str, Field(min_length=1, max_length=128)]
    """Who it is, in logs, spans and policies' selectors."""
    team: str = ""
    """Whose cached answers and budgets it shares; left out: its own name."""
    key: Secret | None = None
    """Its API key: "env:NAME" or "file:PATH"."""
    key_sha256: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")] | None = None
    """Or the SHA-256 of its key in hex, so that the key itself stands nowhere."""

    @property
    def digest(self) -> bytes:
        """The SHA-256 of its key."""
        if self.key_sha256 is not None:
            return bytes.fromhex(self.key_sha256)
        return hashlib.sha256(self.key.get_secret_value().encode() if self.key else b"").digest()


class RouteTable(Table):
    model: str
    """The model's name; `*` and `?` stand for any characters. The first route that matches wins."""
    backend: str
    """The name of the [[backend]] that answers."""


class Selectors(Table):
    """The keys of a [[policy]] that are not the policy's own."""

    use: str
    mode: Mode = "enforce"
    rollout: Annotated[float, Field(ge=0, le=1)] = 1.0
    callers: tuple[str, ...] = ("*",)
    models: tuple[str, ...] = ("*",)


class StateTable(Table):
    """The key of [state] that is not its store's own: budgets and blocked identifiers are kept there."""

    use: str = "memory"


class CacheTable(Table):
    """The keys of [cache] that are not its store's own."""

    use: str
    ttl_s: PositiveFloat = 3600
    """How long an answer may be given again, in seconds."""
    max_reply_bytes: PositiveInt = 1_048_576
    """How large an answer may be to be kept, in bytes."""
    server_tools: bool = False
    """Whether answers to calls with tools that run on the server's side are kept too."""
