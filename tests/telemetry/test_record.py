"""The record of a request is bounded in length and contains no text of a caller except names."""

from io import BytesIO
from typing import Any

import orjson
import pytest

from proxy.telemetry.record import LONGEST_CHARS, RequestRecord
from proxy.wire.event import Event
from proxy.wire.transcript import Transcript
from tests.conftest import StartGateway, tables_for
from tests.upstream import FakeUpstream

JSON = {"Content-Type": "application/json"}
FIELDS = [
    "method", "path", "caller", "team", "key_id", "tags", "model", "stream", "status", "code", "policy", "outcome",
    "route", "backend",
    "provider", "cache", "cache_detail", "cache_lookup_s", "cache_bytes", "queue_s", "inference_s", "max_output_tokens",
    "first_event_s", "response_id", "response_model", "finish_reason",
    "input_tokens", "output_tokens", "cached_tokens", "cache_write_tokens", "reasoning_tokens",
]  # fmt: skip


def ended_with(response: dict[str, Any]) -> Transcript:
    """Return the transcript of a reply that ended with this response."""
    transcript = Transcript()
    transcript.add([Event("response.completed", data={"type": "response.completed", "response": response})])
    return transcript


def test_unknown_fields_are_omitted():
    """An empty record has no fields; false, zero and the empty string count as known."""
    record = RequestRecord(stream=False, first_event_s=0.0, input_tokens=0, code="")

    assert RequestRecord().known() == {}
    assert record.known() == {"stream": False, "code": "", "first_event_s": 0.0, "input_tokens": 0}


def test_known_fields_are_in_the_order_of_the_class():
    """The order in which they were set does not matter, so that log lines are alike."""
    record = RequestRecord(**dict.fromkeys(reversed(FIELDS), 1))

    assert list(record.known()) == FIELDS


@pytest.mark.parametrize(
    ("value", "recorded"),
    [
        ("x" * 256, "x" * 256),
        ("x" * 257, "x" * 256),
        ("\u00e9" * 20_000_000, "\u00e9" * 256),
        ("a\x1b[31m\r\n\u202eb", "a\\x1b[31m\\r\\n\\u202eb"),
        ("\x9b" * 20_000_000, "\\x9b" * 64),
        (7, 7),
        (0.5, 0.5),
        (True, True),
        ({"a": "secret"}, "<dict>"),
        (["secret"], "<list>"),
    ],
    ids=[
        "limit",
        "above",
        "20 million",
        "control characters",
        "20 million of them",
        "int",
        "float",
        "bool",
        "object",
        "array",
    ],
)
def test_texts_are_clipped_and_other_values_are_replaced_by_their_type(value: Any, recorded: Any):
    """This holds for every field, because most values come from clients and upstreams."""
    assert LONGEST_CHARS == 256
    assert [RequestRecord(**{field: value}).known() for field in FIELDS] == [{field: recorded} for field in FIELDS]


def test_the_final_response_fills_in_ids_and_token_counts():
    """The upstream's values are recorded unchanged."""
    record = RequestRecord()
    usage = {
        "input_tokens": 5,
        "output_tokens": 7,
        "input_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 1},
    }
    usage["output_tokens_details"] = {"reasoning_tokens": 3}
    record.read(ended_with({"id": "resp_1", "model": "m-1", "status": "completed", "usage": usage}))

    assert record.known() == {
        "response_id": "resp_1",
        "response_model": "m-1",
        "finish_reason": "completed",
        "input_tokens": 5,
        "output_tokens": 7,
        "cached_tokens": 2,
        "cache_write_tokens": 1,
        "reasoning_tokens": 3,
    }


@pytest.mark.parametrize("usage", [None, 7, [], {}, {"input_tokens_details": 7}])
def test_a_response_without_counts_is_recorded_without_them(usage: Any):
    """Usage of another type counts as unknown."""
    record = RequestRecord()
    record.read(ended_with({"id": "resp_1", "usage": usage}))

    assert record.known() == {"response_id": "resp_1"}


def test_a_reply_without_a_final_response_changes_nothing():
    """The reply broke off."""
    record = RequestRecord(model="m")
    record.read(Transcript())

    assert record.known() == {"model": "m"}


@pytest.mark.parametrize(
    ("fields", "recorded"),
    [
        ({"model": "m" * 256}, {"model": "m" * 256}),
        ({"model": "m" * 20_000_000}, {"code": "invalid_value"}),
        ({"max_output_tokens": {"a": "secret" * 1000}}, {"max_output_tokens": "<dict>"}),
        ({"max_output_tokens": "secret" * 1000}, {"max_output_tokens": ("secret" * 1000)[:256]}),
        ({"metadata": {"secret" * 100_000: 1}}, {"code": "metadata_limits.key_too_long"}),
    ],
    ids=["longest model", "20 MB model", "object", "text", "long key"],
)
async def test_a_request_with_large_values_makes_short_lines(
    http, start_gateway: StartGateway, upstream: FakeUpstream, logged, fields: dict[str, Any], recorded: dict[str, Any]
):
    """Neither the log line of the request nor that of a policy has the whole value."""
    policies = [{"use": "metadata_limits", "mode": "report"}, {"use": "metadata_limits"}]
    gateway = await start_gateway(tables_for(upstream, policy=policies))
    body = BytesIO(orjson.dumps({"model": "m", **fields}))
    async with http.post(f"{gateway}/v1/responses", data=body, headers=JSON) as answer:
        await answer.read()
    line = next(line for line in logged if line["event"] == "request.finished")

    assert {name: line[name] for name in recorded} == recorded
    assert max(len(orjson.dumps(line)) for line in logged) < 1500
