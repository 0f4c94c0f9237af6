"""JSON objects: the keys are given, the values stand in the text."""

import json
from random import Random
from typing import Any

from backends.training.dialogue import Dialogue, Json, assistant, system, user
from backends.training.subjects import told
from backends.training.wording import lines, pick
from backends.training.words import city, identifier, person, unmistakable

# What Headgate adds to the instructions, behind an empty line, when a caller asks for `json_object`.
ANY_OBJECT = "Reply with a JSON object."


def objects(rng: Random) -> Dialogue:
    """An object by its keys; at times the gate has said, too, that an object is wanted."""
    question, answer = (by_pairs if rng.random() < 0.6 else by_sentence)(rng)
    messages = [user(question), assistant(dumped(answer))]
    if rng.random() < 0.2:
        messages.insert(0, system(instructed(rng, ANY_OBJECT)))
    return Dialogue(messages)


def instructed(rng: Random, order: str) -> str:
    """The order of the gate, often behind instructions of the caller."""
    kind = rng.random()
    if kind < 0.5:
        return order
    if kind < 0.7:
        return f"You are a helpful assistant.\n\n{order}"
    return f"{rng.choice((*lines('objects', 'instructions'), *lines('systems', 'systems')))}\n\n{order}"


def dumped(found: Json) -> str:
    return json.dumps(found, ensure_ascii=False)


def fields(rng: Random, count: int) -> Json:
    """Arbitrary keys and values; numbers and booleans stay what they are."""
    keys = [pick(rng, "objects", "familiar") if rng.random() < 0.5 else identifier(rng) for _ in range(count)]
    return {key: value(rng) for key in keys}


def value(rng: Random) -> Any:
    kind = rng.random()
    if kind < 0.24:
        return rng.randrange(10 ** rng.randint(1, 4))
    if kind < 0.3:
        return round(rng.uniform(0, 10 ** rng.randint(1, 3)), rng.choice((1, 2)))
    if kind < 0.38:
        return rng.random() < 0.5
    if kind < 0.55:
        return rng.choice((person, city))(rng).replace(",", "")
    text = unmistakable(rng, rng.choice((1, 1, 1, 1, 2, 3)))
    return int(text) if text.isdecimal() and text.isascii() and str(int(text)) == text else text


def spoken(found: Any, mark: str = "") -> str:
    return f"{mark}{found}{mark}" if isinstance(found, str) else json.dumps(found)


def by_pairs(rng: Random) -> tuple[str, Json]:
    """`colour is red and age is 7` in many wordings."""
    found = fields(rng, rng.choice((1, 1, 2, 2, 2, 3, 3, 4)))
    pairs = paired(rng, found)
    wanted = list(found)
    kind = rng.random()
    if kind < 0.4:
        wording = pick(rng, "objects", "direct").format(pairs=pairs)
    else:
        wanted = rng.sample(wanted, rng.randint(1, len(wanted))) if rng.random() < 0.5 else wanted
        template = rng.choice(lines("objects", "pairs_first" if kind < 0.7 else "keys_first"))
        wording = template.format(pairs=pairs, keys=listed(rng, wanted))
    wording = wording if rng.random() < 0.8 else wording[:-1]
    return wording, {key: found[key] for key in wanted}


def paired(rng: Random, found: Json) -> str:
    """Keys with their values, one behind the other."""
    joint = rng.choice((" is ", " is ", " = ", ": ", " ", "="))
    quote, mark = rng.choice(('"', "", "", "")), rng.choice(('"', "", "", ""))
    said = [f"{quote}{key}{quote}{joint}{spoken(item, mark)}" for key, item in found.items()]
    if joint in ": = " and rng.random() < 0.15:
        return "\n" + "\n".join(said)
    if len(said) > 1 and rng.random() < 0.4:
        return " and ".join([", ".join(said[:-1]), said[-1]])
    return ("; " if rng.random() < 0.1 else ", " if len(said) > 2 or rng.random() < 0.4 else " and ").join(said)


def listed(rng: Random, keys: list[str]) -> str:
    mark = rng.choice(("", "", '"', "'", "`"))
    marked = [f"{mark}{key}{mark}" for key in keys]
    if len(marked) > 1 and rng.random() < 0.7:
        return ", ".join(marked[:-1]) + " and " + marked[-1]
    return ", ".join(marked)


def by_sentence(rng: Random) -> tuple[str, Json]:
    """Some or all of what a sentence says, by the keys that are asked for."""
    sentence, known = told.told(rng)
    keys = [key for key in known if rng.random() < 0.8] or list(known)[:1]
    if rng.random() < 0.4:
        rng.shuffle(keys)
    wording = pick(rng, "objects", "of_sentence").format(told=sentence, keys=listed(rng, keys))
    return wording, {key: known[key] for key in keys}
