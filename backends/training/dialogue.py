"""What one lesson is: a conversation in the shape chat templates take, and the tools it may use."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A whole conversation; every message of the assistant in it is one to learn from."""

    messages: list[Json]
    tools: tuple[Json, ...] = ()


Subject = Callable[[Random], Dialogue]


def user(text: str) -> Json:
    return {"role": "user", "content": text}


def system(text: str) -> Json:
    return {"role": "system", "content": text}


def assistant(text: str) -> Json:
    return {"role": "assistant", "content": text}


def result(text: str) -> Json:
    """What a function gave back."""
    return {"role": "tool", "content": text}


def calls(*pairs: tuple[str, Json]) -> Json:
    """The assistant calling functions, each given as its name and its arguments."""
    listed = [{"function": {"name": name, "arguments": arguments}} for name, arguments in pairs]
    return {"role": "assistant", "content": "", "tool_calls": listed}


def exchange(question: str, answer: str) -> Dialogue:
    return Dialogue([user(question), assistant(answer)])


def said(rng: Random, text: str) -> str:
    """The same request as another person would type it: without a capital, a full stop, or with a please."""
    ways = (_as_it_is, _open, _small, _openly_small, _led_in, _asked_nicely, _loud)
    return rng.choices(ways, (53, 10, 10, 10, 10, 4, 3))[0](rng, text)


def _as_it_is(_: Random, text: str) -> str:
    return text


def _open(_: Random, text: str) -> str:
    return text[:-1] if text[-1] in ".!?" else text


def _small(_: Random, text: str) -> str:
    return text[0].lower() + text[1:]


def _openly_small(rng: Random, text: str) -> str:
    return _open(rng, _small(rng, text))


def _led_in(rng: Random, text: str) -> str:
    return rng.choice(("Please ", "Hey, ", "Hi! ", "Hello! ", "Now ", "OK, ", "So, ")) + _small(rng, text)


def _asked_nicely(rng: Random, text: str) -> str:
    return text[:-1] + rng.choice((" please", ", please")) + text[-1] if text[-1] in ".!?" else text


def _loud(_: Random, text: str) -> str:
    return text[:-1] + "!" if text[-1] == "." else text
