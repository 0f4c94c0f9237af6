"""A response that came as one body, as events."""

import orjson
import pytest

from proxy.wire.body_events import changed_response, events_of_body
from proxy.wire.event import parse_payload, response_reply


def test_a_body_becomes_its_items_and_itself():
    """Reply checks see one event per item, and the client gets the body byte for byte."""
    body = b'{ "status":"incomplete", "output":[{"id":"rs_1"}, {"id":"msg_1"}], "new":1.50 }'
    response = parse_payload(body)
    events = events_of_body(response)

    assert [event.type for event in events] == [
        "response.created",
        "response.output_item.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    assert [event.data["type"] for event in events] == [event.type for event in events]
    assert [event.data["item"]["id"] for event in events[1:3]] == ["rs_1", "msg_1"]
    assert [event.data["output_index"] for event in events[1:3]] == [0, 1]
    assert events[0].response == events[3].response == orjson.loads(body)
    assert response_reply(response, {}, body).body == body


@pytest.mark.parametrize("output", [None, {}, "none", 3])
def test_a_body_whose_output_is_not_a_list_has_no_items(output: object):
    """It passes unchanged."""
    response = {"status": "completed", "output": output}

    assert [event.type for event in events_of_body(response)] == ["response.created", "response.completed"]
    assert response_reply(response, {}).body == orjson.dumps(response)


@pytest.mark.parametrize("items_changed", [False, True])
def test_a_changed_body_has_the_items_of_its_events(items_changed: bool):
    """Unless only its last event was changed."""
    response = {"status": "completed", "output": [{"id": "msg_1"}, {"id": "msg_2"}]}
    created, first, _, terminal = events_of_body(response)
    changed = changed_response([created, first, terminal], items_changed=items_changed)

    assert changed == {**response, "output": [{"id": "msg_1"}] if items_changed else response["output"]}
