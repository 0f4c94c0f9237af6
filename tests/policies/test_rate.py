"""How many calls and tokens may be used in a minute, and calls in a second."""

import asyncio
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from pydantic import ValidationError

from policies import PolicyState
from policies.rate import Rate
from proxy.context import Caller
from proxy.wire.errors import LimitExceeded
from tests.examples import JSON, NO_DEADLINE, make_call
from tests.policies.limited import ANNA, BEN, CAROL, CountingStore, Limited, UnreachableStore, end, timed_store, usage

SLASHES = Caller("b/c", "a"), Caller("c", "a/b"), Caller("c", "a%2Fb")
KEY = replace(ANNA, key_id="key_1", fingerprint="2c")


async def test_calls_beyond_the_limit_are_refused_until_the_minute_ends():
    """The refusal says how long that is; the minute began with the first call."""
    now = [0.0]
    limited = Limited(Rate(requests=2), PolicyState(timed_store(now)))
    for now[0] in (0.0, 40.0):
        await limited.ask()
    now[0] = 45.5
    refused = await limited.refusal()
    now[0] = 60.5
    await limited.ask()

    assert (refused.status, refused.reason, refused.retry) == (429, "requests", True)
    assert refused.message == "The limit of 2 requests per minute is reached. Try again in 14 s."
    assert refused.headers == {
        "Retry-After": "15",
        "RateLimit-Policy": '"policy.requests";q=2;w=60', "RateLimit": '"policy.requests";r=0;t=14',
        "x-ratelimit-limit-requests": "2", "x-ratelimit-reset-requests": "14.500s",
        "x-ratelimit-remaining-requests": "0",
    }  # fmt: skip


async def test_a_burst_is_limited_by_the_second():
    """A call that one limit refuses counts for none."""
    now = [0.0]
    limited = Limited(Rate(requests=3, burst=2), PolicyState(timed_store(now)))
    for _ in range(2):
        await limited.ask()
    reasons = [(await limited.refusal()).reason for _ in range(3)]
    now[0] = 1.5
    await limited.ask()

    assert reasons == ["burst"] * 3
    assert (await limited.refusal()).reason == "requests"


@pytest.mark.parametrize(
    ("per", "first", "shares", "other"),
    [
        ("team", (ANNA, {}), (BEN, {}), (CAROL, {})),
        ("caller", (ANNA, {}), (ANNA, {"model": "n"}), (BEN, {})),
        ("key", (KEY, {}), (replace(KEY, models=("*",)), {"model": "n"}), (replace(KEY, fingerprint="9f"), {})),
        ("key", (ANNA, {}), (ANNA, {}), (BEN, {})),
        ("model", (ANNA, {"model": "a"}), (CAROL, {"model": "a"}), (ANNA, {"model": "b"})),
        ("end_user", (ANNA, {"safety_identifier": "u"}), (BEN, {"user": "u"}), (CAROL, {"user": "u"})),
        ("metadata.project", (ANNA, {"metadata": {"project": "x"}}), (BEN, {"metadata": {"project": "x"}}), (ANNA, {})),
        ("metadata.project", (ANNA, {"metadata": 7}), (BEN, {"metadata": {"project": 7}}), (ANNA, {"metadata": {"project": "x"}})),
        ("metadata.project", (ANNA, {"metadata": {"project": "x"}}), (BEN, {"metadata": {"project": "x"}}), (CAROL, {"metadata": {"project": "x"}})),
        ("metadata.project", (SLASHES[0], {"metadata": {"project": "b/c"}}), (SLASHES[0], {"metadata": {"project": "b/c"}}), (SLASHES[1], {"metadata": {"project": "c"}})),
        ("end_user", (SLASHES[0], {"user": "b/c"}), (SLASHES[0], {"user": "b/c"}), (SLASHES[1], {"user": "c"})),
        ("end_user", (SLASHES[1], {"user": "c"}), (SLASHES[1], {"user": "c"}), (SLASHES[2], {"user": "c"})),
        ("caller", (SLASHES[0], {}), (SLASHES[0], {"model": "n"}), (SLASHES[1], {})),
        ("key", (SLASHES[0], {}), (SLASHES[0], {"model": "n"}), (SLASHES[1], {})),
    ],
)  # fmt: skip
async def test_those_who_share_a_limit(per: str, first: Any, shares: Any, other: Any):
    """Names of end users and values of metadata belong to their team, whose calls without a value share a limit."""
    limited = Limited(Rate(requests=1, per=per))
    await limited.ask(first[0], **first[1])

    assert (await limited.refusal(shares[0], **shares[1])).reason == "requests"
    await limited.ask(other[0], **other[1])


async def test_all_calls_can_share_a_limit():
    """With per = "all"."""
    limited = Limited(Rate(requests=1, per="all"))
    await limited.ask(ANNA)

    assert (await limited.refusal(CAROL, model="other")).reason == "requests"


async def test_tokens_are_reserved_and_then_corrected():
    """Of a model that has not answered yet 1,024 are expected; a call that used more exceeds the limit afterwards."""
    limited = Limited(Rate(tokens=2_000))
    first = await limited.ask()
    assert (await limited.refusal()).reason == "tokens"
    await end(first, usage(10, 90))
    second = await limited.ask()
    await end(second, usage(1_000, 2_000))
    refused = await limited.refusal(max_output_tokens=1)

    assert first.answer_headers["x-ratelimit-remaining-tokens"] == str(2_000 - 1_024 - 3)  # and 13 bytes of the call
    assert refused.headers["x-ratelimit-remaining-tokens"] == "0"


async def test_a_call_that_was_never_sent_uses_no_tokens():
    """Nor does one that only counts tokens."""
    limited = Limited(Rate(tokens=1_500))
    await end(await limited.ask(), is_sent=False)
    first = await limited.ask()
    await end(first, {"input_tokens": "many", "output_tokens": -1})  # no report: what was reserved stays

    assert (await limited.refusal()).reason == "tokens"


async def test_what_a_model_usually_generates_is_reserved():
    """Twice the moving average of what it did: agents with large limits are not refused for them."""
    limited = Limited(Rate(tokens=10_000))
    for _ in range(8):
        await end(await limited.ask(max_output_tokens=100_000), usage(3, 20))
    context = await limited.ask(max_output_tokens=100_000)
    await limited.ask(model="new")

    assert int(context.answer_headers["x-ratelimit-remaining-tokens"]) > 10_000 - 8 * 23 - 100


async def test_one_call_above_the_limit_is_not_refused_for_ever():
    """It gets the whole limit, if nothing of it is used."""
    limited = Limited(Rate(tokens=10))
    await limited.ask(input="x" * 1_000)

    assert (await limited.refusal()).reason == "tokens"


async def test_a_limit_is_never_exceeded_by_parallel_calls():
    """Of 50 at once just 20 pass."""
    limited = Limited(Rate(requests=20))
    found = await asyncio.gather(*(limited.ask() for _ in range(50)), return_exceptions=True)

    assert sum(isinstance(each, LimitExceeded) for each in found) == 30


async def test_without_the_store_a_process_grants_a_share_by_itself(logged):
    """It is logged once, and so is its end; the whole limit counts again when the store can be reached."""
    store = UnreachableStore()
    limited = Limited(Rate(requests=4), PolicyState(store))
    for _ in range(2):
        await limited.ask()
    refused = await limited.refusal()
    store.mend()
    for _ in range(4):
        await limited.ask()

    assert refused.reason == "requests"
    assert [(line["event"], line.get("failures")) for line in logged] == [("rate.local", None), ("rate.resumed", 3)]


async def test_the_scarcest_of_several_limits_is_in_the_headers():
    """`RateLimit` lists all of them, each under a name of its own."""
    context = await Limited(Rate(requests=100, burst=5), PolicyState(name="rate:team")).ask()
    for name, most in (("rate:caller", 10), ("rate:all", 1_000)):
        limited = Limited(Rate(requests=most), PolicyState(name=name))
        await limited._check(make_call(), context)  # type: ignore[misc]  # the same call under another policy
    named = [re.findall(r'"(.*?)";', context.answer_headers[field]) for field in ("RateLimit", "RateLimit-Policy")]

    assert context.answer_headers["x-ratelimit-remaining-requests"] == "9"
    assert named == [["rate:team.burst", "rate:team.requests", "rate:caller.requests", "rate:all.requests"]] * 2


@pytest.mark.parametrize("settings", [{}, {"requests": 0}, {"tokens": -1}, {"tokens": 10**15}, {"requests": 1, "per": "key "}, {"requests": 1, "per": "metadata."}, {"requests": 1, "local_share": 0}])  # fmt: skip
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]):
    """One limit at least, above 0, for a group that is known."""
    with pytest.raises(ValidationError):
        Rate(**settings)


@NO_DEADLINE
@given(JSON, JSON, JSON)
async def test_no_value_of_a_call_is_an_error(metadata: Any, user: Any, tokens: Any):
    """The body is untrusted."""
    for per in ("end_user", "metadata.project", "model"):
        await Limited(Rate(tokens=10**9, per=per)).ask(metadata=metadata, user=user, max_output_tokens=tokens)


async def test_far_from_the_limits_calls_do_not_wait_for_the_store():
    """Few commands serve many calls; the headers count down call by call."""
    store = CountingStore()
    state = PolicyState(store)
    limited = Limited(Rate(requests=10**6, tokens=10**9, burst=10**6), state)
    contexts = []
    for _ in range(100):
        contexts.append(await limited.ask())
        await end(contexts[-1], usage(10, 20))
    headers = [context.answer_headers for context in contexts]
    await state.close()

    assert store.commands < 60
    assert [int(each["x-ratelimit-remaining-requests"]) for each in headers] == [*range(10**6 - 1, 10**6 - 101, -1)]
    assert (
        headers[-1]["RateLimit-Policy"]
        == '"policy.burst";q=1000000;w=1, "policy.requests";q=1000000;w=60, "policy.tokens";q=1000000000;qu="tokens";w=60'
    )
    assert headers[-1]["RateLimit"].startswith('"policy.burst";r=')
    assert {*headers[0]} == {*headers[-1]}


async def test_a_call_that_is_cancelled_while_it_waits_counts_for_nothing():
    """What it had of other limits is given back, too."""
    store = CountingStore()
    state = PolicyState(store)
    limited = Limited(Rate(requests=1, burst=1), state)
    store.gate.clear()
    waiting = asyncio.create_task(limited.ask())
    while store.commands < 2:
        await asyncio.sleep(0)
        if store.commands == 1:
            store.gate.set()
            await asyncio.sleep(0)
            store.gate.clear()
    waiting.cancel()
    store.gate.set()
    await asyncio.wait([waiting])
    await limited.ask()

    assert waiting.cancelled()


async def test_tokens_are_corrected_while_the_store_is_away(logged):
    """In the share that the process grants by itself."""
    limited = Limited(Rate(tokens=4_000), PolicyState(UnreachableStore()))
    for _ in range(10):
        await end(await limited.ask(), usage(10, 20))

    assert [line["event"] for line in logged] == ["rate.local"]
