"""Requests and answers of relayed paths."""

import pytest

from proxy.wire.relay import RelayReply


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, ""),
        ({"Content-Type": "application/json"}, "application/json"),
        ({"Content-Type": "Text/Event-Stream; charset=utf-8"}, "text/event-stream"),
    ],
)
def test_the_media_type_of_an_answer_has_no_parameters(headers: dict[str, str], expected: str):
    """It is compared in lower case."""
    assert RelayReply(200, headers).content_type == expected
