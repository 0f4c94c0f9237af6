"""A call that is received again finds its entry without a search for its place; what decides each time still does."""

from typing import Any

import pytest

from proxy.cache.cache import Cache
from proxy.cache.vault_keys import Partition
from proxy.context import Caller
from proxy.pipeline import Pipeline
from proxy.stores.memory import MemoryStore
from proxy.wire.call import Call
from tests.cache.test_cache import ASKED, BEN, HIT, MISS, SettableClock, make_cache
from tests.conftest import tables_for
from tests.examples import ANNA, make_call, make_context
from tests.pipelines import ScriptedBackend, answer_of, make_pipeline
from tests.raw import ask, post
from tests.rules.samples import RESPONSE
from tests.upstream import FakeUpstream


class Asked:
    """One call that is received again and again, and a pipeline that answers it."""

    def __init__(self, **options: Any) -> None:
        self.clock, self.store = SettableClock(), MemoryStore()
        self.cache: Cache = make_cache(self.store, self.clock, **options)
        self.backend = ScriptedBackend(answer=RESPONSE)
        self.pipeline: Pipeline = make_pipeline(self.backend, cache=self.cache)
        self.call: Call = make_call(**ASKED)
        self.call.remember()

    async def status(self, caller: Caller = ANNA, cache_control: str = "", *, names_unknown: bool = False) -> str:
        """Return the Cache-Status of one answer, without the name of the cache."""
        context = make_context(caller, received={"cache-control": cache_control})
        context.names_unknown = names_unknown
        await answer_of(self.pipeline, self.call, context)
        return context.answer_headers["Cache-Status"].removeprefix("headgate; ")


@pytest.mark.parametrize(("share", "statuses"), [("team", [MISS, HIT, HIT, HIT]), ("caller", [MISS, MISS, HIT, HIT])])
async def test_callers_of_a_team_share_what_the_config_says(share: str, statuses: list[str]):
    """In turns, so that neither gets the place of the other."""
    asked = Asked(share=share)

    assert [(await asked.status(caller)).partition(";")[0] for caller in (ANNA, BEN, ANNA, BEN)] == statuses


async def test_directives_ages_and_unknown_ids_are_obeyed_each_time():
    """Between hits of the same call."""
    asked = Asked(ttl_s=100)
    found = [await asked.status(), await asked.status(), await asked.status(cache_control="no-store")]
    found += [await asked.status(names_unknown=True), await asked.status(cache_control="no-cache")]
    asked.clock.now_s += 40
    found += [await asked.status(), await asked.status(cache_control="max-age=5")]
    asked.clock.now_s += 100
    found.append(await asked.status())

    assert found == [
        MISS, "hit; ttl=100", "fwd=bypass; detail=no-store", "fwd=bypass; detail=unknown-id", "fwd=request",
        "hit; ttl=60", "fwd=request", "fwd=stale",
    ]  # fmt: skip


async def test_what_was_deleted_or_forgotten_is_not_given_again():
    """Neither the answer whose response its owner deleted, nor those of a team that is forgotten."""
    asked = Asked(local_ttl_s=60)
    await asked.status()
    await asked.cache.forget("search", RESPONSE["id"])
    found = [await asked.status(), await asked.status()]
    assert asked.cache.vault is not None
    await asked.cache.vault.forget(Partition("team", "search"))
    found += [await asked.status(), await asked.status()]

    assert [status.partition(";")[0] for status in found] == [MISS, HIT, MISS, HIT]


async def test_a_call_without_a_place_is_bypassed_each_time():
    """It asks its backend."""
    asked = Asked(when="never")

    assert [await asked.status() for _ in range(3)] == ["fwd=bypass; detail=route"] * 3
    assert len(asked.backend._calls) == 3


async def test_other_headers_are_another_call(start_gateway, upstream: FakeUpstream):
    """A repeated body has one entry for each value of a header that reaches the upstream and changes answers."""
    gateway = await start_gateway(tables_for(upstream))
    body = b'{"model":"m","input":"Hi","prompt_cache_key":"k"}'
    found = []
    for beta in ("a", "a", "a", "b", "a", "b", "b"):
        answer = await ask(gateway, post(body, openai_beta=beta))
        found.append(answer.headers["cache-status"].split("; ")[1])

    assert found == [MISS, HIT, HIT, MISS, HIT, HIT, HIT]
    assert [request.headers["openai-beta"] for request in upstream.requests] == ["a", "b"]
