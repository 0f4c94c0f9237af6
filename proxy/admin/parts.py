"""The parts of one process of the gateway that the admin API reads and changes."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from proxy.config.build import Config
from proxy.pipeline import Pipeline
from proxy.process_state import ProcessState
from proxy.telemetry.recent import RecentRequests

Preview = Callable[[], Awaitable[list[str]]]
"""Returns what a reload would change. Raises ConfigError, OSError."""


@dataclass(frozen=True, slots=True)
class GatewayParts:
    """The parts of a process that answers calls. `config` and `pipeline` return those of new calls."""

    config: Callable[[], Config]
    pipeline: Callable[[], Pipeline]
    process: ProcessState
    recent: Callable[[], RecentRequests] = RecentRequests
    """Returns the requests that ended last."""
    preview: Preview | None = None
