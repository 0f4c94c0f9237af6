"""Functions other than the weather: choosing one, filling in its arguments, saying what came back."""

import json
from random import Random
from typing import Any

from backends.training import words
from backends.training.dialogue import Dialogue, Json, assistant, calls, result, said, user
from backends.training.subjects import functions
from backends.training.wording import lines, pick, wordings
from backends.training.words import city, identifier, person, phrase, plain, pseudo, unmistakable


def everyday_call(rng: Random) -> Dialogue:
    """A request and the call it should lead to."""
    question, call, tools = request(rng)
    kind = rng.random()
    if kind < 0.8:
        return Dialogue([user(question), calls(call)], tools)
    again, other, more = by_name(rng) if kind < 0.9 else rng.choice((by_name, by_words))(rng)
    if {tool["name"] for tool in tools} & {tool["name"] for tool in more}:
        return Dialogue([user(question), calls(call)], tools)
    if kind < 0.86:
        first, earlier, _ = by_name(rng, tools[0])
        joint = rng.choice((" and then ", ", then ", ". Then ", " and "))
        both = first.rstrip(".") + joint + again[0].lower() + again[1:]
        return Dialogue([user(both), calls(earlier, other)], (*tools, *more))
    found, sentence = outcome(rng)
    return Dialogue([user(question), calls(call), result(found), assistant(sentence), user(again), calls(other)],
                    (*tools, *more))  # fmt: skip


def everyday_answer(rng: Random) -> Dialogue:
    """The whole way: request, call, what came back, and the sentence about it."""
    question, call, tools = request(rng)
    found, sentence = outcome(rng)
    return Dialogue([user(question), calls(call), result(found), assistant(sentence)], tools)


def request(rng: Random) -> tuple[str, tuple[str, Json], tuple[Json, ...]]:
    kind = rng.random()
    if kind < 0.42:
        return known(rng)
    if kind < 0.54:
        return by_choice(rng)
    return by_name(rng) if kind < 0.8 else by_words(rng)


def known(rng: Random) -> tuple[str, tuple[str, Json], tuple[Json, ...]]:
    """A function people really have; at times its name or its arguments are made up, in their usual order."""
    name, description, listed, wording = rng.choice(wordings("everyday")["known"])
    keys = listed.split(",")
    values = {key: argument(rng, key) for key in keys}
    question = said(rng, wording).format(**values)
    renamed = {key: identifier(rng) if rng.random() < 0.25 and len(keys) == 1 else key for key in keys}
    numbers = lines("everyday", "numeric")
    kinds = {renamed[key]: rng.choice(("integer", "number")) if key in numbers else "string" for key in keys}
    shown = rng.choice((name, name, identifier(rng))) if description else name
    tool = functions.function(shown, description if shown != name or rng.random() < 0.8 else "", kinds)
    arguments = {renamed[key]: values[key] for key in keys}
    known_names = {row[0] for row in wordings("everyday")["known"]}
    others = [other for other in functions.among(rng) if other["name"] not in known_names]
    if rng.random() < 0.25:
        others.append(
            functions.function(pick(rng, "weather", "names"), "Get the weather for a place.", {"city": "string"})
        )
    tools = [*others, tool]
    rng.shuffle(tools)
    return question, (shown, arguments), tuple(tools)


def argument(rng: Random, key: str) -> Any:
    """A value that fits the argument's name."""
    if key in lines("everyday", "numeric"):
        return rng.randint(1, rng.choice((12, 99, 999)))
    if key == "expression":
        return f"{rng.randint(0, 999)} {rng.choice('+-*/')} {rng.randint(0, 999)}"
    if key in lines("everyday", "places"):
        return city(rng)
    if key in lines("everyday", "people"):
        return person(rng)
    if key.endswith("_id"):
        return rng.choice((str(rng.randint(1, 99999)), unmistakable(rng)))
    return unmistakable(rng, rng.choice((1, 1, 2, 3)))


def by_choice(rng: Random) -> tuple[str, tuple[str, Json], tuple[Json, ...]]:
    """A function one of whose arguments takes one of a few words only; at times it may be left out."""
    name, description, key, limited, allowed, wording, without = rng.choice(wordings("everyday")["choices"])
    if rng.random() < 0.3:
        allowed = [unmistakable(rng) for _ in range(rng.choice((2, 3, 4)))]
    item, chosen = argument(rng, key), rng.choice(allowed)
    shown = rng.choice((name, name, identifier(rng)))
    kind = "integer" if isinstance(item, int) else "string"
    told = rng.random() < 0.8
    wanted: Json = {key: item, limited: chosen} if told else {key: item}
    fixed: Json = {key: kind, limited: allowed}
    tool = functions.function(shown, description, fixed) if told and rng.random() < 0.6 else functions.function(
        shown, description, {key: kind}, {limited: allowed})  # fmt: skip
    question = said(rng, wording if told else without).format(**wanted)
    return question, (shown, wanted), functions.among(rng, tool)


def by_name(rng: Random, tool: Json | None = None) -> tuple[str, tuple[str, Json], tuple[Json, ...]]:
    """A function called by its name, mostly a made-up one, with arguments as they are named."""
    tool = tool or functions.made_up(rng)
    properties = tool["parameters"]["properties"]
    values = {key: fitting(rng, item.get("enum") or item["type"]) for key, item in properties.items()}
    if not values:
        wording = pick(rng, "everyday", "empty").format(name=tool["name"])
    elif len(values) == 1 and rng.random() < 0.4:
        wording = pick(rng, "everyday", "single").format(name=tool["name"], value=written(*values.values()))
    else:
        joint = rng.choice((" = ", "=", " ", " set to ", ": "))
        pairs = rng.choice((", ", " and ")).join(f"{key}{joint}{written(item)}" for key, item in values.items())
        wording = pick(rng, "everyday", "forms").format(name=tool["name"], pairs=pairs)
    return wording, (tool["name"], values), functions.among(rng, tool)


def by_words(rng: Random) -> tuple[str, tuple[str, Json], tuple[Json, ...]]:
    """A function named by verb and noun, asked for by the same verb and noun, among others of that kind."""
    verb, noun = rng.choice((words.verb(rng), plain(rng).lower())), rng.choice((words.noun(rng), plain(rng).lower()))
    key, joint, make = rng.choice((("name", "called", person), ("city", "in", city), ("destination", "to", city),
                                   ("place", "at", city), ("recipient", "for", person), ("name", "for", person),
                                   ("title", "called", plain), ("number", "number", _count), ("day", "on", plain),
                                   ("location", "in", city), (identifier(rng), "for", plain)))  # fmt: skip
    value = make(rng)
    others = [functions.function(f"{words.verb(rng)}_{rng.choice((noun, words.noun(rng)))}", "", {key: "string"})
              for _ in range(rng.randint(0, 3))]  # fmt: skip
    kind = "integer" if isinstance(value, int) else "string"
    tool = functions.function(f"{verb}_{noun}", rng.choice(("", f"{verb} a {noun}".capitalize())), {key: kind})
    tools = list({each["name"]: each for each in (*others, tool)}.values())
    rng.shuffle(tools)
    article = rng.choice(("the", "a", "my"))
    wording = said(rng, f"{verb.capitalize()} {article} {noun} {joint} {{}}.").replace("{}", str(value))
    return wording, (tool["name"], {key: value}), tuple(tools)


def _count(rng: Random) -> int:
    return rng.randint(0, 999)


def fitting(rng: Random, kind: str | list[str]) -> Any:
    if isinstance(kind, list):
        return rng.choice(kind)
    if kind == "boolean":
        return rng.random() < 0.5
    if kind == "integer":
        return rng.randrange(10 ** rng.randint(1, 4))
    if kind == "number":
        return rng.choice((rng.randint(0, 999), round(rng.uniform(0, 100), 2)))
    return argument(rng, rng.choice(("text", "city", "name", "order_id")))


def written(item: Any) -> str:
    return item if isinstance(item, str) else json.dumps(item)


def outcome(rng: Random) -> tuple[str, str]:
    """What a function gave back and the sentence about it: sentences are passed on, anything else is reported."""
    kind = rng.random()
    if kind < 0.25:
        text = phrase(rng, 2, 9).rstrip(".?! ").capitalize() + "."
        return text, text
    if kind < 0.5:
        clock = f"{rng.randint(0, 23)}:{rng.randint(10, 59)}"
        text = rng.choice((phrase(rng, 1, 4), str(rng.randint(0, 99999)), clock, "true"))
        text = text.rstrip(".?! ") or plain(rng)
        text = pseudo(rng) if text in lines("everyday", "successes") else text
        return text, f"The result is {text}."
    if kind < 0.58:
        return pick(rng, "everyday", "successes"), "It is done."
    if kind < 0.65:
        problem = rng.choice(("not found", "timeout", "access denied", phrase(rng, 1, 4)))
        problem = problem.replace('"', "").rstrip(".\\ ")
        return json.dumps({"error": problem}, ensure_ascii=False), f"I am sorry, the function failed: {problem}."
    found = {key: item for key, item in pairs(rng).items() if key not in ("error", "status", "success")}
    sentence = ", ".join(f"{key} {written(item)}" for key, item in found.items())
    spacing = rng.choice(((", ", ": "), (",", ":")))
    return json.dumps(found, ensure_ascii=False, separators=spacing), f"The result is {sentence}."


def pairs(rng: Random) -> Json:
    keys = [rng.choice(("result", "price", "name", "time", "value", "date", "total", identifier(rng), identifier(rng)))
            for _ in range(rng.choice((1, 1, 2, 2, 3)))]  # fmt: skip
    return {key: fitting(rng, rng.choice(functions.KINDS)) for key in keys}
