"""How the Authorization header identifies a caller."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from proxy.context import Caller
from proxy.identity.directory import ANONYMOUS, MAX_KEYED, Directory, Sender
from proxy.wire.errors import Unauthenticated
from tests.examples import NO_DEADLINE

ANNA, BEN = Caller("anna", "search"), Caller("ben", "ads")


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


DIRECTORY = Directory({digest("sk-anna_1.2~3+4/5="): ANNA, digest("sk-ben"): BEN})


def bearers(*values: str) -> CIMultiDict[str]:
    return CIMultiDict([("Authorization", value) for value in values])


def refusal(*authorization: str, directory: Directory = DIRECTORY) -> Unauthenticated:
    with pytest.raises(Unauthenticated) as caught:
        directory.identify(bearers(*authorization))
    return caught.value


@pytest.mark.parametrize(
    ("header", "caller"),
    [
        ("Bearer sk-ben", BEN),
        ("bearer sk-ben", BEN),
        ("BEARER   sk-ben", BEN),
        ("Bearer sk-anna_1.2~3+4/5=", ANNA),
    ],
)
def test_a_key_identifies_its_caller(header: str, caller: Caller):
    """The scheme is case-insensitive; the key is compared exactly."""
    assert DIRECTORY.identify(bearers(header)) == caller


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ([("api-key", "sk-ben")], BEN),
        ([("X-Api-Key", "sk-ben")], BEN),
        ([("api-key", "Bearer sk-ben")], "Incorrect API key"),
        ([("api-key", "")], "Incorrect API key"),
        ([("x-api-key", "sk-ben\x00")], "Incorrect API key"),
        ([("api-key", "sk-ben"), ("x-api-key", "sk-ben")], "more than one key"),
        ([("api-key", "sk-ben"), ("Api-Key", "sk-ben")], "more than one key"),
        ([("api-key", "sk-ben"), ("Authorization", "Bearer sk-ben")], "more than one key"),
        ([("x-api-key", ""), ("Authorization", "Bearer sk-ben")], "more than one key"),
    ],
)
def test_a_key_may_be_in_another_header(headers: Sequence[tuple[str, str]], found: Caller | str):
    """That of Azure's SDK, and that of others; in exactly one of them."""
    if isinstance(found, Caller):
        assert DIRECTORY.identify(CIMultiDict(headers)) == found
        return
    with pytest.raises(Unauthenticated, match=found):
        DIRECTORY.identify(CIMultiDict(headers))


@pytest.mark.parametrize(
    "header",
    [
        "Bearer sk-Ben",
        "Bearer sk-be",
        "Bearer sk-benn",
        "Bearer sk-ben ",
        "Bearer sk-ben\n",
        " Bearer sk-ben",
        "Bearer\tsk-ben",
        "Bearersk-ben",
        "Bearer",
        "Bearer ",
        "",
        "sk-ben",
        "Basic sk-ben",
        "Token sk-ben",
        "Bearer sk-ben,sk-anna",
        "Bearer sk-ben, Bearer sk-ben",
        "Bearer \u017fk-ben",
        "Bearer sk-ben\u00e9",
        "Bearer sk-ben\x00",
    ],
)
def test_any_other_key_is_refused(header: str):
    """The message does not say why."""
    error = refusal(header)

    assert (error.status, error.code) == (401, "invalid_api_key")
    assert error.message == "Incorrect API key provided."


def test_a_missing_key_is_refused_in_the_words_of_openai():
    """The message explains how to send a key."""
    assert refusal().message.startswith("You didn't provide an API key. You need to provide your API key")
    assert refusal().headers == {"WWW-Authenticate": "Bearer"}


@pytest.mark.parametrize("headers", [["Bearer sk-ben", "Bearer sk-ben"], ["Bearer sk-ben", ""], ["", "Bearer sk-ben"]])
def test_more_than_one_header_is_refused(headers: Sequence[str]):
    """Two parsers could use different headers."""
    assert refusal(*headers).message == "The request has more than one Authorization header; exactly one is allowed."


def test_without_callers_every_client_is_anonymous():
    """Any header is accepted; the config then allows only clients on the same machine."""
    identify = Directory({}).identify

    assert identify(bearers()) == identify(bearers("Bearer x")) == identify(bearers("a", "b")) == ANONYMOUS


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Basic x", "\u00e9"])
def test_an_empty_key_is_never_valid(header: str):
    """`printf %s "$UNSET" | sha256sum` prints a digest that must not admit clients without a key."""
    assert refusal(header, directory=Directory({digest(""): ANNA})).code == "invalid_api_key"


@NO_DEADLINE
@given(header=st.text(max_size=30) | st.from_regex(r"Bearer [A-Za-z0-9._~+/=-]+", fullmatch=True))
def test_an_error_never_repeats_the_header(header: str):
    """Any header can be refused; the error does not contain it."""
    assert refusal(header).message == "Incorrect API key provided."


def test_spellings_of_one_key_crowd_out_no_other_team():
    """Any number of spaces is valid; what is remembered of others must stay."""
    directory = Directory({digest("sk-anna"): ANNA, digest("sk-ben"): BEN})
    for spaces in range(1, MAX_KEYED + 2):
        assert directory.identify(bearers(f"Bearer{' ' * spaces}sk-anna")) == ANNA
    assert directory.identify(bearers("bearer sk-ben")) == BEN

    assert {*directory._keyed.values()} == {ANNA, BEN}
    assert len(directory._keyed) == 2


def test_a_team_is_known_by_its_key_in_each_header_before_it_is_used():
    """While a request waits it must not stand in line with those who have no key."""
    directory = Directory({digest("sk-anna"): ANNA, digest("sk-ben"): BEN})
    sent = [
        [("Authorization", "Bearer sk-anna")], [("api-key", "sk-anna")], [("X-Api-Key", "sk-ben")],
        [("Authorization", "Bearer sk-none")], [("api-key", "sk-none")], [("Authorization", "sk-anna")], [],
        [("Authorization", "Bearer sk-anna"), ("api-key", "sk-anna")],
    ]  # fmt: skip
    teams = [directory.team_of(CIMultiDict(headers)) for headers in sent]

    assert teams == ["search", "search", "ads", "", "", "", "", ""]


class OneConnection:
    """What a directory knows of a connection."""

    sender: Sender | None = None


def test_a_connection_is_known_by_its_last_key_until_the_keys_change():
    """A key that was revoked or replaced identifies no caller any more, also where it has just been used."""
    directory, connection = Directory({digest("sk-ben"): BEN}, has_issued=True), OneConnection()
    directory.replace_issued({digest("sk-anna"): ANNA}, ())
    for _ in range(3):
        assert directory.identify(bearers("Bearer sk-anna"), connection) == ANNA
    assert connection.sender is not None

    directory.replace_issued({}, ())

    with pytest.raises(Unauthenticated):
        directory.identify(bearers("Bearer sk-anna"), connection)
    assert directory.identify(bearers("Bearer sk-ben"), connection) == BEN


def test_the_same_head_identifies_no_caller_when_the_keys_have_changed():
    """A head that repeats the last one of its connection is one object, whatever the length of the body is."""
    directory, connection = Directory({digest("sk-ben"): BEN}, has_issued=True), OneConnection()
    issued, head = replace(ANNA, key_id="key_1"), object()
    directory.replace_issued({digest("sk-anna"): issued}, ())
    sent = bearers("Bearer sk-anna")
    for headers in (sent, sent, CIMultiDict(), CIMultiDict()):  # they are not read again
        directory.take_used()
        assert directory.identify(headers, connection, head) is issued
        assert directory.take_used() == {"key_1"}
    for other in (None, object()):
        with pytest.raises(Unauthenticated):
            directory.identify(CIMultiDict(), connection, other)

    directory.replace_issued({}, ())

    with pytest.raises(Unauthenticated):
        directory.identify(bearers("Bearer sk-anna"), connection, head)


@pytest.mark.parametrize(
    "other", ["Bearer sk-ann", "Bearer sk-anna1", "Bearer sk-Anna", "Bearer sk-ann\u00e4", "Basic sk-anna", ""]
)
def test_another_key_on_a_connection_is_not_taken_for_the_last_one(other: str):
    """A proxy may send the requests of many clients on one connection."""
    directory, connection = Directory({digest("sk-anna"): ANNA, digest("sk-ben"): BEN}), OneConnection()
    for _ in range(2):
        directory.identify(bearers("Bearer sk-anna"), connection)

    with pytest.raises(Unauthenticated):
        directory.identify(bearers(other), connection)
    with pytest.raises(Unauthenticated, match="more than one"):
        directory.identify(bearers("Bearer sk-anna", "Bearer sk-anna"), connection)
    assert directory.identify(bearers("Bearer sk-ben"), connection) == BEN
    assert directory.identify(bearers("Bearer sk-anna"), connection) == ANNA


def test_a_directory_does_not_believe_another_one():
    """After a reload there may be another one, in which a key has another caller."""
    before, after = Directory({digest("sk-anna"): ANNA}), Directory({digest("sk-anna"): BEN})
    connection = OneConnection()
    for _ in range(2):
        before.identify(bearers("Bearer sk-anna"), connection)

    assert after.identify(bearers("Bearer sk-anna"), connection) == BEN
