"""Who can lift a refusal, as callers read it."""

import asyncio

import pytest
from pydantic import ValidationError

from proxy.config.process_tables import ServerTable
from proxy.wire.errors import BackendRefusal, RequestError, Unavailable
from proxy.wire.lifting import add_contact
from tests.conftest import tables_for
from tests.raw import ask, post, until
from tests.sockets import calling

ISSUED = "An admin of your team or the operator of this gateway can issue a key. Contact: #llm-gateway"
LIFTED = "The operator of this gateway can lift this. Contact: #llm-gateway"


async def test_refusals_say_it_on_each_transport(start_gateway, upstream, monkeypatch):
    """A policy's, by HTTP and WebSocket; one of the key; one of the body's size."""
    monkeypatch.setenv("ADA", "sk-ada")
    tables = tables_for(upstream, policy=[{"use": "size", "max_items": 1}], caller=[{"name": "ada", "key": "env:ADA"}])
    tables["server"] = {"port": 0, "contact": "#llm-gateway", "max_body_bytes": 1000}
    gateway = await start_gateway(tables)
    body = b'{"model":"m","input":[{"role":"user","content":"a"},{"role":"user","content":"b"}]}'
    by_http = await ask(gateway, post(body, api_key="sk-ada"))
    async with calling(gateway, Authorization="Bearer sk-ada") as caller:
        by_websocket = await caller.ask(input=[{"role": "user", "content": "a"}] * 2)
    wrong_key = await ask(gateway, post(body, api_key="sk-other"))
    without_key = await ask(gateway, post(body))
    too_large = await ask(gateway, post(b" " * 1001, api_key="sk-ada"))

    assert by_http.error["message"].endswith(LIFTED)
    assert by_websocket["error"]["message"] == by_http.error["message"]
    assert wrong_key.error["message"] == f"Incorrect API key provided. {ISSUED}"
    assert without_key.error["message"].endswith(f"(i.e. Authorization: Bearer YOUR_KEY). {ISSUED}")
    assert (too_large.status, too_large.error["message"].endswith(LIFTED)) == (413, True)


async def test_a_refusal_in_a_stream_says_it(start_gateway, upstream):
    """One that comes when the head has been sent: the backend has too many calls."""
    release = asyncio.Event()

    async def hold(request):
        await release.wait()
        return await upstream_answer(request)

    upstream_answer, upstream.answer = upstream.answer, hold
    tables = tables_for(upstream)
    tables["server"] = {"port": 0, "keep_alive_s": 0.05}
    tables["backend"][0] |= {"max_concurrent": 1, "max_wait_s": 0.3}
    gateway = await start_gateway(tables)
    first = asyncio.create_task(ask(gateway, post(b'{"model":"m"}')))
    await until(lambda: len(upstream.requests) == 1)
    late = await ask(gateway, post(b'{"model":"m","stream":true}'))
    release.set()
    await first

    assert late.status == 200
    assert b"The operator of this gateway can lift this." in late.body


def test_words_of_others_stay():
    """An upstream's refusal may be another gateway's; what the client can lift itself has no owner."""
    foreign = BackendRefusal("No budget.", status=429, code="budget.exhausted")
    own = RequestError("The body is not valid JSON.", code="invalid_json")
    add_contact(foreign, "#llm-gateway")
    add_contact(own, "#llm-gateway")

    assert (foreign.message, own.message) == ("No budget.", "The body is not valid JSON.")


def test_an_outage_is_not_lifted():
    """It ends by itself, or when the operator has restored what is away."""
    outage = Unavailable("The store is away.", code="state_unavailable")
    add_contact(outage)
    add_contact(outage, "#llm-gateway")
    sentence = "Try again later, or ask the operator of this gateway."

    assert outage.message == f"The store is away. {sentence} Contact: #llm-gateway"


def test_a_contact_is_one_line():
    """It ends each message."""
    with pytest.raises(ValidationError, match="line breaks"):
        ServerTable(contact="a\nb")
