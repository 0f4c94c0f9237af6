"""Requests for something that exists."""

import pytest

from proxy.wire.call import resource_call
from proxy.wire.resource import ResourceRequest


@pytest.mark.parametrize(
    ("request_", "path", "operation"),
    [
        (ResourceRequest("GET", "responses", "resp_1"), "responses/resp_1", "access"),
        (ResourceRequest("POST", "responses", "resp_1", ("cancel",)), "responses/resp_1/cancel", "access"),
        (ResourceRequest("GET", "responses", "resp_1", ("input_items",)), "responses/resp_1/input_items", "access"),
        (ResourceRequest("POST", "conversations"), "conversations", "conversation"),
        (ResourceRequest("POST", "conversations", "conv_1"), "conversations/conv_1", "conversation"),
        (ResourceRequest("DELETE", "conversations", "conv_1"), "conversations/conv_1", "access"),
        (ResourceRequest("POST", "conversations", "conv_1", ("items",)), "conversations/conv_1/items", "items"),
        (ResourceRequest("GET", "conversations", "c", ("items", "msg_1")), "conversations/c/items/msg_1", "access"),
    ],
)
def test_a_request_has_a_path_and_an_operation(request_: ResourceRequest, path: str, operation: str):
    """The path is what follows the base address; policies choose by the operation."""
    assert (request_.path, resource_call(request_, 0).operation) == (path, operation)


def test_a_request_is_a_call_without_a_model_for_policies():
    """They see its body, headers and query."""
    request = ResourceRequest("POST", "conversations", query="a=b", body={"items": []}, headers={"openai-beta": "x"})
    call = resource_call(request, 0)

    assert (call.body, call.headers, call.query, call.model) == ({"items": []}, {"openai-beta": "x"}, "a=b", "")
    assert resource_call(ResourceRequest("GET", "responses", "resp_1"), 0).body == {}
