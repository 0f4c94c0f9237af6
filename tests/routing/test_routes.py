"""The route of a model, and the list of models."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from pydantic import PrivateAttr

from backends import Backend
from backends.replay import Replay
from proxy.routing import routes as routes_module
from proxy.routing.routes import Route, Routes
from proxy.wire.call import Call
from proxy.wire.errors import BackendError, UnknownModel
from tests.examples import make_call


class ListingBackend(Replay):
    """A backend that lists these models and counts the requests for the list."""

    path: Path = Path("recorded.sse")

    offers: tuple[str, ...] = ()
    is_down: bool = False
    hangs: bool = False

    _lists: int = PrivateAttr(default=0)

    async def models(self) -> Sequence[str]:
        self._lists += 1
        if self.is_down:
            raise BackendError("The upstream cannot be reached.")
        if self.hangs:
            await asyncio.Event().wait()
        return self.offers


LOCAL, CLOUD = ListingBackend(name="local"), ListingBackend(name="cloud", offers=("gpt-5.6", "gpt-5.6-mini"))


def make_routes(*pairs: tuple[str, Backend]) -> Routes:
    """Return one route per model to one target; a route has the name of its target."""
    return Routes([Route(target.name, model, (target,)) for model, target in pairs])


def route_of(model: str, *pairs: tuple[str, Backend]) -> str:
    return make_routes(*pairs).match(make_call(model=model)).name


def names(listed: Mapping[str, Route]) -> dict[str, str]:
    return {model: route.name for model, route in listed.items()}


@pytest.mark.parametrize(
    ("model", "route"),
    [
        ("headgate-demo", "local"),
        ("gpt-5.6", "cloud"),
        ("headgate-demo-2", "cloud"),
        ("HEADGATE-DEMO", "cloud"),
        ("a\nb", "cloud"),
    ],
)
def test_the_first_matching_route_is_used(model: str, route: str):
    """Whole names are compared, and case matters."""
    assert route_of(model, ("headgate-demo", LOCAL), ("*", CLOUD), ("gpt-5.6", LOCAL)) == route


@pytest.mark.parametrize(
    ("glob", "matching", "others"),
    [
        ("gpt-*", ["gpt-", "gpt-5.6"], ["gpt", "my-gpt-5", "GPT-5"]),
        ("gpt-?", ["gpt-5"], ["gpt-", "gpt-55"]),
        ("*/large", ["acme/large", "a/b/large", "/large"], ["large", "acme/large-2"]),
        ("a.b", ["a.b"], ["axb"]),
        ("m", ["m"], ["m ", "m\n", "\nm", "M"]),
    ],
)
def test_only_stars_and_question_marks_are_wildcards(glob: str, matching: list[str], others: list[str]):
    """Every other character matches itself."""
    assert [route_of(model, (glob, LOCAL), ("*", CLOUD)) for model in matching] == ["local"] * len(matching)
    assert [route_of(model, (glob, LOCAL), ("*", CLOUD)) for model in others] == ["cloud"] * len(others)


def test_a_model_without_a_route_is_unknown():
    """The error has the status and the code of OpenAI."""
    with pytest.raises(UnknownModel) as caught:
        route_of("gpt-5.6", ("headgate-demo", LOCAL))

    assert (caught.value.status, caught.value.code) == (404, "model_not_found")


def test_a_route_keeps_state_only_if_all_its_targets_do():
    """A call with an id may reach any of them."""
    keeping = ListingBackend(name="keeping", keeps_state=True)

    assert Route("r", "*", (keeping,)).keeps_state is True
    assert Route("r", "*", (keeping, LOCAL)).keeps_state is False


async def test_models_with_an_exact_route_are_listed():
    """Patterns are not listed, because no call can name them."""
    routes = make_routes(("headgate-demo", LOCAL), ("gpt-*", LOCAL), ("m?", LOCAL), ("other", CLOUD))

    assert names(await routes.models()) == {"headgate-demo": "local", "other": "cloud"}


async def test_a_pattern_lists_the_matching_models_of_its_target():
    """Models of the target that no route matches are not listed."""
    offering = ListingBackend(name="cloud", offers=("gpt-5.6", "o4", "gpt-x"))
    listed = await make_routes(("gpt-x", LOCAL), ("gpt-*", offering)).models()

    assert names(listed) == {"gpt-x": "local", "gpt-5.6": "cloud"}


async def test_a_model_is_listed_with_the_route_that_its_calls_use():
    """A route after one that matches every model is never used."""
    listed = await make_routes(("*", CLOUD), ("headgate-demo", LOCAL)).models()

    assert names(listed) == {"headgate-demo": "cloud", "gpt-5.6": "cloud", "gpt-5.6-mini": "cloud"}


async def test_an_unreachable_target_hides_only_its_own_models(monkeypatch: pytest.MonkeyPatch):
    """This includes a target that does not answer in time."""
    monkeypatch.setattr(routes_module, "LIST_TIMEOUT_S", 0.01)
    for down in (ListingBackend(name="down", is_down=True), ListingBackend(name="down", hangs=True)):
        listed = await make_routes(("headgate-demo", LOCAL), ("a-*", down), ("*", CLOUD)).models()

        assert list(listed) == ["headgate-demo", "gpt-5.6", "gpt-5.6-mini"]


async def test_an_unreachable_target_keeps_its_last_list(monkeypatch: pytest.MonkeyPatch):
    """A short outage does not remove models from the list."""
    monkeypatch.setattr(routes_module, "LIST_TTL_S", 0)
    cloud = ListingBackend(name="cloud", offers=("gpt-5.6",))
    routes = make_routes(("*", cloud))
    first = await routes.models()
    cloud.__dict__["is_down"] = True

    assert names(await routes.models()) == names(first) == {"gpt-5.6": "cloud"}
    assert cloud._lists == 2


async def test_lists_of_targets_are_cached_and_shared():
    """Agents list models at every start; calls share the list, and a target of two routes receives one request."""
    cloud = ListingBackend(name="cloud", offers=("gpt-5.6",))
    routes = make_routes(("gpt-*", cloud), ("o*", cloud))
    first, second = await asyncio.gather(routes.models(), routes.models())

    assert await routes.models() is first is second
    assert cloud._lists == 1


async def test_without_routes_no_models_are_listed():
    """The result is an empty list."""
    assert await Routes([]).models() == {}


class PromptBackend(ListingBackend):
    """A backend that also answers calls without a model."""

    needs_model = False


def default_routes(model: str, target: Backend) -> Routes:
    """Return routes of which the second is the default."""
    return Routes([Route("local", "headgate-demo", (LOCAL,)), Route("default", model, (target,), is_default=True)])


@pytest.mark.parametrize("body", [{}, {"model": None}])
def test_a_call_without_a_model_has_the_default_route(body: dict[str, None]):
    """Without one its model is unknown."""
    call = Call(body)

    assert default_routes("*", LOCAL).match(call).name == "default"
    with pytest.raises(UnknownModel):
        make_routes(("*-never", LOCAL)).match(call)


@pytest.mark.parametrize(
    ("model", "target", "body", "sent"),
    [
        ("m", LOCAL, {}, "m"),
        ("m", LOCAL, {"model": None, "prompt": None}, "m"),
        ("m", LOCAL, {"prompt": {"id": "p"}}, "m"),
        ("m", PromptBackend(name="p"), {"prompt": {"id": "p"}}, ""),
        ("m", PromptBackend(name="p"), {}, "m"),
        ("m*", PromptBackend(name="p"), {}, ""),
        ("m", LOCAL, {"model": "other"}, "other"),
    ],
)
def test_the_default_route_gives_a_call_its_model(model: str, target: Backend, body: dict, sent: str):
    """Unless it has wildcards, or the backend finds the model in a prompt."""
    assert default_routes(model, target).with_model(Call(body)).model == sent


def test_without_a_default_route_no_call_gets_a_model():
    call = Call({})

    assert make_routes(("m", LOCAL)).with_model(call) is call


def test_targets_that_keep_state_are_listed_once_the_default_first():
    """They are asked for ids without a known owner."""
    one, two = (ListingBackend(name=name, keeps_state=True) for name in ("one", "two"))
    routes = Routes([
        Route("a", "a", (one,)), Route("b", "b", (LOCAL,)), Route("c", "c", (one,)),
        Route("d", "d", (two,), is_default=True),
    ])  # fmt: skip

    assert [target.name for target in routes.stateful] == ["two", "one"]
