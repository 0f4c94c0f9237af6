"""Answers given before: to the same question of the same team, and to nobody else."""

import hashlib
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import AsyncOpenAI

from proxy.cache.cache import key_of
from proxy.context import Caller
from proxy.wire.call import Call
from tests.conftest import DATA, tables_for
from tests.upstream import CANONICAL, FakeUpstream, streaming

ASKED = {"model": "m", "input": "Hi", "prompt_cache_key": "k"}
KEYS = {"alice": "key-of-alice", "bob": "key-of-bob", "carol": "key-of-carol"}


def callers() -> list[dict[str, str]]:
    """Alice and Bob are of one team, Carol is of another."""
    teams = {"alice": "red", "bob": "red", "carol": "blue"}
    return [
        {"name": name, "team": teams[name], "key_sha256": hashlib.sha256(key.encode()).hexdigest()}
        for name, key in KEYS.items()
    ]


async def ask(http, gate: str, body: dict[str, Any], **headers: str) -> tuple[str | None, bytes]:
    """The Cache-Status and the body of one answer."""
    async with http.post(f"{gate}/v1/responses", json=body, headers=headers) as answer:
        return answer.headers.get("Cache-Status"), await answer.read()


async def test_the_second_asker_gets_the_first_answer(gate: str, http, upstream: FakeUpstream):
    """One upstream call serves both, and Cache-Status says which was which."""
    first, body = await ask(http, gate, ASKED)
    second, again = await ask(http, gate, ASKED)

    assert (first, body, len(upstream.requests)) == ("headgate; fwd=uri-miss", again, 1)
    assert second in ("headgate; hit; ttl=3599", "headgate; hit; ttl=3600")


async def test_what_was_told_beside_an_answer_is_told_again(start_gate, http):
    """What the local model left out of the first call it left out of the second, however either is delivered."""
    gate = await start_gate({
        "cache": {"use": "memory"},
        "backend": [{"name": "demo", "use": "local", "path": "backends/demo", "engine": "thread"}],
        "route": [{"model": "*", "backend": "demo"}],
    })  # fmt: skip
    told = []
    for stream in (False, False, True):
        async with http.post(f"{gate}/v1/responses", json=ASKED | {"seed": 5, "stream": stream}) as answer:
            told.append((answer.headers["Cache-Status"].split(";")[1], answer.headers["x-headgate-ignored"]))
            await answer.read()

    assert told == [(" fwd=uri-miss", "seed"), (" hit", "seed"), (" hit", "seed")]


async def test_no_key_no_caching(gate: str, http, upstream: FakeUpstream):
    """`prompt_cache_key` is the caller's consent."""
    for _ in range(2):
        status, _ = await ask(http, gate, {"model": "m", "input": "Hi"})

    assert (status, len(upstream.requests)) == ("headgate; fwd=bypass; detail=no-prompt-cache-key", 2)


async def test_a_stream_is_replayed_byte_for_byte(gate: str, http, upstream: FakeUpstream):
    """A stream caller gets the frames that were recorded."""
    for _ in range(2):
        _, body = await ask(http, gate, ASKED | {"stream": True})

        assert body == CANONICAL
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("first", [True, False])
async def test_one_entry_serves_both_ways(gate: str, upstream: FakeUpstream, first: bool):
    """Who asks for a body gets the final object of a recorded stream; who asks for a stream gets events of a body."""
    async with AsyncOpenAI(base_url=f"{gate}/v1", api_key="x", max_retries=0) as client:
        texts = []
        for stream in (first, not first):
            if stream:
                async with client.responses.stream(model="m", input="Hi", prompt_cache_key="k") as events:
                    texts.append((await events.get_final_response()).output_text)
            else:
                answer = await client.responses.create(model="m", input="Hi", prompt_cache_key="k")
                texts.append(answer.output_text)

    assert (texts, len(upstream.requests)) == (["Hello.", "Hello."], 1)


@pytest.mark.parametrize("stream", [True, False])
async def test_echoed_fields_are_those_of_the_request_being_answered(gate: str, http, upstream, stream: bool):
    """Metadata of the first asker never reaches the second."""
    answers = []
    for who in ("first", "second"):
        asked = ASKED | {"metadata": {"who": who}, "safety_identifier": who, "stream": stream}
        answers.append((await ask(http, gate, asked))[1])

    assert (b"first" in answers[1], len(upstream.requests)) == (False, 1)
    assert answers[1].count(b'"metadata":{"who":"second"}') == (3 if stream else 1)


async def test_teams_share_answers_and_nobody_else_does(start_gate, http, upstream: FakeUpstream):
    """The same words from another team are another question."""
    gate = await start_gate(tables_for(upstream, caller=callers()))
    statuses = {
        name: (await ask(http, gate, ASKED, Authorization=f"Bearer {key}"))[0].split(";")[1].strip()
        for name, key in KEYS.items()
    }

    assert statuses == {"alice": "fwd=uri-miss", "bob": "hit", "carol": "fwd=uri-miss"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tools": [{"type": "function", "name": "f"}, {"type": "mcp"}]}, "tools"),
        ({"tools": "odd"}, "tools"),
        ({"prompt_cache_key": 7}, "no-prompt-cache-key"),
    ],
)
async def test_what_is_never_cached_says_why(gate: str, http, upstream: FakeUpstream, change, reason):
    """Calls with effects beside their answer, and odd ones, go upstream each time."""
    for _ in range(2):
        status, _ = await ask(http, gate, ASKED | change)

    assert (status, len(upstream.requests)) == (f"headgate; fwd=bypass; detail={reason}", 2)


async def test_server_tools_are_cached_where_the_operator_allows_it(start_gate, http, upstream: FakeUpstream):
    """`server_tools = true` keeps answers that will not act again."""
    gate = await start_gate(tables_for(upstream, cache={"use": "memory", "server_tools": True}))
    for _ in range(2):
        await ask(http, gate, ASKED | {"tools": [{"type": "web_search"}]})

    assert len(upstream.requests) == 1


@pytest.mark.parametrize("fixture", ["incomplete", "failing", "failed_only"])
async def test_only_completed_responses_are_kept(gate: str, http, upstream: FakeUpstream, fixture: str):
    """An answer that was cut short or failed is nobody else's answer."""
    upstream.answer = streaming((DATA / f"{fixture}.sse").read_bytes())
    for _ in range(2):
        await ask(http, gate, ASKED | {"stream": True})

    assert len(upstream.requests) == 2


async def test_a_stream_that_breaks_off_is_not_kept(gate: str, http, upstream: FakeUpstream):
    """Cut at every third of its frames, a stream leaves nothing behind."""
    frames = CANONICAL.split(b"\n\n")
    for count in range(1, len(frames) - 2, 3):
        upstream.answer = streaming(b"\n\n".join(frames[:count]) + b"\n\n")
        await ask(http, gate, ASKED | {"stream": True})
    upstream.answer = None
    status, body = await ask(http, gate, ASKED | {"stream": True})

    assert (status, body) == ("headgate; fwd=uri-miss", CANONICAL)


async def test_answers_over_the_limit_are_not_kept(start_gate, http, upstream: FakeUpstream):
    """`max_reply_bytes` bounds an entry."""
    gate = await start_gate(tables_for(upstream, cache={"use": "memory", "max_reply_bytes": 500}))
    for _ in range(2):
        await ask(http, gate, ASKED)

    assert len(upstream.requests) == 2


async def test_no_store_keeps_nothing_and_no_cache_asks_again(gate: str, http, upstream: FakeUpstream):
    """The request's own Cache-Control is obeyed."""
    statuses = [
        (await ask(http, gate, ASKED, **{"Cache-Control": wish}))[0] for wish in ("no-store", "max-age=0, NO-CACHE", "")
    ]

    assert statuses[:2] == ["headgate; fwd=bypass; detail=no-store", "headgate; fwd=request"]
    assert (statuses[2].startswith("headgate; hit"), len(upstream.requests)) == (True, 2)


async def test_no_cache_table_no_cache_status(start_gate, http, upstream: FakeUpstream):
    """Without a cache nothing is said of one."""
    gate = await start_gate({key: table for key, table in tables_for(upstream).items() if key != "cache"})

    assert (await ask(http, gate, ASKED))[0] is None


async def test_an_empty_output_is_filled_from_the_items_that_came(gate: str, http, upstream: FakeUpstream):
    """Some servers stream items and then send `output: []`; the kept object has the items."""
    last = CANONICAL.split(b"\n\n")[-3]
    data = orjson.loads(last.split(b"data: ")[1])
    output = data["response"]["output"]
    data["response"]["output"] = []
    upstream.answer = streaming(CANONICAL.replace(last, b"event: response.completed\ndata: " + orjson.dumps(data)))
    await ask(http, gate, ASKED | {"stream": True})
    _, body = await ask(http, gate, ASKED)

    assert orjson.loads(body)["output"] == output


def call(body: dict[str, Any], team: str = "t") -> Call:
    return Call(Caller("c", team), body, {})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
BODIES = st.dictionaries(st.text(max_size=3), JSON, max_size=4).map(lambda body: ASKED | body)


@given(BODIES, st.randoms())
def test_the_key_does_not_depend_on_the_order_of_names(body: dict[str, Any], random):
    """The same object written in another order is the same question."""
    names = list(body)
    random.shuffle(names)

    assert key_of(call(body), "b") == key_of(call({name: body[name] for name in names}), "b")


@given(BODIES, BODIES, st.text(max_size=3), st.text(max_size=3))
def test_two_questions_never_share_a_key(one: dict[str, Any], other: dict[str, Any], team: str, rival: str):
    """Keys are equal only when the team and the whole body are."""
    same = (team, orjson.dumps(one, option=orjson.OPT_SORT_KEYS)) == (
        rival,
        orjson.dumps(other, option=orjson.OPT_SORT_KEYS),
    )

    assert (key_of(call(one, team), "b") == key_of(call(other, rival), "b")) == same


def test_delimiters_in_parts_of_the_key_move_nothing():
    """Each part has its length before it."""
    keys = {
        key_of(call(ASKED | {"prompt_cache_key": key}, team), backend)
        for team, key, backend in [
            ("ab", "c", "d"),
            ("a", "bc", "d"),
            ("a", "b", "cd"),
            ("a:b", "c", "d"),
            ("", "abcd", ""),
        ]
    }

    assert len(keys) == 5


@pytest.mark.parametrize("field", ["stream", "stream_options", "metadata", "safety_identifier", "user", "store"])
def test_fields_that_cannot_change_the_answer_are_not_in_the_key(field: str):
    """Who asks and how it is delivered does not make another question."""
    assert key_of(call(ASKED), "b") == key_of(call(ASKED | {field: "anything"}), "b")
