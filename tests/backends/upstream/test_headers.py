"""Which headers of an upstream's answer callers receive."""

import pytest
from multidict import CIMultiDict
from pydantic import ValidationError

from backends.upstream import Upstream
from backends.upstream.headers import MAX_BYTES, REFUSED, REFUSED_PREFIXES, HeaderFilter
from backends.upstream.scrub import REPLACEMENT, Scrubber
from tests.raw import RawUpstream, ask, no_tasks_left, playing, post, serves, whole  # noqa: F401
from tests.upstream import final_body

NOTHING = Scrubber(None)
JSON = "Content-Type: application/json"
HOP_BY_HOP = frozenset({
    "connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
})  # fmt: skip


def forwarded(*lines: tuple[str, str], more: tuple[str, ...] = (), key: str | None = None) -> dict[str, str]:
    return HeaderFilter(more).forwarded(CIMultiDict(lines), Scrubber(key))


def test_names_are_forwarded_in_lower_case_with_all_their_values():
    """Two headers whose names differ only in case are one."""
    assert forwarded(("OpenAI-Version", "1"), ("openai-version", "2"), ("X-RateLimit-Reset-Tokens", "6m0s")) == {
        "openai-version": "1, 2",
        "x-ratelimit-reset-tokens": "6m0s",
    }


def test_other_headers_are_not_forwarded():
    """They name parts and addresses of the upstream."""
    assert forwarded(("X-Powered-By", "a"), ("X-Backend-Server", "10.0.0.1"), ("cf-ray", "1"), ("X-Debug", "b")) == {}


def test_configured_headers_are_forwarded():
    """A name may be the beginning of others."""
    lines = [("X-MS-Region", "West"), ("Apim-Request-Id", "1"), ("Apim-Request", "2"), ("X-M", "3")]

    assert forwarded(*lines, more=("x-ms-*", "Apim-Request-Id")) == {"x-ms-region": "West", "apim-request-id": "1"}


@pytest.mark.parametrize("name", sorted(REFUSED | {f"{prefix}x" for prefix in REFUSED_PREFIXES}))
def test_no_setting_forwards_what_concerns_the_connection_or_instructs_the_client(name: str):
    """`*` means all others; a name of these is a fault of the config."""
    with pytest.raises(ValueError, match="is never forwarded"):
        HeaderFilter([name])
    assert forwarded((name, "1"), ("x-other", "2"), more=("*",)).get(name) is None


def test_the_headers_of_one_connection_are_refused():
    """Those of RFC 9110, 7.6.1, and the one that browsers and proxies send although no standard has it."""
    assert HOP_BY_HOP < REFUSED


def test_headers_that_the_connection_names_are_not_forwarded():
    """Source: RFC 9110, 7.6.1."""
    assert forwarded(("Connection", "close, OpenAI-Hop"), ("openai-hop", "1"), ("openai-b", "2")) == {"openai-b": "2"}


def test_headers_beyond_the_limit_are_dropped():
    """Clients in Node refuse an answer whose headers are too long."""
    many = [(f"openai-{number}", "x" * 1000) for number in range(20)]
    kept = forwarded(*many, ("x-request-id", "1"))

    assert 0 < sum(len(name) + len(value) for name, value in kept.items()) <= MAX_BYTES


@pytest.mark.parametrize("value", ["a\x01b", "a\x7f", "caf\udce9", "a\nb"])
def test_values_that_are_unfit_for_a_header_are_dropped(value: str):
    """Bytes that are not UTF-8 are read as lone surrogates, which cannot be sent."""
    assert forwarded(("openai-a", value), ("openai-b", "b")) == {"openai-b": "b"}


@pytest.mark.parametrize("name", ["openai-sk-NAME-0123456789", "OpenAI-SK-name-0123456789"])
def test_a_name_that_has_the_key_in_it_is_dropped(name: str):
    """A proxy on the way may have changed its case."""
    assert forwarded((name, "1"), ("openai-a", "sk-NAME-0123456789"), key="sk-NAME-0123456789") == {
        "openai-a": REPLACEMENT
    }


@pytest.mark.parametrize("name", ["set-cookie", "X-Headgate-Policy", "a b", "", "a*b"])
def test_a_setting_that_cannot_work_is_a_fault_of_the_config(name: str):
    """It names the key and what is wrong."""
    with pytest.raises(ValidationError, match="forward_answer_headers"):
        Upstream(name="a", base_url="https://example.com/v1", forward_answer_headers=[name])


async def test_bytes_that_are_not_utf_8_fail_no_call(start_gateway):
    """The header is dropped, the answer is forwarded."""
    async with RawUpstream(playing(whole(final_body(), JSON, "OpenAI-Version: caf\udce9", "OpenAI-B: b"))) as upstream:
        backend = {"name": "fake", "use": "upstream", "base_url": f"{upstream.address}/v1"}
        gateway = await start_gateway({"backend": [backend], "route": [{"model": "*", "backend": "fake"}]})
        answer = await ask(gateway, post())

    assert (answer.status, answer.headers.get("openai-version"), answer.headers["openai-b"]) == (200, None, "b")


def test_the_same_names_are_looked_at_once_and_their_values_each_time():
    """An upstream that sends a limit now, and its key the next time, has only the key removed."""
    chosen = HeaderFilter()
    scrubber = Scrubber("sk-1234567890")
    answers = [{"x-ratelimit-limit-tokens": value} for value in ("1", "sk-1234567890", "3", "\x01")]

    assert [chosen.forwarded(answer, scrubber) for answer in answers] == [
        answers[0], {"x-ratelimit-limit-tokens": REPLACEMENT}, answers[2], {},
    ]  # fmt: skip
