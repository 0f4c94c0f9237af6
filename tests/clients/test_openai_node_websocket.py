"""The WebSocket client of the `openai` package of npm, before the demo model and before an upstream that keeps state."""

from pathlib import Path
from typing import Any

import pytest

from tests.clients.gateways import CANONICAL, KEYS, SOCKET_KINDS, serving
from tests.clients.node_sdk import NodeSdk, install
from tests.conftest import StartGateway
from tests.test_background_processes import Gateway

pytestmark = pytest.mark.usefixtures("shared_demo")

TABLES = f"""
[server]
port = 0
drain_s = 0
[[backend]]
name = "demo"
use = "local"
path = "backends/demo"
engine = "thread"
[[backend]]
name = "slow"
use = "replay"
path = "{CANONICAL}"
pace_ms = 1000
[[route]]
model = "headgate-demo"
backend = "demo"
[[route]]
model = "slow"
backend = "slow"
"""


@pytest.fixture(scope="module")
def node() -> NodeSdk:
    return install()


@pytest.mark.parametrize("kind", SOCKET_KINDS)
async def test_conversations_on_a_connection(
    node: NodeSdk, kind: str, start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch, logged
):
    """Turns, continuations, lanes, functions, and refusals after which the connection goes on."""
    async with serving(kind, start_gateway, monkeypatch) as served:
        outcome = await node.run("sockets.mjs", **served.options)

    assert outcome.failures == ""
    assert "oneTurn" in outcome.errors
    assert {line["method"] for line in logged if line["event"] == "request.finished"} == {"WEBSOCKET"}


@pytest.mark.parametrize("case", ["idle", "inATurn"])
async def test_sigterm_ends_a_connection(node: NodeSdk, case: str, tmp_path: Path):
    """With 1001, so that a client connects elsewhere; a turn that runs has one last message before it."""
    config = tmp_path / "gateway.toml"
    config.write_text(TABLES)
    gateway = await Gateway.start(config)
    reports: list[Any] = []

    def stop(report: Any) -> None:
        reports.append(report)
        gateway.process.terminate()

    options = {"address": gateway.address.removesuffix("/v1"), "model": "headgate-demo", "slow": "slow", "keys": KEYS}
    try:
        outcome = await node.run("shutdown.mjs", only=case, on_report=stop, **options)
        status = await gateway.process.wait()
    finally:
        await gateway.close()

    assert outcome.errors == {case: None}
    assert len(reports) == 1
    assert status == 0
