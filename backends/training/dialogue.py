"""A dialogue: a conversation in the form that chat templates take, with the tools that it may use."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A whole conversation. The model is trained on every message of the assistant in it."""

    messages: list[Json]
    tools: tuple[Json, ...] = ()


Subject = Callable[[Random], Dialogue]


def user(text: str) -> Json:
    return {"role": "user", "content": text}


def system(text: str) -> Json:
    return {"role": "system", "content": text}


def assistant(text: str) -> Json:
    return {"role": "assistant", "content": text}


def tool_result(text: str) -> Json:
    """Return the message with the result of a function."""
    return {"role": "tool", "content": text}


def assistant_calls(*pairs: tuple[str, Json]) -> Json:
    """Return the message in which the assistant calls functions, given as names with arguments."""
    listed = [{"function": {"name": name, "arguments": arguments}} for name, arguments in pairs]
    return {"role": "assistant", "content": "", "tool_calls": listed}


def exchange(question: str, answer: str) -> Dialogue:
    return Dialogue([user(question), assistant(answer)])


def rephrase(rng: Random, text: str) -> str:
    """Return the request as another person would type it: without a capital or full stop, or with a "please"."""
    ways = (_keep, _drop_end_mark, _lower_first, _lower_first_drop_end_mark, _add_opening, _add_please, _exclaim)
    return rng.choices(ways, (53, 10, 10, 10, 10, 4, 3))[0](rng, text)


def _keep(_: Random, text: str) -> str:
    return text


def _drop_end_mark(_: Random, text: str) -> str:
    return text[:-1] if text[-1] in ".!?" else text


def _lower_first(_: Random, text: str) -> str:
    return text[0].lower() + text[1:]


def _lower_first_drop_end_mark(rng: Random, text: str) -> str:
    return _drop_end_mark(rng, _lower_first(rng, text))


def _add_opening(rng: Random, text: str) -> str:
    return rng.choice(("Please ", "Hey, ", "Hi! ", "Hello! ", "Now ", "OK, ", "So, ")) + _lower_first(rng, text)


def _add_please(rng: Random, text: str) -> str:
    return text[:-1] + rng.choice((" please", ", please")) + text[-1] if text[-1] in ".!?" else text


def _exclaim(_: Random, text: str) -> str:
    return text[:-1] + "!" if text[-1] == "." else text
