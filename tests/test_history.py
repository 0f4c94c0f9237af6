"""Calls with references to earlier responses, to backends that keep no state."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from backends.replay import Replay
from proxy.history import History
from proxy.routing.routes import Route
from proxy.wire.call import Call
from proxy.wire.errors import RequestError
from tests.examples import JSON, NO_DEADLINE, make_call, make_context

RECORDED = Path("recorded.sse")
STATELESS = Route("local", "*", (Replay(name="local", path=RECORDED),))
KEEPING = Route("openai", "*", (Replay(name="openai", path=RECORDED, keeps_state=True),))


async def complete(call: Call, route: Route = STATELESS) -> Call:
    return await History().complete(call, route, make_context())


async def refusal(**fields: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        await complete(make_call(**fields))
    return caught.value


@pytest.mark.parametrize("fields", [{}, {"previous_response_id": None, "conversation": None}])
async def test_a_call_that_refers_to_nothing_passes(fields: dict):
    """A reference that is null counts as missing."""
    call = make_call(**fields)

    assert await complete(call) is call


@pytest.mark.parametrize("fields", [{"previous_response_id": "resp_1"}, {"conversation": {"id": "conv_1"}}])
async def test_a_call_to_a_backend_that_keeps_state_passes_unchanged(fields: dict):
    """The backend resolves its own ids."""
    call = make_call(**fields)

    assert await complete(call, KEEPING) is call


async def test_an_unknown_response_is_refused_in_the_words_of_openai():
    """Otherwise the model would answer without the earlier turns."""
    error = await refusal(previous_response_id="resp_1")

    assert error.message == "Previous response with id 'resp_1' not found."
    assert (error.status, error.code, error.param) == (400, "previous_response_not_found", "previous_response_id")


@pytest.mark.parametrize("conversation", ["conv_1", {"id": "conv_1"}, {"id": "conv_1", "more": 1}])
async def test_an_unknown_conversation_is_not_found(conversation: Any):
    """Its id may be a string or in an object."""
    error = await refusal(conversation=conversation)

    assert (error.message, error.status, error.param) == (
        "Conversation with id 'conv_1' not found.",
        404,
        "conversation",
    )


@NO_DEADLINE
@given(previous=JSON, conversation=JSON)
async def test_references_of_any_type_are_refused(previous: Any, conversation: Any):
    """They count as unknown ids and are shortened in the message."""
    call = make_call(previous_response_id=previous, conversation=conversation)
    try:
        message = "passed" if await complete(call) is call else "changed"
    except RequestError as error:
        message = error.message

    assert (message == "passed") is (previous is None and conversation is None)
    assert len(message) < 130
