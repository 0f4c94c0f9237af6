"""The model lists of targets while some targets fail."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from pydantic import PrivateAttr

from backends.replay import Replay
from proxy.routing import routes as routing
from proxy.routing.routes import Route, Routes
from proxy.wire.errors import BackendError


class Catalogue(Replay):
    """A backend whose list of models a test sets; an exception in its place is raised."""

    path: Path = Path("recorded.sse")

    _listed: list[str] | Exception = PrivateAttr(default=[])
    _is_silent: bool = PrivateAttr(default=False)

    def list(self, listed: Sequence[str] | Exception) -> None:
        self._listed = listed if isinstance(listed, Exception) else [*listed]

    def be_silent(self) -> None:
        self._is_silent = True

    async def models(self) -> Sequence[str]:
        if self._is_silent:
            await asyncio.Event().wait()
        if isinstance(self._listed, Exception):
            raise self._listed
        return self._listed


@pytest.fixture
def first() -> Catalogue:
    backend = Catalogue(name="first")
    backend.list(["gpt-5.6"])
    return backend


@pytest.fixture
def second() -> Catalogue:
    backend = Catalogue(name="second")
    backend.list(["o4"])
    return backend


@pytest.fixture
def routes(first: Catalogue, second: Catalogue, monkeypatch: pytest.MonkeyPatch) -> Routes:
    """Routes that request the lists of their targets each time."""
    monkeypatch.setattr(routing, "LIST_TTL_S", 0)
    monkeypatch.setattr(routing, "LIST_TIMEOUT_S", 0.05)
    return Routes([Route("first", "gpt-*", (first,)), Route("second", "*", (second,))])


async def test_a_target_that_fails_keeps_its_last_list(routes: Routes, first: Catalogue, second: Catalogue):
    """The lists of the others are renewed."""
    before = list(await routes.models())
    first.list(BackendError("It is down."))
    second.list(["o5"])

    assert before == ["gpt-5.6", "o4"]
    assert list(await routes.models()) == ["gpt-5.6", "o5"]


async def test_a_target_that_does_not_answer_keeps_its_last_list(routes: Routes, first: Catalogue):
    """The wait ends after the timeout for lists."""
    await routes.models()
    first.be_silent()

    assert list(await routes.models()) == ["gpt-5.6", "o4"]


async def test_a_target_that_never_had_a_list_is_omitted(routes: Routes, first: Catalogue):
    first.list(BackendError("It is down."))

    assert list(await routes.models()) == ["o4"]


async def test_a_target_that_recovers_gets_a_new_list(routes: Routes, first: Catalogue):
    await routes.models()
    first.list(BackendError("It is down."))
    await routes.models()
    first.list(["gpt-6"])

    assert list(await routes.models()) == ["gpt-6", "o4"]
