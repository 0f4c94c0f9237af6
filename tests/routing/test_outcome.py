"""What may follow an attempt, by what it came to."""

from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from proxy.routing.outcome import AttemptOutcome, Next, begin
from proxy.wire.errors import BackendError
from proxy.wire.event import Batch, Event, Reply, Run
from tests.examples import make_call

NOTHING, ANOTHER, ANY = Next.NOTHING, Next.ANOTHER_TARGET, Next.ANY_TARGET
CREATED = Event("response.created", data={"type": "response.created", "response": {"id": "r"}})
COMMENT = Run(b": processing\n\n")
DELTA = Run(b'event: x\ndata: {"type":"response.output_text.delta","delta":"a"}\n\n')


def refusal(status: int, error: dict[str, Any] | None = None, **headers: str) -> AttemptOutcome:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return AttemptOutcome(make_call(), Reply(status, named, body=orjson.dumps({"error": error or {}})))


def failure(
    code: str, *, status: int = 502, retryable: bool = False, sent: bool = True, **fields: Any
) -> AttemptOutcome:
    error = BackendError("It failed.", status=status, code=code, retryable=retryable, sent=sent)
    return AttemptOutcome(make_call(**fields), error=error)


async def batches(*given: Batch) -> AsyncIterator[Batch]:
    for batch in given:
        yield batch


def failed(code: str | None) -> Event:
    error = {"code": code, "message": "m"}
    return Event("response.failed", data={"type": "response.failed", "response": {"error": error}})


@pytest.mark.parametrize(
    ("outcome", "following", "is_fault"),
    [
        (refusal(200), NOTHING, False),
        (refusal(400), NOTHING, False),
        (refusal(404), NOTHING, False),
        (refusal(408), ANY, False),
        (refusal(409), NOTHING, False),
        (refusal(409, retry_after="1"), ANY, False),
        (refusal(409, x_should_retry="true"), ANY, False),
        (refusal(400, x_should_retry="true"), ANY, False),
        (refusal(429), ANY, False),
        (refusal(429, {"code": "insufficient_quota"}), ANOTHER, False),
        (refusal(429, {"type": "insufficient_quota"}), ANOTHER, False),
        (refusal(429, {"message": "insufficient_quota"}), ANY, False),
        (refusal(429, x_should_retry="false"), ANOTHER, False),
        (refusal(500), ANY, True),
        (refusal(503, x_should_retry="false"), NOTHING, True),
        (refusal(529), ANY, True),
        (refusal(501), NOTHING, False),
        (failure("upstream_unreachable", retryable=True, sent=False), ANY, True),
        (failure("upstream_unreachable", sent=False), ANOTHER, True),  # its certificate is not valid
        (failure("upstream_auth", sent=False), ANOTHER, True),
        (failure("upstream_reset", retryable=True), ANOTHER, True),
        (failure("upstream_cut"), ANOTHER, True),
        (failure("upstream_reset", retryable=True, tools=[{"type": "mcp", "server_label": "x"}]), NOTHING, True),
        (failure("upstream_reset", retryable=True, tools=[{"type": "function", "name": "f"}]), ANOTHER, True),
        (failure("upstream_timeout", status=504), NOTHING, True),
        (failure("upstream_invalid_response"), NOTHING, True),
        (failure("upstream_too_large"), NOTHING, False),
        (failure("connections_exhausted", status=503, sent=False), ANOTHER, False),
        (failure("deadline_exceeded", status=504), NOTHING, False),
        (failure("not_supported", status=501, sent=False), NOTHING, False),
        (failure("local_model_busy", status=429), ANY, False),
        (failure("local_model_unavailable", status=503, retryable=True, sent=False), ANY, True),
    ],
)
def test_what_follows(outcome: AttemptOutcome, following: Next, is_fault: bool):
    """The table in the module's docstring."""
    assert (outcome.next, outcome.is_fault) == (following, is_fault)


@pytest.mark.parametrize(
    ("first", "code", "following"),
    [
        ([[CREATED]], None, NOTHING),
        ([[CREATED, failed("server_error")]], "server_error", ANY),
        ([[COMMENT], [COMMENT, CREATED, failed("rate_limit_exceeded")]], "rate_limit_exceeded", ANY),
        ([[CREATED, failed("invalid_prompt")]], "invalid_prompt", NOTHING),
        ([[CREATED, failed(None)]], "upstream_error", NOTHING),
        ([[CREATED, DELTA, failed("server_error")]], None, NOTHING),
        ([[Event("error", data={"type": "error", "code": "server_error"})]], "server_error", ANY),
        ([[Event("error", data={"type": "error", "error": {"type": "server_error"}})]], "server_error", ANY),
    ],
)
async def test_a_stream_that_begins_with_an_error_is_a_failure(first: list[Batch], code: str | None, following: Next):
    """Nothing of an answer is lost when it is tried again."""
    reply, first_error = await begin(Reply(200, {}, batches=batches(*first, [DELTA])))
    outcome = AttemptOutcome(make_call(), reply, None, first_error, first_error is None)

    assert (first_error, outcome.next) == (code, following)
    assert reply.batches is not None
    read = [unit async for batch in reply.batches for unit in batch]
    assert read == [*(unit for batch in first for unit in batch), DELTA]


async def test_comments_before_the_first_event_are_kept():
    """An attempt has begun to answer when an event is there."""
    reply, _ = await begin(Reply(200, {}, batches=batches([COMMENT], [], [COMMENT], [CREATED], [DELTA])))
    assert reply.batches is not None

    assert [batch async for batch in reply.batches] == [[COMMENT, COMMENT, CREATED], [DELTA]]


async def test_a_flood_of_comments_is_not_held_back():
    """What waits for the first event is bounded."""
    reply, _ = await begin(Reply(200, {}, batches=batches(*[[COMMENT]] * 10_000)))
    assert reply.batches is not None

    assert len(await anext(reply.batches)) < 200


@pytest.mark.parametrize("given", [[], [[COMMENT]], [[]]])
async def test_a_stream_without_an_event_is_an_error(given: list[Batch]):
    """It was cut off before anything of an answer."""
    with pytest.raises(BackendError) as caught:
        await begin(Reply(200, {}, batches=batches(*given)))

    assert (caught.value.code, caught.value.sent) == ("upstream_cut", True)
