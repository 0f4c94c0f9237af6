"""Lists of names of headers, and which of a caller's headers they select."""

import pytest
from multidict import CIMultiDict

from proxy.wire.headers import (
    DEFAULT_HEADERS,
    MAX_CHOSEN,
    MAX_NAME_CHARS,
    NEVER_FORWARDED,
    HeaderNames,
    forwarded_headers,
    scope_idempotency_key,
)

HOP_BY_HOP = frozenset({
    "connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
})  # fmt: skip


def test_headers_of_sdks_and_sessions_are_forwarded():
    """The caller's identity and unknown headers are not; names come in lower case."""
    headers = {
        "Authorization": "Bearer sk-1",
        "Cookie": "a=b",
        "Host": "gateway",
        "X-Forwarded-For": "10.0.0.1",
        "X-Api-Key": "k",
        "OpenAI-Organization": "org-1",
        "OpenAI-Project": "proj-1",
        "User-Agent": "OpenAI/Python 3.51.0",
        "OpenAI-Beta": "responses_multi_agent=v1",
        "X-Stainless-Retry-Count": "0",
        "x-codex-turn": "7",
        "session_id": "s",
        "Idempotency-Key": "i",
        "X-OpenAI-Internal-Codex-Responses-Lite": "1",
    }

    assert forwarded_headers(headers) == {
        "user-agent": "OpenAI/Python 3.51.0",
        "openai-beta": "responses_multi_agent=v1",
        "x-stainless-retry-count": "0",
        "x-codex-turn": "7",
        "session_id": "s",
        "idempotency-key": "i",
        "x-openai-internal-codex-responses-lite": "1",
    }


def test_a_name_with_a_star_selects_all_that_begin_like_it():
    """Names match in any case."""
    names = HeaderNames(["X-Acme-*", "OpenAI-Project"])

    assert names.select({"x-acme-team": "a", "X-ACME-": "b", "x-acme": "c", "OPENAI-PROJECT": "p"}) == {
        "x-acme-team": "a", "x-acme-": "b", "openai-project": "p",
    }  # fmt: skip


def test_of_two_spellings_of_a_name_the_last_value_is_selected():
    names = HeaderNames(["x-acme-*"])

    assert names.select({"X-Acme-A": "1", "x-acme-a": "2", "other": "3"}) == {"x-acme-a": "2"}


def test_whatever_names_came_before_the_same_are_selected():
    """What is selected of a set of names is remembered, for so many sets."""
    names = HeaderNames(["x-acme-*"])
    sets = [{f"X-Other-{number}": "o", "X-Acme-A": str(number)} for number in range(2 * MAX_CHOSEN)]
    for headers in (*sets, *sets):
        assert names.select(headers) == {"x-acme-a": headers["X-Acme-A"]}

    assert len(names._chosen) <= MAX_CHOSEN


def test_the_headers_of_one_connection_are_never_forwarded():
    """Those of RFC 9110, 7.6.1, and the one that browsers and proxies send although no standard has it."""
    assert HOP_BY_HOP < NEVER_FORWARDED


@pytest.mark.parametrize("name", sorted(NEVER_FORWARDED))
def test_keys_and_headers_of_a_connection_are_refused(name: str):
    """A pattern that would select them does not."""
    with pytest.raises(ValueError, match="never forwarded"):
        HeaderNames([name.upper()])

    assert HeaderNames([f"{name[:2]}*"]).select({name: "x"}) == {}


@pytest.mark.parametrize("name", ["", "*", "a b", "a*b", "a:", "ä", "x-*-y"])
def test_what_is_not_a_name_is_refused(name: str):
    """A star alone would forward everything."""
    with pytest.raises(ValueError, match="is not the name of a header"):
        HeaderNames([name])


def test_a_union_has_the_names_of_all_lists():
    """It is what some backend may see."""
    union = DEFAULT_HEADERS.union([HeaderNames(["openai-project"]), HeaderNames(["x-acme-*"])])

    assert union.select({"openai-project": "p", "x-acme-a": "a", "user-agent": "u", "x-other": "o"}) == {
        "openai-project": "p", "x-acme-a": "a", "user-agent": "u",
    }  # fmt: skip


def test_an_idempotency_key_is_scoped_to_a_team():
    """The same key of the same team stays the same; other headers are not changed."""
    one = scope_idempotency_key({"idempotency-key": "k", "user-agent": "u"}, "search")

    assert one == scope_idempotency_key({"idempotency-key": "k", "user-agent": "u"}, "search")
    assert one["user-agent"] == "u"
    assert "k" != one["idempotency-key"] != scope_idempotency_key({"idempotency-key": "k"}, "rival")["idempotency-key"]
    assert scope_idempotency_key({"user-agent": "u"}, "search") == {"user-agent": "u"}


@pytest.mark.parametrize("others", [{f"x-{number}": "v" for number in range(100)}, {"x-" + "n" * 200: "v"}])
def test_many_or_long_names_select_the_same(others: dict[str, str]):
    """Their choice is not remembered: it would only fill the memory of choices."""
    assert HeaderNames(["user-agent"]).select({"User-Agent": "a", **others}) == {"user-agent": "a"}


@pytest.mark.parametrize("name", ["User-Agent", "user-agent"])
def test_of_a_header_that_is_sent_twice_the_last_value_is_selected(name: str):
    """However many headers there are beside it, and although others with the same names were selected before."""
    names = HeaderNames(["user-agent"])
    assert names.select(CIMultiDict({"User-Agent": "a"})) == {"user-agent": "a"}

    for others in ({}, {f"x-{number}": "v" for number in range(100)}):
        twice = CIMultiDict([("User-Agent", "a"), (name, "b"), *others.items()])
        assert names.select(twice) == {"user-agent": "b"}


def test_a_name_that_is_too_long_is_not_forwarded():
    """Although it begins like one that is listed, and few others are sent with it."""
    long = "x-" + "n" * (MAX_NAME_CHARS - 2)

    assert HeaderNames(["x-*"]).select({long: "v", f"{long}n": "v"}) == {long: "v"}
