"""Which part answers a request for something that exists: a backend, or the gateway itself."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pydantic import Field, PrivateAttr

from backends import Backend
from policies import PolicyState
from proxy.cache.cache import Cache
from proxy.context import Caller, Context
from proxy.routing.routes import Route, Routes
from proxy.rules import Rules
from proxy.state.ownership import Ownership
from proxy.state.resources import Resources
from proxy.stores.memory import MemoryStore
from proxy.wire.errors import RequestError
from proxy.wire.event import Reply, response_reply
from proxy.wire.resource import ResourceRequest
from tests.examples import make_context
from tests.pipelines import ScriptedBackend

BEN = Caller("ben", "ads")


class KeepingBackend(ScriptedBackend):
    """A backend that keeps state, and answers every request for it with an object."""

    keeps_state: bool = True
    reply: dict[str, Any] = Field(default={"id": "conv_1", "data": []})

    _requests: list[ResourceRequest] = PrivateAttr(default_factory=list)

    @asynccontextmanager
    async def forward(self, request: ResourceRequest, _context: Context) -> AsyncIterator[Reply]:
        self._requests.append(request)
        yield response_reply(self.reply, {})


class Keeper:
    """A part of the gateway that keeps one conversation at a time."""

    def __init__(self) -> None:
        self.requests: list[ResourceRequest] = []

    async def answer(self, request: ResourceRequest, context: Context) -> Reply:
        del context
        self.requests.append(request)
        return response_reply({"id": request.id or "conv_1"}, {})


def make_resources(*backends: Backend, local: Keeper | None = None, default: int | None = None) -> Resources:
    """Return the service for these backends, one route each; `default` is the position of the default route."""
    store = MemoryStore()
    ownership = Ownership(store)
    routes = Routes([
        Route(backend.name, backend.name, (backend,), is_default=position == default)
        for position, backend in enumerate(backends)
    ])  # fmt: skip
    named = {backend.name: backend for backend in backends}
    return Resources(
        Rules((), PolicyState(store, ownership)), ownership, routes, named, local or Keeper(), Cache(None, None).forget
    )


async def ask(resources: Resources, method: str, conversation: str | None = None, **options: Any) -> Any:
    """Return the object of a reply."""
    request = ResourceRequest(method, "conversations", conversation, body={} if method == "POST" else None)
    async with resources.reply_to(request, make_context(**options)) as reply:
        return reply.response


async def test_what_the_gateway_keeps_is_answered_by_itself():
    """It belongs to the team that created it, until it is deleted; no backend is asked."""
    keeper, backend = Keeper(), KeepingBackend(name="b")
    resources = make_resources(ScriptedBackend(name="a"), backend, local=keeper, default=0)

    assert await ask(resources, "POST") == {"id": "conv_1"}
    assert await ask(resources, "GET", "conv_1") == {"id": "conv_1"}
    with pytest.raises(RequestError):
        await ask(resources, "GET", "conv_1", caller=BEN)
    assert await ask(resources, "DELETE", "conv_1") == {"id": "conv_1"}
    assert [request.method for request in keeper.requests] == ["POST", "GET", "DELETE"]
    assert backend._requests == []
    assert (
        await resources.ownership.check_resource(ResourceRequest("GET", "conversations", "conv_1"), make_context())
        is None
    )


async def test_what_was_received_from_a_backend_without_state_is_kept_by_the_gateway():
    """Its owner names the backend."""
    keeper = Keeper()
    resources = make_resources(ScriptedBackend(name="a"), KeepingBackend(name="b"), local=keeper)
    await resources.ownership.bind_id("conversation", "conv_2", "a", make_context())

    assert await ask(resources, "GET", "conv_2") == {"id": "conv_2"}


@pytest.mark.parametrize(("default", "asked"), [(None, "b"), (1, "b"), (2, "c"), (0, None)])
async def test_a_conversation_is_created_where_calls_without_a_model_go(default: int | None, asked: str | None):
    """Without a default route, at the first backend that keeps state; otherwise by the gateway."""
    keeper, backends = Keeper(), [ScriptedBackend(name="a"), KeepingBackend(name="b"), KeepingBackend(name="c")]
    resources = make_resources(*backends, local=keeper, default=default)
    await ask(resources, "POST")

    assert [backend.name for backend in backends[1:] if backend._requests] == ([asked] if asked else [])
    assert len(keeper.requests) == (asked is None)


async def test_a_reply_without_an_id_binds_nothing():
    """An upstream that is no server of the protocol."""
    resources = make_resources(KeepingBackend(name="b", reply={"id": 7}))

    assert await ask(resources, "POST") == {"id": 7}


async def test_a_new_conversation_is_created_where_the_things_are_that_its_items_name():
    """Another backend could not resolve them."""
    first, second = KeepingBackend(name="first"), KeepingBackend(name="second")
    resources = make_resources(first, second)
    await resources.ownership.bind_id("file", "file_1", "second", make_context())
    item = {"role": "user", "content": [{"type": "input_file", "file_id": "file_1"}]}
    async with resources.reply_to(ResourceRequest("POST", "conversations", body={"items": [item]}), make_context()):
        pass

    assert (len(first._requests), len(second._requests)) == (0, 1)
