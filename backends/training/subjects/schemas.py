"""JSON objects whose keys, order and types follow a schema, in the form in which Headgate adds it to the prompt."""

from random import Random
from typing import Any

from backends.training.dialogue import Dialogue, Json, Subject, assistant, system, user
from backends.training.subjects import statements, talk
from backends.training.subjects.arithmetic import arithmetic
from backends.training.subjects.facts import capital
from backends.training.subjects.objects import (
    ANY_OBJECT,
    dumped,
    format_keys,
    format_pairs,
    random_fields,
    with_instructions,
)
from backends.training.subjects.unknown import unknown
from backends.training.wording import lines, pick
from backends.training.words import clear_words, identifier, phrase, plain_word

# Headgate appends this to the instructions, after an empty line, when a caller sends a JSON schema.
SCHEMA = "Reply with a JSON object that follows this schema:\n{}"

MISSING_VALUES: dict[str, Any] = {"string": "unknown", "integer": 0, "number": 0, "boolean": False, "array": []}
KINDS: dict[type, str] = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array"}


def schemas(rng: Random) -> Dialogue:
    """Return a request for an object by a schema; sometimes a second one, sometimes a plain answer in an object."""
    if rng.random() < 0.12:
        return wrapped_answer(rng)
    named = rng.random() < 0.5
    text, found = statements.statement(rng) if named else random_pairs(rng)
    keys = [key for key in found if rng.random() < 0.9] or list(found)[:1]
    if rng.random() < 0.4:
        rng.shuffle(keys)
    wanted = {key: found[key] for key in keys}
    if rng.random() < 0.06:
        wanted |= missing_field(rng, set(found))
    properties = {key: describe_value(rng, key, item) for key, item in wanted.items()}
    messages = [user(phrase_request(rng, text, keys)), assistant(dumped(wanted))]
    if named and rng.random() < 0.2:
        messages = earlier_turn(rng, keys) + messages
    if rng.random() < 0.1:
        outer = rng.choice(("person", "item", "data", "result", identifier(rng)))
        properties = {outer: object_schema(rng, properties)}
        messages = [user(phrase_request(rng, text, keys)), assistant(dumped({outer: wanted}))]
    rule = SCHEMA.format(dumped(object_schema(rng, properties)))
    return Dialogue([system(with_instructions(rng, rule)), *messages])


def random_pairs(rng: Random) -> tuple[str, Json]:
    found = random_fields(rng, rng.choice((1, 2, 2, 3, 3, 4)))
    found = {key: str(item) if type(item) is int and rng.random() < 0.1 else item for key, item in found.items()}
    mixed = list(found)
    if rng.random() < 0.4:
        rng.shuffle(mixed)
    return format_pairs(rng, {key: found[key] for key in mixed}) + rng.choice((".", "")), found


def phrase_request(rng: Random, text: str, keys: list[str]) -> str:
    text = text.strip()
    kind = rng.random()
    if kind < 0.6:
        return text
    if kind < 0.75:
        return f"{rng.choice(('Extract', 'Return JSON', 'Answer in JSON', 'JSON'))}: {text}"
    if kind < 0.9:
        return f"{text} {pick(rng, 'objects', 'extract')}".strip()
    return f"Return {format_keys(rng, keys)} as JSON: {text}"


def earlier_turn(rng: Random, keys: list[str]) -> list[Json]:
    """Return an earlier sentence with the same keys, and its object; nothing if 20 draws find none."""
    for _ in range(20):
        text, found = statements.statement(rng)
        if set(keys) <= set(found):
            return [user(text), assistant(dumped({key: found[key] for key in keys}))]
    return []


def missing_field(rng: Random, known: set[str]) -> Json:
    """Return a key about which the text says nothing, with the value for a missing fact."""
    key = rng.choice([each for each in lines("objects", "familiar") if each not in known])
    return {key: MISSING_VALUES[rng.choice(("string", "string", "integer", "boolean"))]}


def wrapped_answer(rng: Random) -> Dialogue:
    """Return a question that has nothing to do with objects, and its usual answer as the value of an object."""
    subjects: tuple[Subject, ...] = (talk.talk, arithmetic, capital, unknown)
    question, answer = rng.choice(subjects)(rng).messages
    key = "answer"
    order = ANY_OBJECT
    if rng.random() < 0.5:
        key = rng.choice(("answer", "text", "response", "message", "reply", identifier(rng)))
        order = SCHEMA.format(dumped(object_schema(rng, {key: {"type": "string"}})))
    return Dialogue([system(with_instructions(rng, order)), question, assistant(dumped({key: answer["content"]}))])


def describe_value(rng: Random, key: str, item: Any) -> Json:
    """Return the schema of one value, sometimes with a description or a list of allowed values."""
    kind: Json = {"type": KINDS[type(item)]}
    if type(item) is int and rng.random() < 0.3:
        kind = {"type": "number"}
    if isinstance(item, list):
        kind |= {"items": {"type": "string"}}
    if isinstance(item, str) and " " not in item and item != MISSING_VALUES["string"] and rng.random() < 0.12:
        allowed = [item, *(clear_words(rng) for _ in range(rng.choice((1, 2, 3))))]
        rng.shuffle(allowed)
        kind |= {"enum": list(dict.fromkeys(allowed))}
    if rng.random() < 0.12:
        kind |= {"description": rng.choice((phrase(rng, 2, 5), f"The {key}", f"The {key} of the {plain_word(rng)}"))}
    return kind


def object_schema(rng: Random, properties: Json) -> Json:
    """Return the schema of the object in one of the forms that people and pydantic write."""
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
