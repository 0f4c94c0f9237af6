"""The objects that live as long as the process, while each reload of the config builds the others anew."""

import asyncio
from collections import Counter
from dataclasses import dataclass, field

from proxy.identity.directory import Directory
from proxy.routing.targets import Targets
from proxy.shares import Shares
from proxy.state.sealing import Sealing
from proxy.stores import Store
from proxy.telemetry.audit import Audit
from proxy.telemetry.finished import FinishedRequests
from proxy.telemetry.recorder import Recorder
from proxy.telemetry.sampling import RequestSpans
from proxy.usage.book import UsageBook
from proxy.workers import BodyMemory, Workers


@dataclass(slots=True)
class ProcessState:
    """The objects that every generation of the config shares: telemetry, targets, callers, memory, the store."""

    audit: Audit | None
    recorder: Recorder | None
    directory: Directory
    sealing: Sealing
    content: Store
    """Where responses and conversations are."""
    targets: Targets
    workers: Workers
    memory: BodyMemory
    held: BodyMemory
    """What the responses that WebSocket connections keep may take together."""
    spans: RequestSpans | None = None
    ending: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the process begins to end."""
    calls: Shares | None = None
    """The shares of teams in all calls, once there were several teams."""
    finished: FinishedRequests = field(default_factory=FinishedRequests)
    """The requests that have ended and are not logged yet."""
    usage: UsageBook | None = None
    """What calls have used; None: that is not counted."""
    sockets: Counter[str] = field(default_factory=Counter)
    """How many WebSocket connections each caller has."""

    def __post_init__(self) -> None:
        if self.usage is not None:
            self.finished.add_up_usage = self.usage.add_up
