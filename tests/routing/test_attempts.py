"""An attempt to call a target: its deadline, its record, and its end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from backends import Backend
from proxy.context import Context
from proxy.routing.attempts import Attempts
from proxy.routing.routes import Route
from proxy.telemetry.trace import Trace
from proxy.wire.call import Call
from proxy.wire.errors import BackendError
from proxy.wire.event import Event, Reply
from proxy.wire.resource import ResourceRequest
from tests.examples import make_call, make_context
from tests.pipelines import ScriptedBackend
from tests.rules.samples import CUT, RESPONSE, ItemBudget, make_rule, make_rules


class HangingBackend(Backend):
    """A backend that never starts to answer."""

    name: str = "hanging"

    @asynccontextmanager
    async def respond(self, _call: Call, _context: Context) -> AsyncIterator[Reply]:
        await asyncio.Event().wait()
        yield Reply(200, {})


def reply_of(target: Backend, context: Context, call: Call | None = None) -> Any:
    return Attempts().reply(call or make_call(), Route("route", "*", (target,)), context)


def in_seconds(delay_s: float) -> float:
    """Return a deadline on the clock of the event loop."""
    return asyncio.get_running_loop().time() + delay_s


@pytest.mark.parametrize("delay_s", [-1, 0.01])
async def test_a_target_that_does_not_start_before_the_deadline_is_an_error(delay_s: float):
    """The deadline may already have passed before the attempt."""
    with pytest.raises(BackendError) as caught:
        async with reply_of(HangingBackend(), make_context(deadline=in_seconds(delay_s))):
            pytest.fail("there is no reply")

    error = caught.value
    assert (error.status, error.code) == (504, "deadline_exceeded")
    assert (error.source, error.retryable, error.sent) == ("upstream", False, True)
    assert error.message == "The backend did not begin to answer before the request's deadline."


async def test_the_deadline_ends_when_the_target_starts_to_answer():
    """The rest of a stream may take longer."""
    deadline, passed = in_seconds(0.01), asyncio.Event()
    asyncio.get_running_loop().call_at(deadline + 0.001, passed.set)
    async with reply_of(ScriptedBackend(answer=RESPONSE), make_context(deadline=deadline)) as reply:
        await passed.wait()

        assert reply.status == 200


async def test_a_timeout_of_other_code_is_not_the_deadline():
    """It is raised unchanged, because the backend was not late."""
    with pytest.raises(TimeoutError):
        async with reply_of(ScriptedBackend(answer=RESPONSE), make_context(deadline=in_seconds(60))):
            raise TimeoutError


async def test_an_error_of_the_target_is_raised_unchanged():
    """It keeps its source and whether a retry may help."""
    error = BackendError("The upstream cannot be reached.", source="network", retryable=True, sent=False)
    context = make_context()
    with pytest.raises(BackendError) as caught:
        async with reply_of(ScriptedBackend(answer=error), context):
            pytest.fail("there is no reply")

    assert caught.value is error
    assert (context.is_answered, context.target) == (False, None)


@pytest.mark.parametrize(
    ("keeps_state", "status", "is_answered", "target"),
    [(True, 200, True, "scripted"), (False, 200, True, "scripted"), (True, 429, False, None), (True, 500, False, None)],
)
async def test_a_call_counts_as_answered_if_the_target_accepted_it(
    keeps_state: bool, status: int, is_answered: bool, target: str | None
):
    """Only then may the target have generated output, and only then is its name recorded."""
    context = make_context()
    backend = ScriptedBackend(answer=Reply(status, {}, body=b"{}", response={}), keeps_state=keeps_state)
    async with reply_of(backend, context):
        assert (context.is_answered, context.target) == (is_answered, target)


async def test_the_target_is_recorded():
    """It is recorded before it is called, so that a failure has its name too."""
    context = make_context()
    with pytest.raises(BackendError):
        async with reply_of(ScriptedBackend(answer=CUT, name="cloud", provider="acme"), context):
            pytest.fail("there is no reply")

    assert (context.record.route, context.record.backend, context.record.provider) == ("route", "cloud", "acme")


async def test_the_final_response_is_recorded_when_the_attempt_ends():
    """This also holds if the caller has disconnected."""
    context = make_context()

    async def run() -> None:
        async with reply_of(ScriptedBackend(answer=RESPONSE), context):
            context.transcript.see([Event("response.completed", data={"response": RESPONSE})])
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await run()

    assert context.record.response_id == RESPONSE["id"]
    assert context.record.output_tokens == RESPONSE["usage"]["output_tokens"]


async def test_the_end_of_the_block_ends_the_backends_work():
    """The reply may be finished or not."""
    backend = ScriptedBackend(answer=RESPONSE)
    async with reply_of(backend, make_context()):
        assert backend._closed == 0
    assert backend._closed == 1


@pytest.mark.parametrize(("enforces", "is_stream"), [((), True), (("itembudget",), False)])
async def test_a_stream_is_requested_if_a_check_needs_one(enforces: tuple[str, ...], is_stream: bool):
    """No stream is needed if the target enforces the policy itself."""
    context = make_context()
    backend = ScriptedBackend(answer=RESPONSE, enforces=enforces)
    call = await make_rules(make_rule(ItemBudget())).admit(make_call(tools=[]), context)
    async with reply_of(backend, context, call):
        assert [sent.is_stream for sent in backend._calls] == [is_stream]


async def test_the_attempt_is_a_span_of_the_request():
    """The span has the error of an attempt that failed."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    context = make_context(trace=Trace(provider.get_tracer("test")))
    with pytest.raises(BackendError):
        async with reply_of(ScriptedBackend(answer=CUT), context):
            pytest.fail("there is no reply")
    (span,) = exporter.get_finished_spans()

    assert (span.name.split()[0], span.status.description) == ("chat", "BackendError")


@pytest.mark.parametrize("operation", ["compact", "input_tokens"])
async def test_an_operation_that_a_target_does_not_have_is_501(operation: Any, logged):
    """The target is not asked, and a client does not repeat the call."""
    target = ScriptedBackend(answer=RESPONSE)
    with pytest.raises(BackendError) as caught:
        async with reply_of(target, make_context(), Call({"model": "m"}, operation=operation)):
            """Never reached."""

    assert (caught.value.status, caught.value.code, caught.value.sent) == (501, "not_supported", False)
    assert caught.value.headers == {"x-should-retry": "false"}
    assert target._calls == []
    assert [line["event"] for line in logged] == ["backend.failed"]


async def test_a_backend_that_keeps_nothing_forwards_nothing():
    """It is not asked, unless it is configured to keep state by mistake."""
    with pytest.raises(BackendError) as caught:
        ScriptedBackend().forward(ResourceRequest("GET", "responses", "resp_1"), make_context())

    assert caught.value.message == "The backend of this request does not support GET requests for responses."
