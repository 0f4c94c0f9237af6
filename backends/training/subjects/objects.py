"""JSON objects with given keys, whose values are in the text."""

import json
from random import Random
from typing import Any

from backends.training.dialogue import Dialogue, Json, assistant, system, user
from backends.training.subjects import statements
from backends.training.wording import lines, pick
from backends.training.words import city, clear_words, identifier, person

# Headgate appends this to the instructions, after an empty line, when a caller requests `json_object`.
ANY_OBJECT = "Reply with a JSON object."


def objects(rng: Random) -> Dialogue:
    """Return a request for an object by its keys, sometimes with the order that Headgate adds for `json_object`."""
    question, answer = (by_pairs if rng.random() < 0.6 else by_sentence)(rng)
    messages = [user(question), assistant(dumped(answer))]
    if rng.random() < 0.2:
        messages.insert(0, system(with_instructions(rng, ANY_OBJECT)))
    return Dialogue(messages)


def with_instructions(rng: Random, order: str) -> str:
    """Return the order that Headgate adds, often after instructions of the caller."""
    kind = rng.random()
    if kind < 0.5:
        return order
    if kind < 0.7:
        return f"You are a helpful assistant.\n\n{order}"
    return f"{rng.choice((*lines('objects', 'instructions'), *lines('systems', 'systems')))}\n\n{order}"


def dumped(found: Json) -> str:
    return json.dumps(found, ensure_ascii=False)


def random_fields(rng: Random, count: int) -> Json:
    """Return `count` arbitrary keys with values of several types."""
    keys = [pick(rng, "objects", "familiar") if rng.random() < 0.5 else identifier(rng) for _ in range(count)]
    return {key: random_value(rng) for key in keys}


def random_value(rng: Random) -> Any:
    kind = rng.random()
    if kind < 0.24:
        return rng.randrange(10 ** rng.randint(1, 4))
    if kind < 0.3:
        return round(rng.uniform(0, 10 ** rng.randint(1, 3)), rng.choice((1, 2)))
    if kind < 0.38:
        return rng.random() < 0.5
    if kind < 0.55:
        return rng.choice((person, city))(rng).replace(",", "")
    text = clear_words(rng, rng.choice((1, 1, 1, 1, 2, 3)))
    return int(text) if text.isdecimal() and text.isascii() and str(int(text)) == text else text


def format_value(found: Any, mark: str = "") -> str:
    return f"{mark}{found}{mark}" if isinstance(found, str) else json.dumps(found)


def by_pairs(rng: Random) -> tuple[str, Json]:
    """Return a request such as `colour is red and age is 7` in one of many wordings, and its object."""
    found = random_fields(rng, rng.choice((1, 1, 2, 2, 2, 3, 3, 4)))
    pairs = format_pairs(rng, found)
    wanted = list(found)
    kind = rng.random()
    if kind < 0.4:
        wording = pick(rng, "objects", "direct").format(pairs=pairs)
    else:
        wanted = rng.sample(wanted, rng.randint(1, len(wanted))) if rng.random() < 0.5 else wanted
        template = rng.choice(lines("objects", "pairs_first" if kind < 0.7 else "keys_first"))
        wording = template.format(pairs=pairs, keys=format_keys(rng, wanted))
    wording = wording if rng.random() < 0.8 else wording[:-1]
    return wording, {key: found[key] for key in wanted}


def format_pairs(rng: Random, found: Json) -> str:
    """Return the keys with their values as text."""
    joint = rng.choice((" is ", " is ", " = ", ": ", " ", "="))
    quote, mark = rng.choice(('"', "", "", "")), rng.choice(('"', "", "", ""))
    parts = [f"{quote}{key}{quote}{joint}{format_value(item, mark)}" for key, item in found.items()]
    if joint in ": = " and rng.random() < 0.15:
        return "\n" + "\n".join(parts)
    if len(parts) > 1 and rng.random() < 0.4:
        return " and ".join([", ".join(parts[:-1]), parts[-1]])
    return ("; " if rng.random() < 0.1 else ", " if len(parts) > 2 or rng.random() < 0.4 else " and ").join(parts)


def format_keys(rng: Random, keys: list[str]) -> str:
    mark = rng.choice(("", "", '"', "'", "`"))
    marked = [f"{mark}{key}{mark}" for key in keys]
    if len(marked) > 1 and rng.random() < 0.7:
        return ", ".join(marked[:-1]) + " and " + marked[-1]
    return ", ".join(marked)


def by_sentence(rng: Random) -> tuple[str, Json]:
    """Return a request for some or all facts of a sentence by their keys, and its object."""
    sentence, known = statements.statement(rng)
    keys = [key for key in known if rng.random() < 0.8] or list(known)[:1]
    if rng.random() < 0.4:
        rng.shuffle(keys)
    wording = pick(rng, "objects", "of_sentence").format(told=sentence, keys=format_keys(rng, keys))
    return wording, {key: known[key] for key in keys}
