"""JSON objects: the keys are given, the values stand in the text."""

import json
from random import Random
from typing import Any

from backends.training.dialogue import Dialogue, Json, assistant, exchange, system, user
from backends.training.wording import lines, pick
from backends.training.words import adjective, arbitrary, city, colour, identifier, noun, person, phrase, plain

# The wording with which Headgate puts a caller's JSON schema into the prompt, after the caller's own instructions.
SCHEMA = "Reply with a JSON object that follows this schema:\n{}"
ANY_OBJECT = "Reply with a JSON object."


def objects(rng: Random) -> Dialogue:
    """An object by its keys, told in the question or by a schema in the system's message."""
    kind = rng.random()
    if kind < 0.35:
        return by_pairs(rng)
    if kind < 0.65:
        return by_sentence(rng)
    return by_schema(rng)


def fields(rng: Random, count: int) -> dict[str, Any]:
    """Arbitrary keys and values; numbers and booleans stay what they are."""
    keys = [pick(rng, "objects", "familiar") if rng.random() < 0.5 else identifier(rng) for _ in range(count)]
    return {key: value(rng) for key in keys}


def value(rng: Random) -> Any:
    kind = rng.random()
    if kind < 0.3:
        return rng.randrange(10 ** rng.randint(1, 4))
    if kind < 0.38:
        return rng.random() < 0.5
    if kind < 0.8:
        return rng.choice((plain, person, city, arbitrary))(rng).strip(".,;:\"'\\“”") or plain(rng)
    return phrase(rng, 2, 3).replace('"', "").strip(".,;:'") or plain(rng)


def spoken(found: Any, mark: str = "") -> str:
    return f"{mark}{found}{mark}" if isinstance(found, str) else json.dumps(found)


def by_pairs(rng: Random) -> Dialogue:
    """`colour is red and age is 7` in many wordings."""
    found = fields(rng, rng.choice((1, 1, 2, 2, 3, 4)))
    joint = rng.choice((" is ", " is ", " = ", ": ", " ", "="))
    quote, mark = rng.choice(('"', "", "", "")), rng.choice(('"', "", "", ""))
    said = [f"{quote}{key}{quote}{joint}{spoken(item, mark)}" for key, item in found.items()]
    pairs = (", " if len(said) > 2 or rng.random() < 0.3 else " and ").join(said)
    if rng.random() < 0.4:
        pairs = " and ".join([", ".join(said[:-1]), said[-1]]) if len(said) > 1 else pairs
    wanted = list(found)
    kind = rng.random()
    if kind < 0.45:
        wording = pick(rng, "objects", "direct").format(pairs=pairs)
    else:
        wanted = rng.sample(wanted, rng.randint(1, len(wanted))) if rng.random() < 0.4 else wanted
        template = rng.choice(lines("objects", "pairs_first" if kind < 0.7 else "keys_first"))
        wording = template.format(pairs=pairs, keys=listed(rng, wanted))
    wording = wording if rng.random() < 0.8 else wording[:-1]
    return exchange(wording, json.dumps({key: found[key] for key in wanted}, ensure_ascii=False))


def listed(rng: Random, keys: list[str]) -> str:
    mark = rng.choice(("", "", '"', "'", "`"))
    marked = [f"{mark}{key}{mark}" for key in keys]
    if len(marked) > 1 and rng.random() < 0.8:
        return ", ".join(marked[:-1]) + " and " + marked[-1]
    return ", ".join(marked)


def person_told(rng: Random) -> tuple[str, dict[str, Any]]:
    """A sentence about somebody, and all that it says by key."""
    name, age, place, liked = person(rng), rng.randint(1, 99), city(rng), colour(rng)
    job = rng.choice(("teacher", "doctor", "driver", "farmer", "pilot", "cook", "painter", "nurse", plain(rng)))
    told = rng.choice((
        f"{name} is {age} years old and lives in {place}.", f"{name} is {age} and lives in {place}.",
        f"{name}, {age}, lives in {place}.", f"My name is {name}, I am {age} and I live in {place}.",
        f"{name} lives in {place} and is {age} years old.", f"My friend {name} from {place} is {age} years old.",
        f"{name} ({age}) is from {place}.", f"I am {name} from {place} and I am {age} years old.",
        f"{name} is {age} years old, works as a {job} and lives in {place}.",
        f"{name} is a {job} from {place}. {name} is {age} years old and likes {liked}.",
    ))  # fmt: skip
    known: dict[str, Any] = {"name": name, "age": age, rng.choice(("city", "city", "location", "place")): place}
    known |= {"job": job} if f" {job} " in told else {}
    known |= {"colour": liked} if told.endswith(f" likes {liked}.") else {}
    return told, known


def event_told(rng: Random) -> tuple[str, dict[str, Any]]:
    """A sentence about who meets where and when; the people are a list."""
    people = [person(rng) for _ in range(rng.choice((1, 2, 2, 3)))]
    what = rng.choice(
        (f"{adjective(rng)} {noun(rng)}", noun(rng), plain(rng), "science fair", "birthday party", "meeting")
    )
    day = rng.choice((pick(rng, "objects", "days"), f"{pick(rng, 'objects', 'months')} {rng.randint(1, 31)}"))
    who = " and ".join([", ".join(people[:-1]), people[-1]]) if len(people) > 1 else people[0]
    going = rng.choice(("are going to", "will go to", "meet at", "are invited to", "go to", "will be at"))
    told = f"{who} {going} {rng.choice(('a', 'the'))} {what} on {day}."
    return told, {rng.choice(("name", "name", "title", "event")): what, rng.choice(("date", "date", "day")): day,
                  rng.choice(("participants", "participants", "people", "attendees")): people}  # fmt: skip


def by_sentence(rng: Random) -> Dialogue:
    """Some or all of what a sentence says about somebody, by the keys that are asked for."""
    told, known = rng.choice((person_told, person_told, event_told))(rng)
    keys = [key for key in known if rng.random() < 0.8] or list(known)[:1]
    if rng.random() < 0.3:
        rng.shuffle(keys)
    wording = pick(rng, "objects", "of_sentence").format(told=told, keys=listed(rng, keys))
    return exchange(wording, json.dumps({key: known[key] for key in keys}, ensure_ascii=False))


def by_schema(rng: Random) -> Dialogue:
    """A JSON schema in the system's message decides the keys and their order."""
    if rng.random() < 0.5:
        told, known = rng.choice((person_told, event_told))(rng)
        keys = [key for key in known if rng.random() < 0.9] or list(known)[:1]
        if rng.random() < 0.3:
            rng.shuffle(keys)
    else:
        known = fields(rng, rng.choice((1, 2, 2, 3, 4)))
        joint = rng.choice((" is ", " is ", ": ", " = "))
        told = rng.choice((", ", " and ")).join(f"{key}{joint}{spoken(item)}" for key, item in known.items())
        told += rng.choice((".", ""))
        keys = list(known)
    told = rng.choice((told, told, f"Extract: {told}", told + " " + pick(rng, "objects", "extract")))
    order = rng.choice(("Return JSON. ", "", "", "Answer in JSON. ")) + told
    if rng.random() < 0.12:
        return Dialogue([system(ANY_OBJECT), user(f"Return {listed(rng, keys)} as JSON: {told}"),
                         assistant(json.dumps({key: known[key] for key in keys}, ensure_ascii=False))])  # fmt: skip
    lead = rng.choice(("", "", "You are a helpful assistant.\n\n", "Extract the event information.\n\n"))
    rule = system(lead + SCHEMA.format(json.dumps(schema(rng, {key: known[key] for key in keys}), ensure_ascii=False)))
    return Dialogue([rule, user(order), assistant(json.dumps({key: known[key] for key in keys}, ensure_ascii=False))])


def schema(rng: Random, found: dict[str, Any]) -> Json:
    kinds: dict[type, Json] = {bool: {"type": "boolean"}, int: {"type": "integer"}, str: {"type": "string"},
                               list: {"items": {"type": "string"}, "type": "array"}}  # fmt: skip
    properties = {key: dict(kinds[type(item)]) for key, item in found.items()}
    if rng.random() < 0.3:
        titled = {key: {"title": key.replace("_", " ").title(), **kind} for key, kind in properties.items()}
        return {"properties": titled, "required": list(found), "title": identifier(rng).title(), "type": "object",
                "additionalProperties": False}  # fmt: skip
    whole: Json = {"type": "object", "properties": properties}
    if rng.random() < 0.8:
        whole |= {"required": list(found)}
    if rng.random() < 0.6:
        whole |= {"additionalProperties": False}
    return whole
