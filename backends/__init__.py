"""The base class of backends, which answer calls. Start from `_template.py`."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

from proxy.config.table import Table
from proxy.context import Context
from proxy.wire.call import Call, Operation
from proxy.wire.errors import BackendError
from proxy.wire.event import Reply
from proxy.wire.headers import DEFAULT_HEADERS, HeaderNames
from proxy.wire.relay import RelayReply, RelayRequest
from proxy.wire.resource import ResourceRequest


@dataclass(frozen=True, slots=True)
class Concurrency:
    """How many calls a backend may have at a time, how many more may wait, and for how many seconds."""

    at_once: int
    max_waiting: int
    max_wait_s: float


ENGINES = "HEADGATE_ENGINES"
"""The environment variable by which a worker process learns the file descriptor of its connection to shared engines."""


class Backend(Table, ABC):
    """Answers calls. Its fields are its TOML keys, `name` among them."""

    operations: ClassVar[frozenset[Operation]] = frozenset({"create"})
    """The operations of calls that `respond` answers; calls for others get 501."""

    needs_model: ClassVar[bool] = True
    """Whether every call must name a model; a server of prompt templates also answers calls without one."""

    can_relay: ClassVar[bool] = False
    """Whether paths beside those of the Responses protocol can be relayed to it."""

    name: str
    """Its name in routes, logs and spans, and as the owner of its models."""
    keeps_state: bool = False
    """Whether it stores its own responses and conversations, so that it can resolve their ids."""

    enforces: tuple[str, ...] = ()
    """Policies that it enforces itself, such as ["max_tool_calls"]; for the others its replies are checked."""
    provider: str = "openai"
    """The provider of these models in traces: OpenTelemetry's `gen_ai.provider.name`."""

    @property
    def address(self) -> str | None:
        """Return the address of its API, for traces; None for one that runs in this process."""
        return None

    @property
    def price_list(self) -> str | None:
        """Return whose list prices its calls have: the id of a provider in genai-prices, or the address of its API.

        "" for none, None for a backend whose calls cost nothing, as those of a model on this machine.
        """
        return None

    @property
    def compacts(self) -> bool:
        """Whether it compacts conversations itself and reads its own `compaction` items; else the gateway does."""
        return False

    @property
    def speaks_websocket(self) -> bool:
        """Whether it answers callers in WebSocket mode by a connection of its own, warm-ups included."""
        return False

    @property
    def header_names(self) -> HeaderNames:
        """Return the names of the callers' headers that it sends on or reads: the cache key has their values."""
        return DEFAULT_HEADERS

    def shares_objects(self, other: "Backend") -> bool:
        """Whether what another backend has created can be named here: both are one account of one server."""
        return other is self

    @property
    def concurrency(self) -> Concurrency | None:
        """Return how many calls it may have at a time; None if the gateway need not limit them."""
        return None

    @property
    def slow_start_s(self) -> float | None:
        """Return the time in seconds after which an answer counts as slow; None: never."""
        return None

    @property
    def least_values(self) -> Mapping[str, int]:
        """Return the least values of fields of a call where it allows less than the protocol: {"max_tool_calls": 0}."""
        return {}

    @abstractmethod
    def respond(self, call: Call, context: Context) -> AbstractAsyncContextManager[Reply]:
        """Open a reply. Leaving the block ends the work behind it, finished or not.

        Raises BackendError while opening, and from the reply's batches if the work breaks off later. A reply may be a
        body or a stream, whatever the call asks for: the path converts one into the other. A stream's events of the
        types in `context.followed` must be Events; the others may be Runs.
        """

    async def preview(self, call: Call, context: Context) -> Mapping[str, str]:
        """Return the headers of the answer that a call will get, for one that is answered before its work begins.

        Raises RequestError for what `respond` would refuse in the call, as far as that is known without the work.
        """
        del call, context
        return {}

    def forward(self, request: ResourceRequest, context: Context) -> AbstractAsyncContextManager[Reply]:
        """Open the reply to a request for something that this backend keeps. Used only with `keeps_state`.

        A successful reply is a body with its object in `Reply.response`, or a stream. Raises BackendError.
        """
        del context
        raise unsupported(f"{request.method} requests for {request.kind}")

    def relay(self, request: RelayRequest, context: Context) -> AbstractAsyncContextManager[RelayReply]:
        """Send a request of a relayed path on as it is. Leaving the block ends the work behind it.

        Raises BackendError while opening, and from the answer's chunks. Only for a backend that `can_relay`.
        """
        del request, context
        raise unsupported("relayed paths")

    def check(self) -> None:
        """Raises ValueError or OSError for what `start` would refuse, as far as that needs no work."""

    async def start(self) -> None:
        """Acquire resources for the life of the process: a connection pool, a model."""

    async def close(self) -> None:
        """Release them. Called once, after the last reply was closed."""

    async def models(self) -> Sequence[str]:
        """Return the models it answers for; used to list what a route with wildcards serves."""
        return ()

    async def describe(self, _model: str) -> Mapping[str, Any]:
        """Return the properties of a model: capabilities, context length."""
        return {}

    async def reach(self) -> str | None:
        """Return for the operator why calls would fail; None if they would be answered. Called after `start`."""
        return None if await self.ready() else "it is not ready"

    async def ready(self) -> bool:
        """Whether it can answer a call at the moment."""
        return True


def unsupported(what: str) -> BackendError:
    """Return the refusal of something that a backend does not offer. Sending it again would not help.

    Source: https://www.rfc-editor.org/rfc/rfc9110#section-15.6.2
    """
    return BackendError(
        f"The backend of this request does not support {what}.", status=501, code="not_supported",
        headers={"x-should-retry": "false"}, sent=False,
    )  # fmt: skip


def least_values_of(backends: Iterable[Backend]) -> Mapping[str, int]:
    """Return the least values of fields that one of them allows, where that is less than the protocol does."""
    least: dict[str, int] = {}
    for backend in backends:
        least |= {name: min(value, least.get(name, value)) for name, value in backend.least_values.items()}
    return least
