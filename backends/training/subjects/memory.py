"""Several turns: what was said earlier is asked for later."""

from random import Random

from backends.training.dialogue import Dialogue, Json, assistant, exchange, user
from backends.training.subjects.arithmetic import arithmetic
from backends.training.subjects.repetition import repetition
from backends.training.subjects.talk import OFFER, talk
from backends.training.wording import pick, wordings
from backends.training.words import adjective, city, colour, noun, number, person, plain, pseudo

NOTED = "I will remember that."
UNTOLD = "You have not told me that."


def thing(rng: Random, kind: str) -> str:
    if kind == "colour":
        return colour(rng) if rng.random() < 0.6 else pseudo(rng)
    if kind == "person":
        return person(rng)
    if kind == "city":
        return city(rng)
    if kind == "number":
        return number(rng)
    if kind == "noun":
        return f"{adjective(rng)} {noun(rng)}" if rng.random() < 0.4 else plain(rng).lower()
    return rng.choice((plain(rng), pseudo(rng), pseudo(rng).upper(), f"{plain(rng)}-{number(rng)}"))


def name_told(rng: Random) -> tuple[Dialogue, str, str]:
    name = person(rng)
    told = exchange(pick(rng, "memory", "told_name").format(name), f"Nice to meet you, {name}! {OFFER}")
    return told, pick(rng, "memory", "asked_name"), f"Your name is {name}."


def thing_told(rng: Random) -> tuple[Dialogue, str, str]:
    kind, told, asked, answer = rng.choice(wordings("memory")["things"])
    item = thing(rng, kind)
    return exchange(told.format(item), NOTED), asked, answer.format(item)


def memory(rng: Random) -> Dialogue:
    """Something is told, other things are spoken of, then it is asked for; or it never was told."""
    kind = rng.random()
    if kind < 0.16:
        return before(rng)
    told, asked, answer = (name_told if rng.random() < 0.5 else thing_told)(rng)
    if kind < 0.23:
        return Dialogue(between(rng, rng.choice((0, 0, 1, 2))) + exchange(asked, UNTOLD).messages)
    messages = between(rng, rng.choice((0, 0, 0, 1))) + told.messages
    if kind < 0.5:
        other, other_asked, other_answer = thing_told(rng)
        if other_asked != asked:
            messages += other.messages
            asked, answer = rng.choice(((asked, answer), (other_asked, other_answer)))
    messages += between(rng, rng.choice((0, 0, 1, 1, 2, 3)))
    return Dialogue(messages + exchange(asked, answer).messages)


def between(rng: Random, count: int) -> list[Json]:
    """Other short exchanges, with nothing in them about what people are called."""
    spoken: list[Json] = []
    while len(spoken) < 2 * count:
        lesson = rng.choice((talk, talk, arithmetic, repetition))(rng)
        if lesson.messages[0]["role"] == "user" and "Nice to meet you, " not in lesson.messages[1]["content"]:
            spoken += lesson.messages
    return spoken


def before(rng: Random) -> Dialogue:
    """Asked for the last or the first thing that somebody said."""
    count = rng.choice((1, 1, 2, 3))
    messages = between(rng, count)
    kind = rng.random()
    if kind < 0.35:
        asked = pick(rng, "memory", "again")
        return Dialogue([*messages, user(asked), assistant(messages[-1]["content"])])
    if kind < 0.7:
        asked = pick(rng, "memory", "last")
        return Dialogue([*messages, user(asked), assistant(f"You said: {messages[-2]['content']}")])
    asked = pick(rng, "memory", "first")
    return Dialogue([*messages, user(asked), assistant(f"You first said: {messages[0]['content']}")])
