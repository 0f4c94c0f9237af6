"""Sealed values: they open for their purpose and team only, and only with the same secret."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from proxy.state.sealing import Sealing
from proxy.stores import StoreError
from proxy.stores.memory import MemoryStore
from proxy.wire.errors import Unavailable

SECRET = "a-secret-of-at-least-thirty-two-characters"


def make_sealing(secret: str | None = SECRET, store: MemoryStore | None = None) -> Sealing:
    return Sealing(None if secret is None else SecretStr(secret), store or MemoryStore())


async def opens(text: str, sealing: Sealing | None = None, purpose: str = "compaction", team: str = "search"):
    return await (sealing or make_sealing()).open(text, purpose=purpose, team=team)


@given(st.binary(max_size=200))
async def test_a_value_opens_for_its_purpose_and_team(data: bytes):
    """In any process with the same secret."""
    text = await make_sealing().seal(data, purpose="compaction", team="search")

    assert await opens(text) == data
    assert await opens(text, team="rival") is None
    assert await opens(text, purpose="responses") is None
    assert await opens(text, make_sealing(SECRET + "!")) is None


async def test_purpose_and_team_cannot_be_shifted_into_each_other():
    """Each has its length before it."""
    text = await make_sealing().seal(b"x", purpose="ab", team="c")

    assert await opens(text, purpose="a", team="bc") is None


async def test_equal_values_have_different_texts():
    """Each has a nonce of its own, and no text has the value."""
    sealing = make_sealing()
    texts = {await sealing.seal(b"the same value", purpose="p", team="t") for _ in range(20)}

    assert len(texts) == 20
    assert not any(b"same value" in base64.urlsafe_b64decode(text + "==") for text in texts)


async def test_a_text_that_was_changed_anywhere_does_not_open():
    """Nothing of it is used."""
    text = await make_sealing().seal(b"value", purpose="compaction", team="search")
    changed = [text[:i] + ("A" if text[i] != "A" else "B") + text[i + 1 :] for i in range(len(text) - 1)]

    assert [each for each in changed if await opens(each) is not None] == []


@pytest.mark.parametrize("text", ["", "A", "AQ", "gAAAAABforeign", "ä", "a b", "AQ" + "A" * 20, "=" * 8, "\ud800"])
async def test_a_text_of_another_gateway_does_not_open(text: str):
    """Whatever it is."""
    assert await opens(text) is None


async def test_without_a_secret_the_store_has_one_for_all_processes(logged):
    """A warning says what its loss means, once: when it is made."""
    store = MemoryStore()
    one, other = make_sealing(None, store), make_sealing(None, store)
    await one.start()
    await other.start()
    text = await one.seal(b"value", purpose="p", team="t")

    assert await other.open(text, purpose="p", team="t") == b"value"
    assert [line["event"] for line in logged] == ["state.secret_generated"]
    assert await make_sealing(None, MemoryStore()).open(text, purpose="p", team="t") is None


async def test_a_secret_in_the_config_needs_no_store(logged):
    """Nothing is written, and nothing is said."""
    store = MemoryStore()
    sealing = make_sealing(SECRET, store)
    await sealing.start()
    await sealing.seal(b"value", purpose="p", team="t")

    assert [key async for key in store.scan("")] == []
    assert logged == []


async def test_many_teams_have_keys_of_their_own():
    """Also those whose keys are no longer kept in memory."""
    sealing = make_sealing()
    first = await sealing.seal(b"value", purpose="p", team="team-0")
    for number in range(1100):
        await sealing.seal(b"", purpose="p", team=f"team-{number}")

    assert await sealing.open(first, purpose="p", team="team-0") == b"value"


class FaultyStore(MemoryStore):
    """A store that fails, or keeps nothing."""

    fails: bool = True

    async def put(self, key: str, value: bytes, *, ttl_s: float, if_absent: bool = False, group: str = "") -> bool:
        if self.fails:
            raise StoreError("no connection")
        return False


@pytest.mark.parametrize("fails", [True, False])
async def test_a_store_without_the_secret_refuses_the_call(fails: bool, logged):
    """The gateway starts, and asks the store again when the key is needed."""
    sealing = make_sealing(None, FaultyStore(fails=fails))
    await sealing.start()
    with pytest.raises(Unavailable) as refused:
        await sealing.seal(b"value", purpose="p", team="t")

    assert refused.value.code == "state_unavailable"
    assert [line["event"] for line in logged] == ["state.secret_unavailable"]
