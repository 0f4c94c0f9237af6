"""The load: it accepts the answers of its workloads and reports any other."""

import itertools
from dataclasses import replace

import pytest
import pytest_asyncio

from tests.bench.__main__ import UPSTREAM
from tests.bench.load import LoadRun, UnexpectedAnswer
from tests.bench.processes import start_server
from tests.bench.workloads import WORKLOADS

BURSTS = [workload for workload in WORKLOADS if workload.dialect]
BODIES = [workload for workload in WORKLOADS if not workload.events]


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def start_run(tmp_path_factory):
    """Prepare a load on the fake upstream itself: `start_run(workload)`."""
    async with start_server("upstream", UPSTREAM, tmp_path_factory.mktemp("upstream")) as upstream:
        yield lambda workload: LoadRun(workload, upstream, is_headgate=False, numbers=itertools.count())


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.label)
async def test_the_answers_of_every_workload_are_read_to_their_end(start_run, workload):
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
