"""Functions other than the weather: choosing one, filling in its arguments, reporting its result."""

import json
from random import Random
from typing import Any

from backends.training import words
from backends.training.dialogue import Dialogue, Json, assistant, assistant_calls, rephrase, tool_result, user
from backends.training.subjects import functions
from backends.training.wording import lines, pick, wordings
from backends.training.words import city, clear_words, identifier, person, phrase, plain_word, pseudo_word


def everyday_call(rng: Random) -> Dialogue:
    """Return a request and the calls that answer it, sometimes in two turns."""
    question, call, tools = request(rng)
    kind = rng.random()
    if kind < 0.8:
        return Dialogue([user(question), assistant_calls(call)], tools)
    again, other, more = by_name(rng) if kind < 0.9 else rng.choice((by_name, by_words))(rng)
    if {tool["name"] for tool in tools} & {tool["name"] for tool in more}:
        return Dialogue([user(question), assistant_calls(call)], tools)
    if kind < 0.86:
        first, earlier, _ = by_name(rng, tools[0])
        joint = rng.choice((" and then ", ", then ", ". Then ", " and "))
        both = first.rstrip(".") + joint + again[0].lower() + again[1:]
        return Dialogue([user(both), assistant_calls(earlier, other)], (*tools, *more))
    found, sentence = outcome(rng)
    messages = [user(question), assistant_calls(call), tool_result(found), assistant(sentence)]
    return Dialogue([*messages, user(again), assistant_calls(other)], (*tools, *more))


def everyday_answer(rng: Random) -> Dialogue:
    """Return a request, the call, its result, and the sentence about the result."""
    question, call, tools = request(rng)
    found, sentence = outcome(rng)
    return Dialogue([user(question), assistant_calls(call), tool_result(found), assistant(sentence)], tools)


def request(rng: Random) -> tuple[str, tuple[str, Json], tuple[Json, ...]]:
    kind = rng.random()
    if kind < 0.42:
        return familiar_call(rng)
    if kind < 0.54:
        return by_choice(rng)
    return by_name(rng) if kind < 0.8 else by_words(rng)


def familiar_call(rng: Random) -> tuple[str, tuple[str, Json], tuple[Json, ...]]:
    """Return a request for a common function; sometimes its name or its only argument is made up."""
    name, description, listed, wording = rng.choice(wordings("everyday")["known"])
    keys = listed.split(",")
    values = {key: argument(rng, key) for key in keys}
    question = rephrase(rng, wording).format(**values)
    renamed = {key: identifier(rng) if rng.random() < 0.25 and len(keys) == 1 else key for key in keys}
    numbers = lines("everyday", "numeric")
    kinds = {renamed[key]: rng.choice(("integer", "number")) if key in numbers else "string" for key in keys}
    shown = rng.choice((name, name, identifier(rng))) if description else name
    tool = functions.function(shown, description if shown != name or rng.random() < 0.8 else "", kinds)
    arguments = {renamed[key]: values[key] for key in keys}
    known_names = {row[0] for row in wordings("everyday")["known"]}
    others = [other for other in functions.mix_functions(rng) if other["name"] not in known_names]
    if rng.random() < 0.25:
        others.append(
            functions.function(pick(rng, "weather", "names"), "Get the weather for a place.", {"city": "string"})
        )
    tools = [*others, tool]
    rng.shuffle(tools)
    return question, (shown, arguments), tuple(tools)


def argument(rng: Random, key: str) -> Any:
    """Return a value that fits the argument's name."""
    if key in lines("everyday", "numeric"):
        return rng.randint(1, rng.choice((12, 99, 999)))
    if key == "expression":
        return f"{rng.randint(0, 999)} {rng.choice('+-*/')} {rng.randint(0, 999)}"
    if key in lines("everyday", "places"):
        return city(rng)
    if key in lines("everyday", "people"):
        return person(rng)
    if key.endswith("_id"):
        return rng.choice((str(rng.randint(1, 99999)), clear_words(rng)))
    return clear_words(rng, rng.choice((1, 1, 2, 3)))


def by_choice(rng: Random) -> tuple[str, tuple[str, Json], tuple[Json, ...]]:
    """Return a request for a function with an argument that accepts only a few words; sometimes it is optional."""
    name, description, key, limited, allowed, wording, without = rng.choice(wordings("everyday")["choices"])
    if rng.random() < 0.3:
        allowed = [clear_words(rng) for _ in range(rng.choice((2, 3, 4)))]
    item, chosen = argument(rng, key), rng.choice(allowed)
    shown = rng.choice((name, name, identifier(rng)))
    kind = "integer" if isinstance(item, int) else "string"
    is_stated = rng.random() < 0.8
    wanted: Json = {key: item, limited: chosen} if is_stated else {key: item}
    fixed: Json = {key: kind, limited: allowed}
    tool = functions.function(shown, description, fixed) if is_stated and rng.random() < 0.6 else functions.function(
        shown, description, {key: kind}, {limited: allowed})  # fmt: skip
    question = rephrase(rng, wording if is_stated else without).format(**wanted)
    return question, (shown, wanted), functions.mix_functions(rng, tool)


def by_name(rng: Random, tool: Json | None = None) -> tuple[str, tuple[str, Json], tuple[Json, ...]]:
    """Return a request that names a function, mostly a made-up one, and its arguments."""
    tool = tool or functions.random_function(rng)
    properties = tool["parameters"]["properties"]
    values = {key: random_value(rng, item.get("enum") or item["type"]) for key, item in properties.items()}
    if not values:
        wording = pick(rng, "everyday", "empty").format(name=tool["name"])
    elif len(values) == 1 and rng.random() < 0.4:
        wording = pick(rng, "everyday", "single").format(name=tool["name"], value=format_argument(*values.values()))
    else:
        joint = rng.choice((" = ", "=", " ", " set to ", ": "))
        listed = [f"{key}{joint}{format_argument(item)}" for key, item in values.items()]
        pairs = rng.choice((", ", " and ")).join(listed)
        wording = pick(rng, "everyday", "forms").format(name=tool["name"], pairs=pairs)
    return wording, (tool["name"], values), functions.mix_functions(rng, tool)


def by_words(rng: Random) -> tuple[str, tuple[str, Json], tuple[Json, ...]]:
    """Return a request with the verb and noun that are the function's name, offered among similar functions."""
    verb = rng.choice((words.verb(rng), plain_word(rng).lower()))
    noun = rng.choice((words.noun(rng), plain_word(rng).lower()))
    key, joint, make = rng.choice((("name", "called", person), ("city", "in", city), ("destination", "to", city),
                                   ("place", "at", city), ("recipient", "for", person), ("name", "for", person),
                                   ("title", "called", plain_word), ("number", "number", _count),
                                   ("day", "on", plain_word), ("location", "in", city),
                                   (identifier(rng), "for", plain_word)))  # fmt: skip
    value = make(rng)
    others = [functions.function(f"{words.verb(rng)}_{rng.choice((noun, words.noun(rng)))}", "", {key: "string"})
              for _ in range(rng.randint(0, 3))]  # fmt: skip
    kind = "integer" if isinstance(value, int) else "string"
    tool = functions.function(f"{verb}_{noun}", rng.choice(("", f"{verb} a {noun}".capitalize())), {key: kind})
    tools = list({each["name"]: each for each in (*others, tool)}.values())
    rng.shuffle(tools)
    article = rng.choice(("the", "a", "my"))
    wording = rephrase(rng, f"{verb.capitalize()} {article} {noun} {joint} {{}}.").replace("{}", str(value))
    return wording, (tool["name"], {key: value}), tuple(tools)


def _count(rng: Random) -> int:
    return rng.randint(0, 999)


def random_value(rng: Random, kind: str | list[str]) -> Any:
    if isinstance(kind, list):
        return rng.choice(kind)
    if kind == "boolean":
        return rng.random() < 0.5
    if kind == "integer":
        return rng.randrange(10 ** rng.randint(1, 4))
    if kind == "number":
        return rng.choice((rng.randint(0, 999), round(rng.uniform(0, 100), 2)))
    return argument(rng, rng.choice(("text", "city", "name", "order_id")))


def format_argument(item: Any) -> str:
    return item if isinstance(item, str) else json.dumps(item)


def outcome(rng: Random) -> tuple[str, str]:
    """Return the result of a function and the sentence about it: sentences are repeated, other results reported."""
    kind = rng.random()
    if kind < 0.25:
        text = phrase(rng, 2, 9).rstrip(".?! ").capitalize() + "."
        return text, text
    if kind < 0.5:
        clock = f"{rng.randint(0, 23)}:{rng.randint(10, 59)}"
        text = rng.choice((phrase(rng, 1, 4), str(rng.randint(0, 99999)), clock, "true"))
        text = text.rstrip(".?! ") or plain_word(rng)
        text = pseudo_word(rng) if text in lines("everyday", "successes") else text
        return text, f"The result is {text}."
    if kind < 0.58:
        return pick(rng, "everyday", "successes"), "It is done."
    if kind < 0.65:
        problem = rng.choice(("not found", "timeout", "access denied", phrase(rng, 1, 4)))
        problem = problem.replace('"', "").rstrip(".\\ ")
        return json.dumps({"error": problem}, ensure_ascii=False), f"I am sorry, the function failed: {problem}."
    found = {key: item for key, item in random_pairs(rng).items() if key not in ("error", "status", "success")}
    sentence = ", ".join(f"{key} {format_argument(item)}" for key, item in found.items())
    spacing = rng.choice(((", ", ": "), (",", ":")))
    return json.dumps(found, ensure_ascii=False, separators=spacing), f"The result is {sentence}."


def random_pairs(rng: Random) -> Json:
    keys = [rng.choice(("result", "price", "name", "time", "value", "date", "total", identifier(rng), identifier(rng)))
            for _ in range(rng.choice((1, 1, 2, 2, 3)))]  # fmt: skip
    return {key: random_value(rng, rng.choice(functions.KINDS)) for key in keys}
