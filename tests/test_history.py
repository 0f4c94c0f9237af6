"""previous_response_id and conversation, for backends that keep no state."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from backends.replay import Replay
from proxy.history import History
from proxy.wire.call import Call
from proxy.wire.errors import RequestError
from tests.values import JSON, PATIENT, call_with

RECORDED = Path("recorded.sse")
FORGETFUL, KEEPING = Replay(name="local", path=RECORDED), Replay(name="openai", path=RECORDED, keeps_state=True)


async def refusal(**fields: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        await History().complete(call_with(**fields), FORGETFUL)
    return caught.value


@pytest.mark.parametrize("fields", [{}, {"previous_response_id": None, "conversation": None}])
async def test_a_call_that_refers_to_nothing_passes(fields: dict):
    """Null is as good as nothing."""
    call = call_with(**fields)

    assert await History().complete(call, FORGETFUL) is call


@pytest.mark.parametrize("fields", [{"previous_response_id": "resp_1"}, {"conversation": {"id": "conv_1"}}])
async def test_a_backend_that_keeps_state_is_asked_as_it_is(fields: dict):
    """It knows its own ids."""
    call = call_with(**fields)

    assert await History().complete(call, KEEPING) is call


async def test_an_unknown_response_is_refused_as_openai_words_it():
    """A model must never answer without the past that the caller relies on."""
    error = await refusal(previous_response_id="resp_1")

    assert error.message == "Previous response with id 'resp_1' not found."
    assert (error.status, error.code, error.param) == (400, "previous_response_not_found", "previous_response_id")


@pytest.mark.parametrize("conversation", ["conv_1", {"id": "conv_1"}, {"id": "conv_1", "more": 1}])
async def test_an_unknown_conversation_is_not_found(conversation: Any):
    """In either form."""
    error = await refusal(conversation=conversation)

    assert (error.message, error.status, error.param) == (
        "Conversation with id 'conv_1' not found.",
        404,
        "conversation",
    )


@PATIENT
@given(previous=JSON, conversation=JSON)
async def test_no_shape_breaks_it(previous: Any, conversation: Any):
    """Odd ids are unknown ones, and are shown in part."""
    call: Call | None = call_with(previous_response_id=previous, conversation=conversation)
    assert call is not None
    try:
        message = "passed" if await History().complete(call, FORGETFUL) is call else "changed"
    except RequestError as error:
        message = error.message

    assert (message == "passed") is (previous is None and conversation is None)
    assert len(message) < 130
