"""Responses without output."""

from proxy.wire.call import Call
from proxy.wire.warm_up import warm_up_response


def test_a_warm_up_is_complete_and_empty():
    response = warm_up_response(Call({"model": "m", "input": "Hi", "metadata": {"a": "b"}}))

    assert (response["status"], response["output"], response["model"]) == ("completed", [], "m")
    assert response["metadata"] == {"a": "b"}
    assert response["usage"]["total_tokens"] == 0
    assert response["id"].startswith("resp_")
