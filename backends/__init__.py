"""What a backend is: the side of the gate where answers come from. Start from `_template.py`."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from proxy.config.table import Table
from proxy.wire.call import Call
from proxy.wire.event import Reply


class Backend(Table, ABC):
    """Answers calls. Its fields are its TOML keys, `name` among them."""

    name: str
    """What routes call it; also seen in logs, spans and as the owner of its models."""
    keeps_state: bool = False
    """Whether it holds its own responses and conversations, so that their ids mean something to it."""

    enforces: tuple[str, ...] = ()
    """Policies that it keeps by itself, such as ["max_tool_calls"]; replies of others are watched as they are made."""
    provider: str = "openai"
    """Whose models these are in traces: OpenTelemetry's `gen_ai.provider.name`."""

    @abstractmethod
    def respond(self, call: Call) -> AbstractAsyncContextManager[Reply]:
        """Open a reply. Leaving the block ends the work behind it, finished or not.

        Raises BackendError while opening, and from the reply's batches when the work breaks off later. A reply may be
        streamed or not, whatever the call asks for: the path turns one into the other.
        """

    def check(self) -> None:
        """Raises ValueError or OSError for what `start` would refuse, as far as that is seen without doing any work."""

    async def start(self) -> None:
        """Take what lives as long as the process: a pool of connections, a model."""

    async def close(self) -> None:
        """Give it back. Called once, after the last reply has been closed."""

    async def models(self) -> Sequence[str]:
        """The models it would answer for; used to list what routes with a `*` serve."""
        return ()

    async def described(self, _model: str) -> Mapping[str, Any]:
        """What is told of a model beside its name: what it can do, how long a context it reads."""
        return {}

    async def ready(self) -> bool:
        """Whether a call would find somebody there now."""
        return True
