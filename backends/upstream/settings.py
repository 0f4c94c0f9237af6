"""The keys of an upstream in the config."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    field_validator,
    model_validator,
)

from backends import Backend, Concurrency
from backends.upstream.dialects.fitting import fit
from backends.upstream.dialects.profiles import PROFILES, ProfileName
from backends.upstream.dialects.repairs import Repair
from backends.upstream.headers import HeaderFilter
from backends.upstream.http1 import Origin, encode_head
from proxy.config.secrets import Secret, read_secret
from proxy.context import Context
from proxy.wire.call import Call
from proxy.wire.headers import FORWARDED, HeaderNames
from proxy.wire.ignored import ignored_header

ENDPOINTS = ("/responses", "/chat/completions", "/models")
OWN_HEADERS = frozenset({
    "accept", "accept-encoding", "connection", "content-length", "content-type", "expect", "host", "te", "traceparent",
    "tracestate", "transfer-encoding", "upgrade",
})  # fmt: skip

ESSENTIAL = frozenset({
    "background", "conversation", "input", "instructions", "max_output_tokens", "model", "previous_response_id",
    "prompt", "store", "stream", "text", "tool_choice", "tools",
})  # fmt: skip
"""Fields that no profile and no config can drop: without them the answer would be another, or kept against a wish."""


def _header_value(value: object) -> object:
    return read_secret(value) if isinstance(value, str) and value.startswith(("env:", "file:")) else value


HeaderValue = Annotated[SecretStr | str, BeforeValidator(_header_value)]


def plain_value(value: SecretStr | str) -> str:
    """Return the text of a value that may be a secret."""
    return value.get_secret_value() if isinstance(value, SecretStr) else value


class UpstreamSettings(Backend):
    """The keys of an upstream: how it is reached, and which parts of its answers are forwarded."""

    profile: ProfileName = "generic"
    """What kind of server it is: "openai", "openai-2025", "azure", "vllm", "llamacpp", "ollama", "lmstudio", "nebius",
    "sudo", "openrouter". It sets the defaults of other keys: backends/upstream/dialects/profiles.py."""
    base_url: str = Field(pattern=r"^https?://[^?#@]+$")
    """The address of the API, version included: https://api.openai.com/v1; `path` is added to one without a path."""
    path: str = Field(default="/v1", pattern=r"^/[^?#\s]*$")
    """The path of the API at an address without one."""
    api_key: Secret | None = None
    """The gateway's own key for it. Default: none is sent. A caller's key is never sent."""
    auth: Literal["bearer", "api-key"] = "bearer"
    """How the key is sent: as "Authorization: Bearer KEY", or as "api-key: KEY"."""
    token_command: tuple[str, ...] = ()
    """Instead of api_key: a command and its arguments that prints a key which expires, as clouds have them."""
    token_file: Path | None = None
    """Or a file that has it, and that something else keeps up to date."""
    token_ttl_s: PositiveFloat = 300
    """How long such a key is used before the command is run or the file is read again, in seconds; or until a 401."""
    headers: dict[str, HeaderValue] = Field(default_factory=dict)
    """Headers of every request: text, or secrets as "env:NAME" and "file:PATH"."""
    query: dict[str, str] = Field(default_factory=dict)
    """Parameters in the query of every request, such as {api-version = "preview"}."""
    proxy: str | None = Field(default=None, pattern=r"^http://[^/?#@]+$")
    """A proxy through which it is reached, by CONNECT: http://proxy.example:3128. Default: none, whatever the
    environment says."""
    proxy_auth: Secret | None = None
    """What the proxy asks for, as "user:password"."""
    prices: str = ""
    """Whose list prices its calls have: a provider of the package genai-prices, such as "openai". Default: the one
    whose API is at `base_url`, if there is one."""
    connect_timeout_s: PositiveFloat = 5
    """How long connecting may take, TLS included, in seconds."""
    first_event_timeout_s: PositiveFloat = 600
    """How long the first event of its answer, or the answer itself if it is no stream, may take, in seconds."""
    between_events_timeout_s: PositiveFloat = 300
    """How long another event of a stream, or another part of an answer that is none, may take, in seconds."""
    total_timeout_s: PositiveFloat | None = None
    """How long a whole answer may take, in seconds. Default: no limit."""
    max_concurrent: PositiveInt | None = None
    """How many calls it may have at a time, from each process of the gateway; a quarter is kept for teams that have
    few. Default: no limit of its own, but `[server] max_connections` limits the calls of each team."""
    max_waiting: NonNegativeInt = 100
    """How many more may wait for a place, where teams take turns; one more gets 429."""
    max_wait_s: PositiveFloat = 10
    """How long each of them may wait, in seconds; then it gets 503."""
    slow_start_after_s: PositiveFloat | None = None
    """How late answers may begin, in seconds, before that counts against it in a route with several backends. Default:
    any time is fine."""
    idle_timeout_s: PositiveFloat = 30
    """How long a connection without a call is kept open for the next one, in seconds."""
    ca_file: Path | None = None
    """A file of the authorities (PEM) that sign its certificate. Default: those of the system."""
    client_cert_file: Path | None = None
    """A file (PEM) with the certificate that it asks the gateway for. Default: none."""
    client_key_file: Path | None = None
    """A file (PEM) with the key of that certificate. Default: it is in the same file."""
    max_answer_bytes: PositiveInt = 268_435_456
    """The largest answer that is not a stream, in bytes."""
    websocket: bool = False
    """Whether it speaks WebSocket mode: callers' connections then have one to it each. One that refuses gets POSTs."""
    compaction: bool | None = None
    """Whether it compacts conversations (/responses/compact, `compaction_trigger`); default: as keeps_state says."""
    drop_fields: tuple[str, ...] = ()
    """Fields of calls that it refuses and answers do not depend on, such as "safety_identifier" or "text.verbosity":
    they are not sent, and named in x-headgate-ignored."""
    includes: tuple[str, ...] | None = None
    """The values of `include` that it knows; the others are not sent, and named in x-headgate-ignored. Default: any."""
    minimums: dict[Literal["max_output_tokens", "max_tool_calls"], NonNegativeInt] = Field(default_factory=dict)
    """The least values of these fields where it allows less than the protocol does: {max_output_tokens = 0}."""
    repairs: tuple[Repair, ...] = ()
    """What is mended in its streams: "sequence_number", "lifecycle", "openers", "item_ids", "output", "terminal"."""
    forward_headers: tuple[str, ...] = FORWARDED
    """The callers' headers that it receives, such as "openai-project"; a name may end in `*`. Replaces the default."""
    forward_answer_headers: tuple[str, ...] = ()
    """More headers of its answers for callers, as names or as beginnings that end in *, such as "x-ms-*".

    Limits, retries, and what SDKs and coding agents read (openai-*, x-ratelimit-*, x-codex-* ...) always are."""

    @model_validator(mode="before")
    @classmethod
    def _apply_profile(cls, keys: object) -> object:
        """Add the keys of the profile that are not given."""
        if not isinstance(keys, dict):
            return keys
        profile = keys.get("profile")
        return {**next((known for name, known in PROFILES.items() if name == profile), {}), **keys}

    @field_validator("forward_headers")
    @classmethod
    def _check_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(sorted(HeaderNames(names).names))

    @field_validator("forward_answer_headers")
    @classmethod
    def _may_be_forwarded(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        HeaderFilter(names)
        return names

    @field_validator("base_url")
    @classmethod
    def _check_base_url(cls, base_url: str) -> str:
        """Raises ValueError for an address that no request can be sent to, and for that of one endpoint."""
        for path in ENDPOINTS:
            if base_url.rstrip("/").endswith(path):
                raise ValueError(f"it ends in {path}, which every call adds to it; leave that out")
        encode_head("GET", urlsplit(base_url).path, {"Host": Origin.of(base_url).authority})
        return base_url

    @field_validator("headers")
    @classmethod
    def _check_headers(cls, headers: dict[str, HeaderValue]) -> dict[str, HeaderValue]:
        """Raises ValueError for a header that a request cannot have, and for one that the gateway itself sends."""
        encode_head("GET", "/", {name: plain_value(value) for name, value in headers.items()})
        for name in headers:
            if name.lower() in OWN_HEADERS:
                raise ValueError(f"the gateway itself sends '{name}'")
        return headers

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        """Raises ValueError for keys that exclude one another, and for those without effect."""
        given = [name for name in ("api_key", "token_command", "token_file") if getattr(self, name)]
        names = {name.lower() for name in self.headers}
        if len(given) > 1:
            raise ValueError(f"{given[0]} and {given[1]} are two keys; give one")
        if given and ("authorization" if self.auth == "bearer" else "api-key") in names:
            raise ValueError(f"{given[0]} and headers have the same header; give one")
        if (needed := sorted({*self.drop_fields} & ESSENTIAL)) != []:
            raise ValueError(
                f"drop_fields has {needed[0]}, on which answers depend; leave it to the upstream to refuse it"
            )
        if (both := sorted({*self.drop_fields} & {*self.enforces})) != []:
            raise ValueError(f"it cannot enforce {both[0]}, which drop_fields leaves out; remove it from enforces")
        if self.proxy_auth is not None and self.proxy is None:
            raise ValueError("proxy_auth has no effect without proxy")
        if self.client_key_file is not None and self.client_cert_file is None:
            raise ValueError("client_key_file has no effect without client_cert_file")
        return self

    @property
    def concurrency(self) -> Concurrency | None:
        limit = self.max_concurrent
        return None if limit is None else Concurrency(limit, self.max_waiting, self.max_wait_s)

    @property
    def slow_start_s(self) -> float | None:
        return self.slow_start_after_s

    @property
    def address(self) -> str:
        return self.base_url.rstrip("/")

    @property
    def price_list(self) -> str:
        return self.prices or ("" if _is_private(self.base_url) else self.base_url)

    @property
    def compacts(self) -> bool:
        return self.keeps_state if self.compaction is None else self.compaction

    @property
    def least_values(self) -> Mapping[str, int]:
        return {str(name): least for name, least in self.minimums.items()}

    async def preview(self, call: Call, context: Context) -> Mapping[str, str]:
        return ignored_header(self.fitted(call, context)[1]) if self.needs_fitting else {}

    @cached_property
    def needs_fitting(self) -> bool:
        """Whether there is anything that it may refuse."""
        return bool(self.drop_fields) or self.includes is not None

    def fitted(self, call: Call, context: Context) -> tuple[Call, Sequence[str]]:
        """Return the call as the upstream takes it, and the names of what has no effect."""
        return fit(call, self.drop_fields, self.includes, context.held_fields)


def _is_private(address: str) -> bool:
    """Whether an address is one of this machine or of a private network, where no provider has its API."""
    host = urlsplit(address).hostname or ""
    try:
        return ip_address(host).is_private
    except ValueError:
        return "." not in host
