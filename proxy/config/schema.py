"""The tables of config.toml that every gateway has. Those with `use` are completed by the class that it names."""

import hashlib
import re
from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from proxy.config.secrets import LongSecret, Secret
from proxy.config.table import Table

Mode = Literal["enforce", "report", "off"]
UnknownIds = Literal["deny", "allow"]
Strategy = Literal["order", "weighted", "least_inflight", "affinity"]
Share = Literal["caller", "team", "all"]
CacheWhen = Literal["prompt_cache_key", "deterministic", "always", "never"]
Pacing = Literal["instant", "recorded"]
Collapse = Literal["off", "process", "shared"]
RELAYED_PATH = re.compile(r"/v1(?:/[A-Za-z0-9][A-Za-z0-9_-]*)+(?:/\*)?")
SERVED = frozenset({"responses", "conversations", "models"})
"""The first segments of the paths that the gateway serves itself; some upstreams compare them in any case."""


class CallerTable(Table):
    name: Annotated[str, Field(min_length=1, max_length=128)]
    """The caller's name in logs, spans and the selectors of policies."""
    team: str = ""
    """The team whose cached answers and budgets it shares. Default: its own name."""
    key: Secret | None = None
    """Its API key: "env:NAME" or "file:PATH"."""
    key_sha256: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")] | None = None
    """Or the SHA-256 of its key in hex, so that the key itself is stored nowhere."""

    @property
    def digest(self) -> bytes:
        """The SHA-256 of its key."""
        if self.key_sha256 is not None:
            return bytes.fromhex(self.key_sha256)
        return hashlib.sha256(self.key.get_secret_value().encode() if self.key else b"").digest()


class KeysTable(Table):
    """Keys that `headgate key` issues, beside the callers of the config. Without this table there are none."""

    refresh_s: Annotated[float, Field(ge=0.05, le=60)] = 0.5
    """How often each process reads what was changed, in seconds; a revoked key is accepted for this long at most."""


def has_teams(callers: Sequence[CallerTable], *others: object) -> bool:
    """Return whether there is more than one team, or may be: a key or a token can be of another one at any time.

    `others` are the tables of keys and issuers.
    """
    return any(others) or len({caller.team for caller in callers}) > 1


class FallbackTable(Table):
    """A route that is tried when the targets of another one fail."""

    route: str
    """The name of the [[route]]."""
    model: str = ""
    """The model that its backends are asked for. Default: the model of that route, or the call's own if that has
    wildcards."""


class RouteTable(Table):
    model: str
    """The model's name; `*` and `?` are wildcards. The first route that matches is taken."""
    backend: str = ""
    """The name of the [[backend]] that answers."""
    backends: tuple[str, ...] = ()
    """Or the names of several, which can take each other's place: servers, regions, keys of one provider."""
    name: str = ""
    """The route's name in the cache key, logs and spans. Default: the names of its backends."""
    default: bool = False
    """Whether it serves calls without a model, which a prompt template may name; at most one route. Such a call gets
    the route's model if that has no wildcards and the call no prompt. New conversations are created at its backend."""
    strategy: Strategy = "order"
    """Which of several backends is asked first: "order": the first in the list; "weighted": at random, by `weights`;
    "least_inflight": the one with the fewest calls; "affinity": always the same for a prompt_cache_key, or for a team
    and safety_identifier without one, so that cached prompts are found."""
    weights: dict[str, PositiveFloat] = Field(default_factory=dict)
    """With "weighted": the weight of each backend by its name; default 1."""
    affinity_max_per_min: PositiveInt | None = None
    """With "affinity": the most calls of one key in a minute that go to one backend; the next ones go to the next
    backend, and so on. Each process counts its own calls. Default: all go to one."""
    fallback: tuple[FallbackTable, ...] = ()
    """Routes to other models that are tried in this order when all backends of this one fail."""
    attempts: PositiveInt | None = None
    """How often a call may be sent to backends of this route, retries by the caller's SDK included. Default: 2, or
    the number of backends if that is larger. 1: it is never sent again."""
    cache: CacheWhen | None = None
    """Which of its calls are cached: see `when` of [cache], which is the default."""
    retry_within_s: PositiveFloat = 60
    """How long after a call's first attempt another one may begin, in seconds."""
    hedge_after_ms: PositiveFloat | None = None
    """How long the first event may take before another backend is asked too, in milliseconds; the slower one is
    cancelled, but may have to be paid for. Default: never. Calls with tools that the server runs are not hedged."""

    @property
    def backend_names(self) -> tuple[str, ...]:
        """The names of its backends in order; empty if it has none."""
        return self.backends or ((self.backend,) if self.backend else ())

    @property
    def shown_name(self) -> str:
        """Its name, or the names of its backends."""
        return self.name or "+".join(self.backend_names)


class RelayTable(Table):
    """A path of an upstream's API that the gateway does not serve itself: requests pass as they are."""

    path: str
    """The path, below /v1/; one that ends in `/*` stands for everything below it too: "/v1/files/*"."""
    backend: str
    """The name of the [[backend]] that answers, an upstream."""

    @field_validator("path")
    @classmethod
    def _check_path(cls, path: str) -> str:
        if not RELAYED_PATH.fullmatch(path):
            raise ValueError('a path is below /v1/ and has letters, digits, "-" and "_"; it may end in /*')
        if path.split("/")[2].casefold() in SERVED:
            raise ValueError(f"{path} is served by the gateway itself: a relay would be a way round its policies")
        return path


class SelectorTable(Table):
    """The keys of a [[policy]] that every policy has."""

    use: str
    mode: Mode = "enforce"
    rollout: Annotated[float, Field(ge=0, le=1)] = 1.0
    callers: tuple[str, ...] = ("*",)
    models: tuple[str, ...] = ("*",)


class StateTable(Table):
    """The keys of [state] that every store has: stored responses, owners, budgets and blocked identifiers are there."""

    use: str = "memory"
    secret: LongSecret | None = None
    """What keys of sealed values are derived from, of 32 characters or more. With one, responses and conversations are
    sealed in the store. Default: a random one in the store, for compacted conversations only."""
    ttl_days: PositiveFloat = 30
    """How long responses, conversations and owners of ids are kept, in days; a conversation from its last use."""
    unknown_ids: UnknownIds | None = None
    """What happens to an id without a known owner: "deny" answers it like an id of another team, "allow" leaves the
    decision to the upstream, as ids from before the gateway or before a restart with use = "memory" need it. Default:
    "deny" if the callers are in more than one team, otherwise "allow": there is no other team."""

    resume_window_s: PositiveFloat = 300
    """How long after its end the events of a background response can be streamed again, in seconds."""
    background_jobs: PositiveInt = 256
    """How many background responses of backends that keep no state may run or wait in a process; one more gets 429.
    A quarter is kept for teams that have none."""
    background_at_once: PositiveInt = 16
    """How many of them run at the same time; teams take turns. A quarter is kept for teams that run none."""
    background_lease_s: Annotated[float, Field(ge=0.5)] = 30
    """How long after the end of its process a background response counts as running, in seconds; then it failed."""

    @property
    def ttl_s(self) -> float:
        return self.ttl_days * 86_400


class CacheTable(Table):
    """The keys of [cache] that every store has."""

    use: str
    ttl_s: PositiveFloat = 3600
    """How long an answer may be given again, in seconds."""
    max_reply_bytes: PositiveInt = 1_048_576
    """The largest answer that is kept, in bytes."""
    server_tools: bool = False
    """Whether answers to calls with tools that the server runs are kept too."""
    when: CacheWhen = "prompt_cache_key"
    """Which calls are cached, for routes without a `cache` of their own: those with a "prompt_cache_key"; those that
    are "deterministic", with the temperature 0; "always" or "never"."""
    stale_while_revalidate_s: NonNegativeFloat = 0
    """How long after `ttl_s` an answer may still be given, in seconds, while a new one is asked for."""
    stale_if_error_s: NonNegativeFloat = 0
    """How long after `ttl_s` an answer may still be given, in seconds, if the backend fails."""
    local_ttl_s: NonNegativeFloat = 1
    """How long a process gives an answer that it has read from the store without reading it again, in seconds; 0: not
    at all. Redis says at once what has changed; a change of another process in SQLite is seen after this time."""
    local_max_bytes: PositiveInt = 33_554_432
    """How much memory answers that were read may take in each process, in bytes; those that are read again from the
    store and have not changed are not parsed again."""
    collapse: Collapse = "process"
    """Whether identical calls that are in flight share one call of the backend: "off", within a "process", or "shared"
    by all processes that share the store."""
    collapsed_cost: Literal["leader", "each"] = "leader"
    """Who is charged for a shared call in budgets: the first caller, or each of them."""
    pace: Pacing = "instant"
    """How fast a stream is given again: "instant" at once, "recorded" at its original pace."""
    share: Share = "team"
    """Who gets an answer again: "caller", "team", or "all" teams; a stored answer is never another team's."""
    secret: LongSecret | None = None
    """What keys of entries are derived from, of 32 characters or more. With one, entries are sealed in the store, and
    their keys say nothing. Default: none, entries are not sealed."""
    secrets: tuple[LongSecret, ...] = ()
    """Instead of `secret`, while it is being replaced: the new one, then the old ones, whose entries are still read."""

    @model_validator(mode="after")
    def _one_list_of_secrets(self) -> Self:
        if self.secret is not None and self.secrets:
            raise ValueError("give either secret or secrets")
        return self

    @property
    def secrets_in_order(self) -> list[bytes]:
        """The secrets, the one that entries are written with first."""
        found = self.secrets if self.secret is None else (self.secret,)
        return [secret.get_secret_value().encode() for secret in found]
