"""The router: from method and path to a handler."""

import pytest

from proxy.http.router import Endpoint, Router, compile_template
from proxy.wire.errors import RequestError


def handler(name: str):
    async def handle(exchange):
        raise NotImplementedError(name)

    return handle


CREATE, CONNECT, GET, DELETE, ITEMS, MODEL, LIST = map(
    handler, ["create", "connect", "get", "del", "items", "model", "list"]
)
ROUTER = Router([
    Endpoint("POST", "/v1/responses", CREATE),
    Endpoint("GET", "/v1/responses", CONNECT),
    Endpoint("GET", "/v1/responses/{id}", GET),
    Endpoint("DELETE", "/v1/responses/{id}", DELETE),
    Endpoint("GET", "/v1/responses/{id}/items/{item_id}", ITEMS),
    Endpoint("GET", "/v1/models", LIST),
    Endpoint("GET", "/v1/models/{name*}", MODEL),
])  # fmt: skip


def test_a_request_is_matched_by_method_and_path():
    assert ROUTER.match("POST", "/v1/responses") == (CREATE, {})
    assert ROUTER.match("GET", "/v1/responses") == (CONNECT, {})
    assert ROUTER.match("GET", "/v1/responses/resp_1") == (GET, {"id": "resp_1"})
    assert ROUTER.match("DELETE", "/v1/responses/resp_1") == (DELETE, {"id": "resp_1"})
    assert ROUTER.match("GET", "/v1/responses/resp_1/items/msg-2") == (ITEMS, {"id": "resp_1", "item_id": "msg-2"})


@pytest.mark.parametrize("value", ["a", "resp_0a-Z", "-", "_", "a" * 256])
def test_an_id_may_have_letters_digits_underscores_and_dashes(value: str):
    assert ROUTER.match("GET", f"/v1/responses/{value}")[1] == {"id": value}


NOT_IDS = [
    "", "a" * 257, "a.b", ".", "..", "a b", "a%2fb", "%61", "a/b", "a/", "/a", "a?x", "a#x", "a;b", "a:b", "a\\b", "a\n",
    "\n", "\u00e9", "\u0661", "\uff41", "a\x00", "a+b", "a~b", "..%2f", "*",
]  # fmt: skip


@pytest.mark.parametrize("value", NOT_IDS)
def test_any_other_path_segment_is_not_an_id(value: str):
    """The path is checked as it was sent, neither decoded nor normalized."""
    with pytest.raises(RequestError) as refused:
        ROUTER.match("GET", f"/v1/responses/{value}")

    assert refused.value.status == 404


@pytest.mark.parametrize("name", ["m", "acme/small", "acme%2Fsmall", "a/b/c", "..", "/", "a//b", "%00", "\u00e9"])
def test_a_rest_of_a_path_is_matched_as_it_was_sent(name: str):
    """`{name*}` matches slashes and escapes; its handler decodes them."""
    assert ROUTER.match("GET", f"/v1/models/{name}") == (MODEL, {"name": name})


@pytest.mark.parametrize("path", ["/v1/models/", "/v1/models/a\nb"])
def test_a_rest_of_a_path_is_not_empty_and_has_no_line_end(path: str):
    with pytest.raises(RequestError) as refused:
        ROUTER.match("GET", path)

    assert refused.value.status == 404


@pytest.mark.parametrize(
    "path",
    ["//v1/responses", "/v1//responses", "/v1/responses/", "/v1/./responses", "/v1/../v1/responses", "/V1/responses",
     "/v1/%72esponses", "/v1/responses%2f", "v1/responses", "", "/v1xresponses"],
)  # fmt: skip
def test_only_the_exact_path_is_served(path: str):
    with pytest.raises(RequestError) as refused:
        ROUTER.match("POST", path)

    assert refused.value.status == 404


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/v1/responses", "POST, GET, HEAD"),
        ("POST", "/v1/responses/a", "GET, HEAD, DELETE"),
        ("get", "/v1/models", "GET, HEAD"),
    ],
)
def test_another_method_is_refused_with_those_that_are_allowed(method: str, path: str, allowed: str):
    with pytest.raises(RequestError) as refused:
        ROUTER.match(method, path)

    assert (refused.value.status, refused.value.headers) == (405, {"Allow": allowed})


def test_head_is_answered_wherever_get_is():
    """No other method is."""
    assert ROUTER.match("HEAD", "/v1/responses/resp_1") == (GET, {"id": "resp_1"})
    assert ROUTER.match("HEAD", "/v1/models") == (LIST, {})


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/responses", "/v1/responses"),
        ("/v1/v1/responses", "/v1/responses"),
        ("/v1/V1/responses/resp_1", "/v1/responses/resp_1"),
        ("/v1/responses/", "/v1/responses"),
        ("/v1/responses/resp_1/", "/v1/responses/resp_1"),
        ("//v1//responses", "/v1/responses"),
        ("/openai/v1/responses", "/v1/responses"),
        ("/V1/models", "/v1/models"),
        ("/models/acme/small", "/v1/models/acme/small"),
    ],
)
def test_an_unknown_path_is_refused_with_the_path_that_is_meant(path: str, meant: str):
    """These are common faults of a client's base_url."""
    with pytest.raises(RequestError) as refused:
        ROUTER.match("POST", path)

    assert (refused.value.status, refused.value.message) == (
        404,
        f"Unknown request URL: POST {path}. The path is {meant}; check the client's base_url, which ends in /v1.",
    )


@pytest.mark.parametrize("path", ["/", "", "/v1", "/v1/v1", "/v2/responses", "/x" * 100 + "/v1/responses", "/v1/../x"])
def test_any_other_unknown_path_is_refused_with_the_main_endpoint(path: str):
    """A long path is not searched for the one that may be meant."""
    with pytest.raises(RequestError) as refused:
        ROUTER.match("GET", path)

    assert refused.value.message.endswith(". Responses are created by POST /v1/responses.")


def test_a_long_path_is_clipped_in_the_message():
    with pytest.raises(RequestError) as refused:
        ROUTER.match("GET", "/" + "a" * 100_000)

    assert len(refused.value.message) < 300


def test_other_characters_of_a_template_match_themselves():
    assert compile_template("/a.b/{id}").fullmatch("/axb/1") is None
    assert compile_template("/a.b/{id}").fullmatch("/a.b/1") is not None
