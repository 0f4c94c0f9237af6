"""model -> Backend."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import PrivateAttr

from backends import Backend
from backends.replay import Replay
from proxy.routing.routes import Routes
from proxy.context import Caller
from proxy.wire.call import Call
from proxy.wire.errors import BackendError, UnknownModel


class Shelf(Replay):
    """A backend that offers these models and counts how often it is asked."""

    path: Path = Path("recorded.sse")

    offers: tuple[str, ...] = ()
    away: bool = False

    _asked: int = PrivateAttr(default=0)

    async def models(self) -> Sequence[str]:
        self._asked += 1
        if self.away:
            raise BackendError("It is away.")
        return self.offers


LOCAL, CLOUD = Shelf(name="local"), Shelf(name="cloud", offers=("gpt-5.6", "gpt-5.6-mini"))


def backend_for(routes: Sequence[tuple[str, Backend]], model: Any) -> str:
    return Routes(routes).backend_for(Call(Caller("c", "t"), {"model": model}, {})).name


@pytest.mark.parametrize(
    ("model", "backend"),
    [
        ("headgate-demo", "local"),
        ("gpt-5.6", "cloud"),
        ("headgate-demo-2", "cloud"),
        ("HEADGATE-DEMO", "cloud"),
        ("a\nb", "cloud"),
    ],
)
def test_the_first_route_that_matches_wins(model: str, backend: str):
    """Names are compared whole and as they are written."""
    assert backend_for([("headgate-demo", LOCAL), ("*", CLOUD), ("gpt-5.6", LOCAL)], model) == backend


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
def test_stars_and_question_marks_stand_for_any_characters(glob: str, matching: list[str], others: list[str]):
    """All else stands for itself."""
    assert [backend_for([(glob, LOCAL), ("*", CLOUD)], model) for model in matching] == ["local"] * len(matching)
    assert [backend_for([(glob, LOCAL), ("*", CLOUD)], model) for model in others] == ["cloud"] * len(others)


def test_a_model_that_nobody_serves_is_unknown():
    """With the message and the code that clients know."""
    with pytest.raises(UnknownModel) as caught:
        backend_for([("headgate-demo", LOCAL)], "gpt-5.6")

    assert (caught.value.status, caught.value.code) == (404, "model_not_found")


async def test_models_that_routes_spell_out_are_listed():
    """Globs are not: nobody can ask for a star."""
    routes = Routes([("headgate-demo", LOCAL), ("gpt-*", LOCAL), ("m?", LOCAL), ("other", CLOUD)])

    assert {model: backend.name for model, backend in (await routes.models()).items()} == {
        "headgate-demo": "local",
        "other": "cloud",
    }


async def test_of_a_glob_what_its_backend_offers_is_listed():
    """As far as a route leads there."""
    offering = Shelf(name="cloud", offers=("gpt-5.6", "o4", "gpt-x"))
    listed = await Routes([("gpt-x", LOCAL), ("gpt-*", offering)]).models()

    assert {model: backend.name for model, backend in listed.items()} == {"gpt-x": "local", "gpt-5.6": "cloud"}


async def test_a_model_is_listed_with_the_backend_that_answers():
    """A route behind one that takes everything is never reached."""
    listed = await Routes([("*", CLOUD), ("headgate-demo", LOCAL)]).models()

    assert {model: backend.name for model, backend in listed.items()} == {
        "headgate-demo": "cloud",
        "gpt-5.6": "cloud",
        "gpt-5.6-mini": "cloud",
    }


async def test_a_backend_that_is_away_hides_only_its_own_models():
    """The others are listed all the same."""
    away = Shelf(name="away", away=True)
    listed = await Routes([("headgate-demo", LOCAL), ("a-*", away), ("*", CLOUD)]).models()

    assert list(listed) == ["headgate-demo", "gpt-5.6", "gpt-5.6-mini"]


async def test_backends_are_asked_once_in_a_while():
    """Agents list models at every start; one backend with two routes is asked once."""
    cloud = Shelf(name="cloud", offers=("gpt-5.6",))
    routes = Routes([("gpt-*", cloud), ("o*", cloud)])
    first = await routes.models()

    assert await routes.models() is first
    assert cloud._asked == 1


async def test_no_routes_list_no_models():
    """Nothing is served."""
    assert await Routes([]).models() == {}
