"""The load: it accepts the answers of its workloads and reports any other."""

import itertools
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest
import pytest_asyncio

from tests.bench import load
from tests.bench.__main__ import UPSTREAM
from tests.bench.load import LoadRun, UnexpectedAnswer
from tests.bench.processes import start_server
from tests.bench.servers import SERVERS
from tests.bench.workloads import WORKLOADS

BURSTS = [workload for workload in WORKLOADS if workload.dialect]
SOCKETS = [workload for workload in WORKLOADS if workload.is_socket]
SECURE = [workload for workload in WORKLOADS if workload.name == "tls"]
BODIES = [workload for workload in WORKLOADS if not workload.events]


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(autouse=True)
def brief_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured here does not matter, so that servers need not be warm."""
    monkeypatch.setattr(load, "WARM_UP_S", 0.02)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def start_run(tmp_path_factory):
    """Prepare a load on the fake upstream itself: `start_run(workload)`."""
    async with start_server("upstream", UPSTREAM, tmp_path_factory.mktemp("upstream")) as upstream:
        yield lambda workload: LoadRun(workload, upstream, is_headgate=False, numbers=itertools.count())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def start_relayed_run(tmp_path_factory):
    """Prepare a load on the bare relay of a workload, which speaks WebSocket or TLS: `start_relayed_run(workload)`."""
    folder = tmp_path_factory.mktemp("relay")
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(start_server("upstream", UPSTREAM, folder))
        relays = {
            name: await stack.enter_async_context(start_server(name, SERVERS[name](upstream.port, folder), folder))
            for name in {workload.servers[0] for workload in (*SOCKETS, *SECURE)}
        }
        yield lambda workload: LoadRun(
            workload, relays[workload.servers[0]], is_headgate=False, numbers=itertools.count()
        )


@pytest.mark.parametrize("workload", SOCKETS, ids=lambda workload: workload.label)
async def test_the_messages_of_a_socket_are_counted(start_relayed_run, workload):
    measurement = await start_relayed_run(workload).measure(0.2)

    assert measurement.answers > 0
    assert measurement.events > 0
    with pytest.raises(UnexpectedAnswer, match=f"{workload.events} messages arrived"):
        await start_relayed_run(replace(workload, events=workload.events + 1)).measure(0.2)


@pytest.mark.parametrize("workload", SECURE, ids=lambda workload: workload.label)
async def test_the_upstream_speaks_tls(start_relayed_run, workload):
    """With a certificate that the relay trusts."""
    measurement = await start_relayed_run(workload).measure(0.2)

    assert measurement.answers > 0
    assert bool(measurement.events) == bool(workload.events)


@pytest.mark.parametrize(
    "workload", [each for each in WORKLOADS if not each.is_socket and each.name != "many"], ids=lambda each: each.label
)
async def test_the_answers_of_every_workload_are_read_to_their_end(start_run, workload):
    """ "many" reads like "paced", for half a minute."""
    measurement = await start_run(workload).measure(0.05 + workload.pace_s)

    assert measurement.answers > 0
    assert bool(measurement.events) == bool(workload.events)


@pytest.mark.parametrize("workload", BURSTS, ids=lambda workload: workload.label)
async def test_a_stream_with_another_number_of_events_is_an_error(start_run, workload):
    with pytest.raises(UnexpectedAnswer, match=f"{workload.events} events arrived"):
        await start_run(replace(workload, events=workload.events + 1)).measure(0.05)


@pytest.mark.parametrize("workload", BODIES[:1], ids=lambda workload: workload.label)
async def test_a_body_instead_of_a_stream_is_an_error(start_run, workload):
    with pytest.raises(UnexpectedAnswer, match="a body instead of a stream"):
        await start_run(replace(workload, events=1)).measure(0.05)
