"""The tables of config.toml about the process: its listeners and its log."""

import os
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from proxy.config.table import Network, Table
from proxy.wire.origins import check_origin


def check_printable(text: str) -> str:
    """Return a text of one line. Raises ValueError for another one."""
    if not text.isprintable():
        raise ValueError("it has line breaks or control characters")
    return text


class ServerTable(Table):
    host: str = "127.0.0.1"
    """The address to listen on. Anything but loopback needs at least one [[caller]]."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    """The port; 0 picks a free one."""
    tls_cert: Path | None = None
    """A file (PEM) with the certificate chain of its listener, which then speaks HTTPS. A changed file is read again
    within seconds. Default: none, it speaks HTTP."""
    tls_key: Path | None = None
    """A file (PEM) with the key of that certificate, not encrypted."""
    workers: PositiveInt | Literal["auto"] = 1
    """How many processes serve it; "auto": one for each CPU. They share [state], and divide `memory_bytes`."""
    hosts: tuple[str, ...] = ()
    """The Host names that are served. Default: with callers any, without callers those of loopback only."""
    cors_origins: tuple[Annotated[str, AfterValidator(check_origin)], ...] = ()
    """Origins of web pages that may send requests and read the answers: "https://app.example.com", or
    "https://*.example.com" for all below it. They need a key as others do. Default: none."""
    contact: Annotated[str, Field(min_length=1, max_length=200), AfterValidator(check_printable)] | None = None
    """How callers reach the operator: an address, a channel, a page. Refusals that only an operator can lift end with
    it. Default: they say so without it."""
    drain_s: NonNegativeFloat = 30
    """How long running calls may continue after SIGTERM, in seconds."""
    drain_delay_s: NonNegativeFloat = 0
    """How long /readyz says 503 before that, while requests are still accepted, in seconds, so that load balancers
    notice."""
    max_body_bytes: PositiveInt = 134_217_728
    """The largest request body, in bytes; real requests with files reach 73 MB."""
    max_body_values: PositiveInt = 200_000
    """The most values (strings, numbers, objects, arrays ...) in the JSON of a request body."""
    memory_bytes: PositiveInt = 2_147_483_648
    """The memory for bodies of requests and answers of all calls together, in bytes; beyond it calls get 503. What
    WebSocket connections keep of responses may take a quarter more. A quarter of each is kept for teams that have
    little, if there are several teams."""
    max_head_bytes: Annotated[int, Field(ge=4096, le=1_048_576)] = 32_768
    """The largest head of a request, in bytes: its first line and all its fields together; a larger one gets 431."""
    head_timeout_s: PositiveFloat = 20
    """How long a request's head may take to arrive, in seconds."""
    body_timeout_s: PositiveFloat = 20
    """How long a request's body may take, in seconds; each 64 KiB received adds one second."""
    idle_timeout_s: PositiveFloat = 75
    """How long a connection is kept open between two requests, in seconds."""
    keep_alive_s: PositiveFloat = 15
    """How long a stream may be silent before a comment is sent to keep it alive, in seconds."""
    write_timeout_s: PositiveFloat = 60
    """How long a client may leave an answer unread while more of it waits to be sent, in seconds."""
    max_connections: PositiveInt | None = None
    """How many connections are served at once; one more gets 503. Default: what the limit on open files allows. As many
    calls, WebSocket turns included, can run at once; with several teams a quarter of them is kept for teams that have
    few, and one more gets 429. An idle connection is then closed to make room for a new one."""
    websockets_per_caller: NonNegativeInt = 256
    """How many WebSocket connections a caller may have at once; one more gets 429. 0: none, an upgrade gets 426."""
    trusted_proxies: tuple[Network, ...] = ()
    """Networks of your own proxies, whose `X-Forwarded-For` is believed: ["10.0.0.0/8"]. The client's address is the
    last one there that is in none of them. Default: none, it is the address of the connection."""
    trust_traceparent: bool = True
    """Whether a caller's `traceparent` is continued and passed on; else traces begin here."""
    log_metadata: tuple[str, ...] = ()
    """Keys of the callers' metadata whose values are in the log line of a call, as "metadata.KEY"."""
    deadline_s: PositiveFloat | None = None
    """How long after a request's arrival its backend may take to begin to answer, in seconds. Default: no limit but the
    backend's own."""

    @model_validator(mode="after")
    def _certificate_and_key(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key are given together")
        return self

    @property
    def scheme(self) -> str:
        """What its addresses begin with."""
        return "http" if self.tls_cert is None else "https"

    @property
    def worker_count(self) -> int:
        """How many processes serve."""
        return len(os.sched_getaffinity(0)) if self.workers == "auto" else self.workers


class LogTable(Table):
    """How the log on stderr is written."""

    format: Literal["auto", "json", "text"] = "auto"
    """ "json": a JSON object in each line; "text": short coloured lines; "auto": text on a terminal, else JSON."""
