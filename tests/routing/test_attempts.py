"""An attempt to call a target: its deadline, its record, and its end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from backends import Backend
from proxy.context import Context
from proxy.routing.attempts import Attempts
from proxy.routing.breaker import FAULTS_IN_A_ROW
from proxy.routing.budget import RESERVE, SHARE
from proxy.routing.routes import Fallback, PoolSettings, Route
from proxy.telemetry.record import RequestRecord
from proxy.telemetry.sampling import RequestSpans
from proxy.telemetry.trace import Trace
from proxy.wire.call import Call
from proxy.wire.errors import BackendError, RequestError
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
            context.transcript.add([Event("response.completed", data={"response": RESPONSE})])
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


async def test_a_target_in_this_process_has_no_span_of_its_own():
    """The call of the model is one, which is no call of another process."""
    exporter, context = traced()
    with pytest.raises(BackendError):
        async with reply_of(ScriptedBackend(answer=CUT), context):
            pytest.fail("there is no reply")
    context.trace.end(RequestRecord(model="m", status=502, code="upstream_cut"))
    span, _ = exporter.get_finished_spans()

    assert (span.name, span.kind, span.status.status_code) == ("chat m", SpanKind.INTERNAL, StatusCode.ERROR)
    assert span.attributes["error.type"] == "upstream_cut"


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


class Scripted(ScriptedBackend):
    """Answers its calls with `answers` in turn, and from then on with `answer`."""

    answers: tuple[Any, ...] = ()

    @asynccontextmanager
    async def respond(self, call: Call, context: Context) -> AsyncIterator[Reply]:
        number = len(self._calls)
        answer = self.answers[number] if number < len(self.answers) else self.answer
        one = ScriptedBackend(answer=answer, name=self.name)
        self._calls.append(call)
        async with one.respond(call, context) as reply:
            yield reply


class Addressed(Scripted):
    """A target in another process."""

    @property
    def address(self) -> str:
        return f"http://{self.name}.example/v1"


def traced() -> tuple[InMemorySpanExporter, Context]:
    """Return a context whose spans are recorded, and where they go."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return exporter, make_context(trace=Trace(RequestSpans(provider.get_tracer("test"))))


def unreachable() -> BackendError:
    return BackendError("The upstream cannot be reached.", source="network", retryable=True, sent=False)


def refusal(status: int, **headers: str) -> Reply:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, named, body=b'{"error":{"message":"m"}}')


def pool_of(*targets: Backend, name: str = "route", fallbacks: tuple[Fallback, ...] = (), **settings: Any) -> Route:
    settings = {"attempts": max(2, len(targets))} | settings
    return Route(name, "*", targets, pool=PoolSettings(**settings), fallbacks=fallbacks)


async def statuses(
    route: Route, context: Context | None = None, attempts: Attempts | None = None, **fields: Any
) -> int:
    """Return the status of the reply of a route, or of its error."""
    try:
        async with (attempts or Attempts()).reply(make_call(**fields), route, context or make_context()) as reply:
            return reply.status
    except BackendError as error:
        return error.status


def counts(*backends: ScriptedBackend) -> list[int]:
    return [len(backend._calls) for backend in backends]


@pytest.mark.parametrize("answer", [unreachable(), CUT, refusal(503), refusal(429), BackendError("x", sent=False)])
async def test_a_call_that_one_target_does_not_answer_is_answered_by_another(answer: Any, logged):
    """At once, whatever the pause that it advises; the record has the target that answered, and how many attempts."""
    first, second = Scripted(name="a", answer=answer), Scripted(name="b", answer=RESPONSE)
    context = make_context()

    assert await statuses(pool_of(first, second), context) == 200
    assert counts(first, second) == [1, 1]
    assert (context.record.backend, context.record.attempts, context.target) == ("b", 2, "b")
    assert [line["next"] for line in logged if line["event"] == "backend.retried"] == ["b"]


async def test_a_call_that_may_still_run_is_not_sent_again():
    """A timeout does not say that the target stopped."""
    late = BackendError("The upstream did not answer in time.", status=504, code="upstream_timeout")
    first, second = Scripted(name="a", answer=late), Scripted(name="b", answer=RESPONSE)

    assert await statuses(pool_of(first, second)) == 504
    assert counts(first, second) == [1, 0]


async def test_nothing_is_sent_again_once_a_reply_has_begun():
    """The caller may have received something of it."""
    first, second = Scripted(name="a", answer=RESPONSE), Scripted(name="b", answer=RESPONSE)
    with pytest.raises(BackendError):
        async with Attempts().reply(make_call(), pool_of(first, second), make_context()):
            raise CUT

    assert counts(first, second) == [1, 0]


async def test_the_same_target_is_asked_again_if_there_is_no_other():
    """After the pause that it advises."""
    target = Scripted(answers=(refusal(503, retry_after_ms="1"),), answer=RESPONSE)
    context = make_context()

    assert await statuses(pool_of(target), context) == 200
    assert counts(target) == [2]
    assert context.record.attempts == 2


@pytest.mark.parametrize(
    ("answer", "headers", "asked"),
    [
        (refusal(503, retry_after_ms="1"), {"x-should-retry": "true", "retry-after-ms": "1"}, 2),
        (refusal(503, retry_after="9"), {"retry-after": "9"}, 1),  # a longer pause is the caller's
        (refusal(400), {}, 1),
        (refusal(503, retry_after_ms="1", x_should_retry="true"), {"x-should-retry": "true", "retry-after-ms": "1"}, 2),
    ],
)
async def test_the_last_answer_is_returned_as_it_is(answer: Reply, headers: dict[str, str], asked: int):
    """It says truthfully whether another attempt may help."""
    target = Scripted(answer=answer)
    async with Attempts().reply(make_call(), pool_of(target), make_context()) as reply:
        assert (reply.status, reply.body, reply.headers) == (answer.status, answer.body, headers)
    assert counts(target) == [asked]


async def test_an_error_of_the_last_target_says_that_another_attempt_does_not_help():
    """Both refuse the gateway's key."""
    refused = BackendError("The upstream refused the key.", code="upstream_auth", source="gateway", sent=False)
    first, second = Scripted(name="a", answer=refused), Scripted(name="b", answer=refused)
    with pytest.raises(BackendError) as caught:
        async with Attempts().reply(make_call(), pool_of(first, second), make_context()):
            pytest.fail("there is no reply")

    assert caught.value.headers == {"x-should-retry": "false"}
    assert counts(first, second) == [1, 1]


@pytest.mark.parametrize(("count", "asked"), [("0", 2), ("1", 1), ("7", 1), ("x", 2), ("", 2), ("9" * 5000, 2)])
async def test_attempts_of_the_callers_sdk_count(count: str, asked: int):
    """Otherwise its attempts and the gateway's would multiply."""
    target = Scripted(answer=refusal(503, retry_after_ms="1"))
    await statuses(pool_of(target), make_context(received={"x-stainless-retry-count": count}))

    assert counts(target) == [asked]


async def test_retries_are_a_tenth_of_the_calls_at_most():
    """Beyond a small reserve: an overload is not multiplied."""
    target, attempts = Scripted(answer=refusal(503, retry_after_ms="0")), Attempts()
    route = pool_of(target)
    for _ in range(200):
        assert await statuses(route, attempts=attempts) == 503

    assert 200 * (1 + SHARE) + RESERVE - 1 <= len(target._calls) <= 200 * (1 + SHARE) + RESERVE


async def test_moving_on_from_a_target_without_a_connection_is_no_retry():
    """It adds no load to any target, so that the budget does not limit it."""
    first, second, attempts = Scripted(name="a", answer=unreachable()), Scripted(name="b", answer=RESPONSE), Attempts()
    route = pool_of(first, second)

    assert [await statuses(route, attempts=attempts) for _ in range(100)] == [200] * 100
    assert counts(first, second) == [FAULTS_IN_A_ROW, 100]  # then the first one is ejected


async def test_a_call_that_ends_well_ends_a_row_of_faults():
    """A target that fails now and then is not ejected."""
    faults = (unreachable(),) * (FAULTS_IN_A_ROW - 1)
    first = Scripted(name="a", answers=(*faults, RESPONSE, *faults), answer=RESPONSE)
    second, attempts = Scripted(name="b", answer=RESPONSE), Attempts()
    for _ in range(2 * FAULTS_IN_A_ROW):
        assert await statuses(pool_of(first, second), attempts=attempts) == 200

    assert counts(first, second) == [2 * FAULTS_IN_A_ROW, len(2 * faults)]


async def test_the_only_target_is_never_ejected():
    """Nothing would be gained."""
    target, attempts = Scripted(answer=unreachable()), Attempts()
    for _ in range(20):
        await statuses(pool_of(target, attempts=1), attempts=attempts)

    assert counts(target) == [20]


async def test_the_last_target_is_never_ejected():
    """If all are ejected the preferred one is asked."""
    first, second, attempts = Scripted(name="a", answer=unreachable()), Scripted(name="b", answer=CUT), Attempts()
    for _ in range(20):
        await statuses(pool_of(first, second), attempts=attempts)

    assert sum(counts(first, second)) >= 20


async def test_a_target_with_nothing_left_is_not_asked_until_it_resets():
    """Another one is; if there is none the caller learns when to ask again."""
    empty = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "50s"}
    attempts, second = Attempts(), Scripted(name="b", answer=RESPONSE)
    limited = Scripted(name="a", answer=Reply(200, empty, body=b"{}", response={}))
    route = pool_of(limited, second)

    assert [await statuses(route, attempts=attempts) for _ in range(3)] == [200] * 3
    assert counts(limited, second) == [1, 2]
    with pytest.raises(BackendError) as caught:
        async with attempts.reply(make_call(), pool_of(limited), make_context()):
            pytest.fail("there is no reply")
    assert (caught.value.status, caught.value.code, caught.value.sent) == (429, "upstream_limited", False)
    assert 1 <= int(caught.value.headers["Retry-After"]) <= 50


async def test_another_model_answers_when_all_targets_fail(logged):
    """The model's name is rewritten, and the answer says which route it came by."""
    first, second = Scripted(name="a", answer=unreachable()), Scripted(name="b", answer=RESPONSE)
    cheap = pool_of(second, name="cheap")
    context = make_context()
    route = pool_of(first, fallbacks=(Fallback(cheap, "small"),))

    assert await statuses(route, context, metadata={"a": "b"}) == 200
    assert [call.body for call in second._calls] == [{"model": "small", "metadata": {"a": "b"}}]
    assert context.answer_headers == {"x-headgate-route": "cheap"}
    assert (context.record.route, context.record.backend) == ("cheap", "b")


async def test_a_fallback_without_a_model_asks_for_the_calls_own():
    """Also after another fallback."""
    first, second, third = (Scripted(name=name, answer=refusal(503)) for name in "abc")
    fallbacks = (
        Fallback(pool_of(second, name="two", attempts=1), "small"),
        Fallback(pool_of(third, name="three"), None),
    )
    await statuses(pool_of(first, attempts=1, fallbacks=fallbacks))

    assert [call.model for call in second._calls] == ["small"]
    assert {call.model for call in third._calls} == {"m"}


@pytest.mark.parametrize("status", [400, 404])
async def test_a_request_at_fault_falls_back_to_nothing(status: int):
    """Another model would be asked for something that its caller did not mean."""
    first, second = Scripted(name="a", answer=refusal(status)), Scripted(name="b", answer=RESPONSE)

    assert await statuses(pool_of(first, fallbacks=(Fallback(pool_of(second, name="cheap"), "small"),))) == status
    assert counts(second) == [0]


@pytest.mark.parametrize(("sent", "is_sent"), [(True, True), (False, False)])
async def test_a_call_that_one_target_may_have_run_counts_as_sent(sent: bool, is_sent: bool):
    """Whatever the next one says: what it may have used is not given back."""
    broken = BackendError("It broke.", code="upstream_reset", sent=sent)
    first, second = Scripted(name="a", answer=broken), Scripted(name="b", answer=refusal(400))
    context = make_context()

    assert await statuses(pool_of(first, second), context) == 400
    assert (context.is_sent, context.is_answered) == (is_sent, False)


@pytest.mark.parametrize(("tried", "runs"), [(False, 0), (True, 1)])
async def test_a_target_that_refuses_a_request_has_not_worked_on_it(tried: bool, runs: int):
    """A local model refuses parameters before it generates. What was tried before may have used tokens."""
    broken = BackendError("It broke.", code="upstream_reset", retryable=True)
    first, second = Scripted(name="a", answer=broken), Scripted(name="b", answer=RequestError("No."))
    context = make_context()
    context.record.sent = 1 + tried  # as usage counts an attempt that begins
    with pytest.raises(RequestError):
        await statuses(pool_of(first, second) if tried else pool_of(second), context)

    assert (context.runs, context.is_sent, context.record.sent, context.is_answered) == (runs, tried, runs, False)


async def test_every_attempt_is_a_span_with_its_own_target_and_error():
    """The last one has none."""
    exporter, context = traced()
    targets = (Addressed(name="a", answer=refusal(503)), Addressed(name="b", answer=unreachable()))
    await statuses(pool_of(*targets, Addressed(name="c", answer=RESPONSE), attempts=3), context)
    names = ("headgate.target", "http.response.status_code", "http.request.resend_count", "error.type")
    found = [[span.attributes.get(name) for name in names] for span in exporter.get_finished_spans()]

    assert found == [["a", 503, None, "503"], ["b", None, 1, "upstream_error"], ["c", 200, 2, None]]
    assert [span.status.is_ok for span in exporter.get_finished_spans()] == [False, False, True]


async def test_no_attempt_begins_after_the_deadline():
    """A pause that would last longer is not made."""
    target = Scripted(answer=refusal(503, retry_after="5"))

    assert await statuses(pool_of(target), make_context(deadline=in_seconds(4))) == 503
    assert await statuses(pool_of(target, retry_within_s=4)) == 503
    assert counts(target) == [2]


async def test_the_deadline_includes_the_first_event():
    """Headers alone are no answer."""
    opened = asyncio.Event()

    async def silent() -> AsyncIterator[Any]:
        opened.set()
        await asyncio.Event().wait()
        yield []

    target = Scripted(answer=Reply(200, {}, batches=silent()))
    assert await statuses(pool_of(target), make_context(deadline=in_seconds(0.05))) == 504
    assert opened.is_set()
