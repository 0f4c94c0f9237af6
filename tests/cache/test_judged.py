"""An answer that a caller shares with others, or gets again, is judged by the rules of that caller."""

from typing import Any

import orjson
import pytest

from proxy.rules.rule import compile_selector
from proxy.stores.memory import MemoryStore
from proxy.wire.errors import BackendError
from tests.cache.test_cache import ASKED, BEN, SettableClock, cached
from tests.cache.test_flights import GatedBackend, asking, settle
from tests.examples import ANNA, make_call, make_context
from tests.pipelines import ScriptedBackend, answer_of
from tests.rules.samples import RESPONSE, ItemBudget, make_rule
from tests.wire.streams import CANONICAL, events_in, frame

ITEMS = [
    {"id": f"fc_{n}", "type": "function_call", "call_id": f"c{n}", "name": "f", "arguments": "{}"} for n in range(9)
]
FINAL = RESPONSE | {"output": ITEMS}
DONE = [frame(type="response.output_item.done", output_index=n, item=item) for n, item in enumerate(ITEMS)]
STREAM = b"".join([CANONICAL[0], *DONE, frame(type="response.completed", response=FINAL)])


def budget() -> Any:
    """Return a rule by which one of the two callers gets two items at most."""
    return make_rule(ItemBudget(items=2), callers=compile_selector([BEN.name]))


def output(answer: bytes) -> list[Any]:
    """Return the items of the response object in a body, or at the end of a stream."""
    final = orjson.loads(answer) if answer.startswith(b"{") else events_in(answer)[-1]["response"]
    return list(final["output"])


def finished(answer: bytes) -> list[Any]:
    """Return the items that a stream has finished."""
    return [event["item"] for event in events_in(answer) if event["type"] == "response.output_item.done"]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("form", [STREAM, FINAL], ids=["a stream", "a body"])
@pytest.mark.parametrize("age_s", [0, 70, 170])
async def test_an_answer_that_is_given_again(form: Any, age_s: float, *, stream: bool):
    """Fresh, stale while a new one is asked for, and in place of a failure."""
    clock = SettableClock()
    ages = {"ttl_s": 60, "stale_while_revalidate_s": 60, "stale_if_error_s": 600}
    backend = ScriptedBackend(answer=form)
    pipeline = cached(backend, [budget()], clock=clock, **ages)
    assert len(output(await answer_of(pipeline, make_call(**ASKED), make_context(ANNA)))) == 9
    clock.now_s += age_s
    if age_s:
        vars(backend)["answer"] = BackendError("It failed.")
    context = make_context(BEN)
    answer = await answer_of(pipeline, make_call(**ASKED, stream=stream), context)
    await pipeline.cache.close()

    assert context.record.cache == ("stale" if age_s else "hit")
    assert output(answer) == ITEMS[:2]
    if stream:
        assert finished(answer) == ITEMS[:2]


@pytest.mark.parametrize("across", [False, True], ids=["one process", "two processes"])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("form", [STREAM, FINAL], ids=["a stream", "a body"])
async def test_an_answer_that_is_shared_in_flight(form: Any, *, stream: bool, across: bool):
    """With one that has no budget, who gets all of it."""
    store, backends = MemoryStore(), [GatedBackend(answer=form) for _ in range(2)]
    pipelines = [cached(backend, [budget()], store=store, collapse="shared") for backend in backends]
    first = asking(pipelines[0], ANNA, stream=stream)
    await settle()
    second = asking(pipelines[1 if across else 0], BEN, stream=stream)
    await settle()
    for backend in backends:
        backend._gate.set()
    whole, cut = await first[1], await second[1]

    assert second[0].record.cache == "collapsed"
    assert sum(len(backend._calls) for backend in backends) == 1
    assert (output(whole), output(cut)) == (ITEMS, ITEMS[:2])
    if stream:
        assert (finished(whole), finished(cut)) == (ITEMS, ITEMS[:2])
