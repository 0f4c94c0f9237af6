"""The `openai` package of npm drives every endpoint, before the demo model and before an upstream that keeps state."""

import asyncio

import pytest

from tests.clients.gateways import KINDS, serving
from tests.clients.node_sdk import NodeSdk, install
from tests.conftest import StartGateway
from tests.timeouts import TIMEOUT_S

pytestmark = pytest.mark.usefixtures("shared_demo")

# What the SDK has beside endpoints, by the file whose cases do not call it.
OTHERS = {
    "responses.mjs": {"conversations", "conversations.items"},
    "conversations.mjs": {"responses", "responses.inputItems", "responses.inputTokens", "models"},
}


@pytest.fixture(scope="module")
def node() -> NodeSdk:
    return install()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("file", ["responses.mjs", "conversations.mjs"])
async def test_every_method_of_the_sdk_works(
    node: NodeSdk, file: str, kind: str, start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
):
    """As an application calls it; what the SDK adds in a later release must be called too."""
    async with serving(kind, start_gateway, monkeypatch) as served:
        outcome = await node.run(file, **served.options)

    assert outcome.failures == ""
    assert len(outcome.errors) > 4
    assert [name for name in outcome.uncalled or [] if name.rpartition(".")[0] not in OTHERS[file]] == []


@pytest.mark.parametrize("kind", KINDS)
async def test_refusals_are_the_errors_of_the_sdk(
    node: NodeSdk, kind: str, start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch, logged
):
    """By their classes; the work for a stream that a client aborts ends."""
    async with serving(kind, start_gateway, monkeypatch, background_jobs=1) as served:
        outcome = await node.run("errors.mjs", **served.options)
        async with asyncio.timeout(TIMEOUT_S):
            while not (  # noqa: ASYNC110  the line is written after the client has disconnected
                aborted := [line for line in logged if line.get("status") == 499]
            ):
                await asyncio.sleep(0.01)

    assert outcome.failures == ""
    assert [(line["path"], line["model"], line["stream"]) for line in aborted] == [("/v1/responses", served.slow, True)]


async def test_a_wrong_answer_fails_its_case(
    node: NodeSdk, start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
):
    """Otherwise the tests above would prove nothing."""
    async with serving("upstream", start_gateway, monkeypatch) as served:
        wrong = await node.run("responses.mjs", **served.options | {"kind": "demo"}, only="continuedByItsId")
        unreachable = await node.run("responses.mjs", **served.options | {"address": "http://127.0.0.1:9"})

    assert wrong.failures.startswith("continuedByItsId: AssertionError")
    assert "/Emma/" in wrong.failures
    assert all("Connection error" in str(error) for error in unreachable.errors.values())
