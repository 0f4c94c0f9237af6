"""JSON objects whose keys, order and types a schema decides, as Headgate puts it into the prompt."""

from random import Random
from typing import Any

from backends.training.dialogue import Dialogue, Json, Subject, assistant, system, user
from backends.training.subjects import talk, told
from backends.training.subjects.arithmetic import arithmetic
from backends.training.subjects.facts import capital
from backends.training.subjects.objects import ANY_OBJECT, dumped, fields, instructed, listed, paired
from backends.training.subjects.unknown import unknown
from backends.training.wording import lines, pick
from backends.training.words import identifier, phrase, plain, unmistakable

# What Headgate adds to the instructions, behind an empty line, when a caller sends a JSON schema.
SCHEMA = "Reply with a JSON object that follows this schema:\n{}"

UNTOLD: dict[str, Any] = {"string": "unknown", "integer": 0, "number": 0, "boolean": False, "array": []}
KINDS: dict[type, str] = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array"}


def schemas(rng: Random) -> Dialogue:
    """An object by a schema; at times twice, at times only a plain answer in an object."""
    if rng.random() < 0.12:
        return wrapped(rng)
    named = rng.random() < 0.5
    text, found = told.told(rng) if named else pairs(rng)
    keys = [key for key in found if rng.random() < 0.9] or list(found)[:1]
    if rng.random() < 0.4:
        rng.shuffle(keys)
    wanted = {key: found[key] for key in keys}
    if rng.random() < 0.06:
        wanted |= untold(rng, set(found))
    properties = {key: described(rng, key, item) for key, item in wanted.items()}
    messages = [user(asked(rng, text, keys)), assistant(dumped(wanted))]
    if named and rng.random() < 0.2:
        messages = earlier(rng, keys) + messages
    if rng.random() < 0.1:
        outer = rng.choice(("person", "item", "data", "result", identifier(rng)))
        properties = {outer: whole(rng, properties)}
        messages = [user(asked(rng, text, keys)), assistant(dumped({outer: wanted}))]
    rule = SCHEMA.format(dumped(whole(rng, properties)))
    return Dialogue([system(instructed(rng, rule)), *messages])


def pairs(rng: Random) -> tuple[str, Json]:
    found = fields(rng, rng.choice((1, 2, 2, 3, 3, 4)))
    found = {key: str(item) if type(item) is int and rng.random() < 0.1 else item for key, item in found.items()}
    mixed = list(found)
    if rng.random() < 0.4:
        rng.shuffle(mixed)
    return paired(rng, {key: found[key] for key in mixed}) + rng.choice((".", "")), found


def asked(rng: Random, text: str, keys: list[str]) -> str:
    text = text.strip()
    kind = rng.random()
    if kind < 0.6:
        return text
    if kind < 0.75:
        return f"{rng.choice(('Extract', 'Return JSON', 'Answer in JSON', 'JSON'))}: {text}"
    if kind < 0.9:
        return f"{text} {pick(rng, 'objects', 'extract')}".strip()
    return f"Return {listed(rng, keys)} as JSON: {text}"


def earlier(rng: Random, keys: list[str]) -> list[Json]:
    """The same kind of sentence before, and its object."""
    for _ in range(20):
        text, found = told.told(rng)
        if set(keys) <= set(found):
            return [user(text), assistant(dumped({key: found[key] for key in keys}))]
    return []


def untold(rng: Random, known: set[str]) -> Json:
    """A key that the text says nothing about."""
    key = rng.choice([each for each in lines("objects", "familiar") if each not in known])
    return {key: UNTOLD[rng.choice(("string", "string", "integer", "boolean"))]}


def wrapped(rng: Random) -> Dialogue:
    """A question that has nothing to do with objects: its usual answer, in an object."""
    subjects: tuple[Subject, ...] = (talk.talk, arithmetic, capital, unknown)
    question, answer = rng.choice(subjects)(rng).messages
    key = "answer"
    order = ANY_OBJECT
    if rng.random() < 0.5:
        key = rng.choice(("answer", "text", "response", "message", "reply", identifier(rng)))
        order = SCHEMA.format(dumped(whole(rng, {key: {"type": "string"}})))
    return Dialogue([system(instructed(rng, order)), question, assistant(dumped({key: answer["content"]}))])


def described(rng: Random, key: str, item: Any) -> Json:
    """The schema of one value: at times with a title, a description or the values that are allowed."""
    kind: Json = {"type": KINDS[type(item)]}
    if type(item) is int and rng.random() < 0.3:
        kind = {"type": "number"}
    if isinstance(item, list):
        kind |= {"items": {"type": "string"}}
    if isinstance(item, str) and " " not in item and item != UNTOLD["string"] and rng.random() < 0.12:
        allowed = [item, *(unmistakable(rng) for _ in range(rng.choice((1, 2, 3))))]
        rng.shuffle(allowed)
        kind |= {"enum": list(dict.fromkeys(allowed))}
    if rng.random() < 0.12:
        kind |= {"description": rng.choice((phrase(rng, 2, 5), f"The {key}", f"The {key} of the {plain(rng)}"))}
    return kind


def whole(rng: Random, properties: Json) -> Json:
    """The schema of the object, in the shapes in which people and pydantic write it."""
    if rng.random() < 0.3:
        titled = {key: {"title": key.replace("_", " ").title(), **kind} for key, kind in properties.items()}
        return {"properties": titled, "required": list(properties), "title": identifier(rng).title(), "type": "object",
                "additionalProperties": False}  # fmt: skip
    found: Json = {"type": "object", "properties": properties}
    if rng.random() < 0.8:
        found |= {"required": list(properties)}
    if rng.random() < 0.6:
        found |= {"additionalProperties": False}
    return found
