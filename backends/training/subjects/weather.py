"""Questions about the weather: calling the function that looks it up, and reporting its result."""

import json
from random import Random
from typing import Any

from backends.training.dialogue import Dialogue, Json, assistant, assistant_calls, exchange, rephrase, tool_result, user
from backends.training.subjects import functions, talk
from backends.training.subjects.arithmetic import arithmetic
from backends.training.subjects.repetition import repetition
from backends.training.subjects.unknown import unknown
from backends.training.wording import lines, pick, wordings
from backends.training.words import city, identifier, phrase, plain_word

NO_TOOL = "I am sorry, I cannot look up the weather without a tool. Send me a weather function and I will call it."
WHERE = "For which place do you want to know the weather?"


def weather_function(rng: Random) -> tuple[Json, str, list[str]]:
    """Return a weather function, the name of its argument for the place, and its units, if any.

    Half of the names and half of the arguments are made up; a function with a made-up name has a description.
    """
    strange = rng.random() < 0.5
    name = identifier(rng) if strange else pick(rng, "weather", "names")
    described = [text for text in lines("weather", "descriptions") if text or not strange]
    place = identifier(rng) if rng.random() < 0.5 else pick(rng, "weather", "places")
    units = rng.choice(wordings("weather")["units"]) if rng.random() < 0.25 else []
    required: dict[str, Any] = {place: "string"}
    optional: dict[str, Any] = {rng.choice(("unit", "units")): units} if units else {}
    if units and rng.random() < 0.4:
        required, optional = required | optional, {}
    elif rng.random() < 0.08:
        required, optional = {}, required | optional
    return functions.function(name, rng.choice(described), required, optional), place, units


def phrase_question(rng: Random, where: str, tool: Json, place: str, units: list[str]) -> tuple[str, tuple[str, Json]]:
    """Return a question for one place and its call, with a unit if the question names one or it is required."""
    question = rephrase(rng, pick(rng, "weather", "questions").format("{}"))
    arguments: Json = {place: where}
    key = next((key for key in tool["parameters"]["properties"] if key != place), "")
    if units and rng.random() < 0.5:
        unit = rng.randrange(2)
        arguments[key] = units[unit]
        spoken = rng.choice((units[unit], ("Celsius", "Fahrenheit")[unit], ("celsius", "fahrenheit")[unit]))
        question = question.rstrip(".?!") + f" in {spoken}" + rng.choice(("?", ".", ""))
    elif key in tool["parameters"]["required"]:
        arguments[key] = units[0]
    return question.replace("{}", where), (tool["name"], arguments)


def coordinates_call(rng: Random) -> Dialogue:
    """Return a question for one of a few cities, and the call of a function that takes coordinates."""
    where, (latitude, longitude) = rng.choice(list(wordings("weather")["coordinates"].items()))
    name, description = (
        rng.choice(lines("weather", "names")),
        "Get current temperature for provided coordinates in celsius.",
    )
    tool = functions.function(name, description, {"latitude": "number", "longitude": "number"})
    question = rephrase(rng, pick(rng, "weather", "questions").format(where))
    call = (name, {"latitude": latitude, "longitude": longitude})
    return Dialogue([user(question), assistant_calls(call)], functions.mix_functions(rng, tool))


def weather_call(rng: Random) -> Dialogue:
    """Return a question and its call, sometimes for two places or with a second question for another place."""
    if rng.random() < 0.03:
        return coordinates_call(rng)
    tool, place, units = weather_function(rng)
    tools = functions.mix_functions(rng, tool)
    where = city(rng)
    question, call = phrase_question(rng, where, tool, place, units)
    kind = rng.random()
    if kind < 0.67:
        return Dialogue([user(question), assistant_calls(call)], tools)
    if kind < 0.72 and len(call[1]) == 1:
        asked = [user(rephrase(rng, pick(rng, "weather", "unplaced"))), assistant(WHERE)]
        return Dialogue([*asked, user(pick(rng, "weather", "answers").format(where)), assistant_calls(call)], tools)
    other = city(rng)
    if kind < 0.84:
        pair = [(tool["name"], call[1] | {place: spot}) for spot in (where, other)]
        if "unit" in str(call[1]):
            return Dialogue([user(question), assistant_calls(call)], tools)
        return Dialogue([user(pick(rng, "weather", "two").format(where, other)), assistant_calls(*pair)], tools)
    found, sentence = report(rng, where)
    follow_up = pick(rng, "weather", "follow_ups").format(other)
    return Dialogue([user(question), assistant_calls(call), tool_result(found), assistant(sentence), user(follow_up),
                     assistant_calls((tool["name"], call[1] | {place: other}))], tools)  # fmt: skip


def weather_answer(rng: Random) -> Dialogue:
    """Return a question, the call, its result, and the sentence about the result."""
    tool, place, units = weather_function(rng)
    where = city(rng)
    question, call = phrase_question(rng, where, tool, place, units)
    found, sentence = report(rng, where)
    tools = functions.mix_functions(rng, tool)
    if rng.random() < 0.15 and "unit" not in str(call[1]):
        other = city(rng)
        again, other_sentence = report(rng, other)
        pair = assistant_calls(call, (tool["name"], call[1] | {place: other}))
        asked, sentences = pick(rng, "weather", "two").format(where, other), f"{sentence} {other_sentence}"
        return Dialogue([user(asked), pair, tool_result(found), tool_result(again), assistant(sentences)], tools)
    return Dialogue([user(question), assistant_calls(call), tool_result(found), assistant(sentence)], tools)


def report(rng: Random, where: str) -> tuple[str, str]:
    """Return the result of a weather function, and the sentence that reports it."""
    kind = rng.random()
    if kind < 0.6:
        found, sentence = measurement(rng, where)
        return json.dumps(found, ensure_ascii=False, separators=rng.choice(((", ", ": "), (",", ":")))), sentence
    words = {"sky": sky(rng), "heat": degrees(rng), "where": where, "phrase": phrase(rng, 2, 7).rstrip(".!?")}
    if kind < 0.72:
        text = pick(rng, "weather", "sentences").format(**words)
        return text, text
    if kind < 0.92:
        text = pick(rng, "weather", "notes").format(**words)
        return text, f"The weather in {where}: {text}."
    problem = rng.choice(("city not found", "Unknown location", "timeout", "service unavailable", phrase(rng, 1, 4)))
    problem = problem.rstrip(".").replace('"', "")
    return json.dumps({"error": problem}, ensure_ascii=False), f"I am sorry, the function failed: {problem}."


def sky(rng: Random) -> str:
    return pick(rng, "weather", "conditions") if rng.random() < 0.7 else plain_word(rng)


def degrees(rng: Random) -> int | float:
    return round(rng.uniform(-20, 45), 1) if rng.random() < 0.2 else rng.randint(-25, 110)


def measurement(rng: Random, where: str) -> tuple[Json, str]:
    """Return a result as values by key, and its sentence: condition and temperature, then all other keys."""
    heat, condition = degrees(rng), sky(rng)
    known: list[tuple[str, Any]] = []
    sentence = f"In {where} it is"
    kind = rng.random()
    if kind < 0.9:
        if kind < 0.75:
            known.append((pick(rng, "weather", "condition_keys"), condition))
            sentence += f" {condition} with"
        known.append((pick(rng, "weather", "temperature_keys"), heat))
        sentence += f" {heat} degrees"
        if rng.random() < 0.35:
            unit = rng.choice(("Celsius", "Fahrenheit"))
            known.append((rng.choice(("unit", "units")), rng.choice((unit, unit.lower(), unit[0], unit[0].lower()))))
            sentence += f" {unit}"
    else:
        known.append((pick(rng, "weather", "condition_keys"), condition))
        sentence += f" {condition}"
    if rng.random() < 0.35:
        known.append((rng.choice(("location", "city", "place")), where))
    extras = []
    if rng.random() < 0.25:
        extra: Any = rng.choice((rng.randint(0, 100), plain_word(rng)))
        extras.append((rng.choice(("humidity", "wind", "wind_speed", "pressure", "rain", identifier(rng))), extra))
    rng.shuffle(known)
    sentence += "".join(f", {key} {item}" for key, item in extras)
    return dict(known + extras), sentence + "."


def weather_refusal(rng: Random) -> Dialogue:
    """Return a question that no function can answer: there is none, or only others."""
    placed = rng.random() < 0.75
    question = pick(rng, "weather", "questions" if placed else "unplaced").format(city(rng))
    tools = () if rng.random() < 0.55 else functions.mix_functions(rng, functions.unrelated_function(rng))
    return Dialogue(exchange(rephrase(rng, question), NO_TOOL).messages, tools)


def weather_talk(rng: Random) -> Dialogue:
    """Return a message that needs none of the functions that are offered."""
    tools = functions.mix_functions(
        rng, weather_function(rng)[0] if rng.random() < 0.6 else functions.unrelated_function(rng)
    )
    subject = rng.choice((talk.talk, talk.talk, arithmetic, repetition, unknown))
    found = subject(rng)
    return found if found.messages[0]["role"] == "system" else Dialogue(found.messages, tools)
