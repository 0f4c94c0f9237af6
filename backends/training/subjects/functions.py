"""Definitions of functions: those that a dialogue needs, and others that are offered but not needed."""

from random import Random
from typing import Any

from backends.training.dialogue import Json
from backends.training.wording import wordings
from backends.training.words import adjective, clear_words, identifier, noun, phrase, plain_word, verb

KINDS = ("string", "string", "string", "integer", "number", "boolean")

Kind = str | list[str]


def function(name: str, description: str, required: dict[str, Any], optional: dict[str, Any] | None = None) -> Json:
    """Return a function in the form of the Responses protocol; a kind is a type's name or a list of allowed values."""
    optional = optional or {}
    properties = {key: {"type": "string", "enum": kind} if isinstance(kind, list) else {"type": kind}
                  for key, kind in {**required, **optional}.items()}  # fmt: skip
    parameters = {"type": "object", "properties": properties, "required": list(required)}
    return {"type": "function", "name": name, "description": description, "parameters": parameters}


def random_function(rng: Random) -> Json:
    """Return a function with a meaningless name and meaningless arguments."""
    required = {identifier(rng): random_kind(rng) for _ in range(rng.choice((0, 1, 1, 1, 2, 2, 2, 3)))}
    description = rng.choice(("", f"{verb(rng)} the {plain_word(rng)} {noun(rng)}.".capitalize(),
                              f"{verb(rng)} a {adjective(rng)} {noun(rng)}".capitalize(),
                              phrase(rng, 2, 6)))  # fmt: skip
    return function(identifier(rng), description, required)


def random_kind(rng: Random) -> Kind:
    """Return what an argument accepts: a type, or one of a few words."""
    if rng.random() < 0.15:
        return [clear_words(rng) for _ in range(rng.choice((2, 2, 3, 4)))]
    return rng.choice(KINDS)


def unrelated_function(rng: Random) -> Json:
    """Return a common function that has nothing to do with the weather."""
    name, description, keys = rng.choice(wordings("everyday")["neighbours"])
    required: dict[str, Any] = dict.fromkeys(keys.split(","), "string")
    return function(name, description if rng.random() < 0.8 else "", required)


def mix_functions(rng: Random, *needed: Json) -> tuple[Json, ...]:
    """Return the needed functions and up to three others in random order; no name occurs twice."""
    others = [rng.choice((random_function, unrelated_function))(rng) for _ in range(rng.choice((0, 0, 0, 1, 1, 2, 3)))]
    named = {tool["name"]: tool for tool in (*others, *needed)}
    tools = list(named.values())
    rng.shuffle(tools)
    return tuple(tools)
