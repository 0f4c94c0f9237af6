"""Gateways for the tests of clients: in front of the demo model, and in front of an upstream that keeps state."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import StartGateway
from tests.socket_upstream import SocketUpstream
from tests.stateful_upstream import SLOW, StatefulUpstream

KINDS = ("demo", "upstream")
SOCKET_KINDS = (*KINDS, "native")
"""Also an upstream that is spoken to in WebSocket mode."""
KEYS = {"anna": "sk-anna-1", "ben": "sk-ben-1"}
CANONICAL = Path(__file__).parent.parent / "data" / "canonical.sse"


@dataclass
class Served:
    """A running gateway. `model` answers; `slow` begins an answer and does not end it."""

    kind: str
    address: str
    model: str
    slow: str
    upstream: StatefulUpstream | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The options of NodeSdk.run."""
        return {
            "kind": self.kind, "address": self.address, "model": self.model, "slow": self.slow, "keys": KEYS,
        }  # fmt: skip


def demo_tables(**state: Any) -> dict[str, Any]:
    """Return the config tables of a gateway with the demo model, whose state the gateway keeps."""
    demo = {"name": "demo", "use": "local", "path": "backends/demo", "engine": "thread", "context_length": 1024}
    slow = {"name": "slow", "use": "replay", "path": str(CANONICAL), "pace_ms": 1_000}
    routes = [{"model": "headgate-demo", "backend": "demo", "default": True}, {"model": "slow", "backend": "slow"}]
    return _common(state) | {"backend": [demo, slow], "route": routes}


def upstream_tables(address: str, *, websocket: bool = False, **state: Any) -> dict[str, Any]:
    """Return the config tables of a gateway in front of an upstream that keeps state."""
    fake = {
        "name": "fake", "use": "upstream", "base_url": f"{address}/v1", "keeps_state": True, "websocket": websocket,
    }  # fmt: skip
    return _common(state) | {"backend": [fake], "route": [{"model": "gpt-*", "backend": "fake"}]}


def _common(state: dict[str, Any]) -> dict[str, Any]:
    return {
        "caller": [{"name": name, "key": f"env:KEY_{name}"} for name in KEYS],
        "policy": [{"use": "metadata_limits", "max_pairs": 2}],
        "cache": {"use": "memory"}, "state": {"use": "memory", **state},
    }  # fmt: skip


@asynccontextmanager
async def serving(
    kind: str, start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch, **state: Any
) -> AsyncIterator[Served]:
    """Start a gateway of one of the SOCKET_KINDS; `state` adds keys to `[state]`."""
    for name, key in KEYS.items():
        monkeypatch.setenv(f"KEY_{name}", key)
    if kind == "demo":
        yield Served(kind, await start_gateway(demo_tables(**state)), "headgate-demo", "slow")
        return
    native = kind == "native"
    async with (SocketUpstream if native else StatefulUpstream)(background_polls=2) as upstream:
        tables = upstream_tables(upstream.address, websocket=native, **state)
        yield Served(kind, await start_gateway(tables), "gpt-5.6", SLOW, upstream)
