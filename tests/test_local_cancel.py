"""What the demo model still computes for a call that was cancelled: nothing, however it was cancelled."""

import asyncio
import threading
from typing import Any

import aiohttp
import pytest

from backends.local.decoding.batch import BatchRun
from tests.raw import until
from tests.test_stored_state import BACKEND, MODEL

HELD_AT = 3
"""At which step the model waits until its job is cancelled."""
CALL = {"model": MODEL, "input": "My name is Emma."}
pytestmark = pytest.mark.usefixtures("shared_demo")


class Steps:
    """The steps of the model, of which one waits for the cancellation of its job while `holds`."""

    def __init__(self) -> None:
        self.holds = False
        self.is_held = threading.Event()
        self.count = 0
        self.after_cancel = 0

    def take(self, run: BatchRun, result: Any) -> None:
        job = run.jobs[result.batch_id]
        self.count += 1
        self.after_cancel += job.cancelled
        if self.holds and self.count == HELD_AT:
            self.is_held.set()
            while not job.cancelled:
                threading.Event().wait(0.001)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    """The steps that the library reports of every batch; the engine sees each as it is."""
    steps, on_token = Steps(), BatchRun.on_token

    def counted(run: BatchRun, result: Any) -> bool:
        steps.take(run, result)
        return on_token(run, result)

    monkeypatch.setattr(BatchRun, "on_token", counted)
    return steps


async def end_by(how: str, http: aiohttp.ClientSession, steps: Steps) -> None:
    """Begin a call, and end it in one of the ways there are while the model is held in it."""
    fields = {"background": True} if how in ("cancel", "delete") else {"stream": True}
    async with http.post("/v1/responses", json=CALL | fields) as answer:
        if how in ("cancel", "delete"):
            path = f"/v1/responses/{(await answer.json())['id']}"
        await until(steps.is_held.is_set)
        if how == "leave":
            answer.close()
    if how == "cancel":
        async with http.post(f"{path}/cancel") as answer:
            assert (await answer.json())["status"] == "cancelled"
    elif how == "delete":
        async with http.delete(path) as answer:
            assert answer.status == 200


@pytest.mark.parametrize("how", ["cancel", "delete", "leave"])
async def test_the_model_takes_no_step_for_a_call_that_was_cancelled(how: str, start_gateway, steps: Steps):
    """The step that is under way is the last one; the next call has the model for itself."""
    address = await start_gateway({"backend": [BACKEND], "route": [{"model": MODEL, "backend": "demo"}]})
    async with aiohttp.ClientSession(address) as http, asyncio.timeout(60):
        async with http.post("/v1/responses", json=CALL) as answer:
            whole = await answer.json()
        needed, steps.count, steps.holds = steps.count, 0, True
        await end_by(how, http, steps)
        steps.holds = False
        async with http.post("/v1/responses", json=CALL) as answer:
            again = await answer.json()

    assert needed > HELD_AT
    assert (steps.count, steps.after_cancel) == (HELD_AT + needed, 0)
    assert again["output"][0]["content"] == whole["output"][0]["content"]
