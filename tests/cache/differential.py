"""Pairs of random calls of two teams against a model of the cache: `python -m tests.cache.differential --pairs 100000`.

The model knows nothing of the code under test: it compares what two requests ask for, as JSON, without the fields and
headers that say who asks or how the answer is delivered. Each answer contains what was asked for and by which team, so
that a hit on any other entry is seen.
"""

import argparse
import asyncio
import hashlib
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from pydantic import SecretStr

from backends import Backend
from proxy.cache.cache import Cache
from proxy.config.schema import CacheTable
from proxy.context import Caller, Context
from proxy.stores.memory import MemoryStore
from proxy.wire.call import Call, parse_call
from proxy.wire.event import Reply, response_reply
from tests.examples import make_context
from tests.pipelines import answer_of, make_pipeline
from tests.wire.streams import events_in

CALLERS = (Caller("ann", "search"), Caller("ben", "search"), Caller("carol", "sales"))
NOT_ASKED_FOR = ("metadata", "user", "safety_identifier", "stream", "stream_options")
DEFAULTS = {"store": True, "background": False}
SECRET = SecretStr("a secret of at least 32 characters: differential")
TEXTS = ("", "a", "b", "ab", "1", "true", "null", "é", "e\u0301", '"', "\\", "\n", "a\x1fb", "k", "input", "search")
SCALARS = (None, True, False, 0, 1, -1, 1.0, 1.5, 1e300, 2**53, *TEXTS)
NAMES = (*TEXTS, "temperature", "seed", "instructions", "text", "tools", "top_p", "store", "unknown", *NOT_ASKED_FOR)


QUERIES = ("", "x=1", "x=1&y=2", "y=2&x=1", "x=1&x=2", "x=2&x=1", "x=1%26y=2", "beta=true", "beta=", "include[]=x")
HEADERS: tuple[dict[str, str], ...] = (
    {}, {"openai-beta": "a"}, {"openai-beta": "b"}, {"openai-beta": "a,b"}, {"openai-beta": ""},
    {"user-agent": "a"}, {"session_id": "a", "openai-beta": "a"}, {"x-client-request-id": "a"}, {"x-unseen": "a"},
)  # fmt: skip
COUNTED_HEADER = "openai-beta"


class Request(NamedTuple):
    """One request of a caller."""

    body: dict[str, Any]
    query: str = ""
    headers: Mapping[str, str] = {}


def asked(team: str, request: Request) -> str:
    """Return what a team asks for, as a text: equal for two calls that may share an entry."""
    counts = {
        name: value
        for name, value in request.body.items()
        if name not in NOT_ASKED_FOR and not (name in DEFAULTS and (value is None or value is DEFAULTS[name]))
    }
    pairs = sorted((pair for pair in request.query.split("&") if pair), key=lambda pair: pair.partition("=")[0])
    return json.dumps([team, counts, pairs, request.headers.get(COUNTED_HEADER)], sort_keys=True)


class Echo(Backend):
    """Answers with what was asked for."""

    name: str = "echo"
    keeps_state: bool = True  # so that it gets `store` as it was sent

    @asynccontextmanager
    async def respond(self, call: Call, context: Context) -> AsyncIterator[Reply]:
        text = asked(context.caller.team, Request({**call.body}, call.query, call.headers))
        number = hashlib.sha256(text.encode()).hexdigest()[:24]
        content = [{"type": "output_text", "text": text, "annotations": []}]
        item = {
            "type": "message",
            "id": f"msg_{number}",
            "role": "assistant",
            "status": "completed",
            "content": content,
        }
        yield response_reply(
            {"id": f"resp_{number}", "object": "response", "status": "completed", "output": [item]}, {}
        )


def random_value(dice: random.Random, depth: int = 0) -> Any:
    kind = dice.random()
    if depth < 3 and kind < 0.2:
        return [random_value(dice, depth + 1) for _ in range(dice.randrange(3))]
    if depth < 3 and kind < 0.4:
        return {dice.choice(TEXTS): random_value(dice, depth + 1) for _ in range(dice.randrange(3))}
    return dice.choice(SCALARS)


def random_body(dice: random.Random) -> dict[str, Any]:
    """Return the body of a call that may be cached."""
    body: dict[str, Any] = {"model": "m", "prompt_cache_key": "k", "input": str(dice.getrandbits(40))}
    for _ in range(dice.randrange(6)):
        set_field(dice, body)
    return body


def set_field(dice: random.Random, body: dict[str, Any]) -> None:
    """Set a field to a random value that a call can have."""
    name = dice.choice(NAMES)
    values = {"stream": (True, False), "store": (None, True, False), "tools": ([], [{"type": "function"}])}
    body[name] = dice.choice(values[name]) if name in values else random_value(dice)


def changed(dice: random.Random, request: Request) -> Request:
    """Return a request that differs from another one in nothing, in the order of its names, or in a part or two."""
    names = list(request.body)
    dice.shuffle(names)
    other = {name: request.body[name] for name in names}
    for _ in range(dice.choice((0, 0, 1, 1, 2))):
        if dice.random() < 0.3 and (optional := [name for name in other if name not in ("model", "prompt_cache_key")]):
            del other[dice.choice(optional)]
        else:
            set_field(dice, other)
    query = dice.choice(QUERIES) if dice.random() < 0.2 else request.query
    return Request(other, query, dice.choice(HEADERS) if dice.random() < 0.2 else request.headers)


async def compare(pairs: int, seed: int, *, is_sealed: bool, local_ttl_s: float = 1.0) -> Counter[str]:
    """Make pairs of calls, and return how often each outcome was the one of the model.

    Raises AssertionError, with both requests, for an answer of another call, and for a hit or a miss that is none.
    """
    dice, outcomes, kept = random.Random(seed), Counter[str](), set[str]()
    settings = CacheTable(use="memory", secret=SECRET if is_sealed else None, local_ttl_s=local_ttl_s)
    store = MemoryStore(store_max_entries=10**7, store_max_bytes=2**33)
    pipeline = make_pipeline(Echo(), cache=Cache(settings, store))
    for _ in range(pairs):
        first = Request(random_body(dice), dice.choice(QUERIES), dice.choice(HEADERS))
        second, callers = changed(dice, first), [dice.choice(CALLERS) for _ in range(2)]
        for request, caller in zip((first, second), callers, strict=True):
            context, wanted = make_context(caller), asked(caller.team, request)
            call = parse_call(json.dumps(request.body).encode(), headers=request.headers, query=request.query)
            got = await answer_of(pipeline, call, context)
            answer = events_in(got)[-1]["response"] if call.is_stream else json.loads(got)
            given = answer["output"][0]["content"][0]["text"]
            is_hit = context.answer_headers["Cache-Status"].startswith("headgate; hit")
            assert (given, is_hit) == (wanted, wanted in kept), (given, is_hit, caller, first, second)
            kept.add(wanted)
        outcomes["hit" if is_hit else "other team" if callers[0].team != callers[1].team else "other call"] += 1
    return outcomes


def main() -> None:
    options = argparse.ArgumentParser(prog="python -m tests.cache.differential", description="Two teams, random pairs.")
    options.add_argument("--pairs", type=int, default=100_000, help="how many pairs of calls (default 100,000)")
    options.add_argument("--seed", type=int, default=1, help="of the random numbers (default 1)")
    chosen = options.parse_args()
    half = chosen.pairs // 2
    for is_sealed, pairs in ((False, half), (True, chosen.pairs - half)):
        outcomes = asyncio.run(compare(pairs, chosen.seed, is_sealed=is_sealed))
        listed = ", ".join(f"{count:,} {name}" for name, count in sorted(outcomes.items()))
        print(f"{pairs:,} pairs, {'sealed' if is_sealed else 'not sealed'}: {listed}; no wrong hit.")  # noqa: T201


if __name__ == "__main__":
    main()
