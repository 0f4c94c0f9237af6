"""Several turns: a later message asks about an earlier one."""

from random import Random

from backends.training.dialogue import Dialogue, Json, assistant, exchange, user
from backends.training.subjects.arithmetic import arithmetic
from backends.training.subjects.repetition import repetition
from backends.training.subjects.talk import OFFER, talk
from backends.training.wording import pick, wordings
from backends.training.words import adjective, city, colour, noun, number, person, plain_word, pseudo_word

NOTED = "I will remember that."
NOT_STATED = "You have not told me that."


def random_thing(rng: Random, kind: str) -> str:
    if kind == "colour":
        return colour(rng) if rng.random() < 0.6 else pseudo_word(rng)
    if kind == "person":
        return person(rng)
    if kind == "city":
        return city(rng)
    if kind == "number":
        return number(rng)
    if kind == "noun":
        return f"{adjective(rng)} {noun(rng)}" if rng.random() < 0.4 else plain_word(rng).lower()
    return rng.choice((plain_word(rng), pseudo_word(rng), pseudo_word(rng).upper(), f"{plain_word(rng)}-{number(rng)}"))


def name_statement(rng: Random) -> tuple[Dialogue, str, str]:
    name = person(rng)
    statement = exchange(pick(rng, "memory", "told_name").format(name), f"Nice to meet you, {name}! {OFFER}")
    return statement, pick(rng, "memory", "asked_name"), f"Your name is {name}."


def thing_statement(rng: Random) -> tuple[Dialogue, str, str]:
    kind, template, asked, answer = rng.choice(wordings("memory")["things"])
    item = random_thing(rng, kind)
    return exchange(template.format(item), NOTED), asked, answer.format(item)


def memory(rng: Random) -> Dialogue:
    """Return a dialogue with a statement, other turns, and a question about it; or with the question alone."""
    kind = rng.random()
    if kind < 0.16:
        return recall_message(rng)
    statement, asked, answer = (name_statement if rng.random() < 0.5 else thing_statement)(rng)
    if kind < 0.23:
        return Dialogue(small_talk(rng, rng.choice((0, 0, 1, 2))) + exchange(asked, NOT_STATED).messages)
    messages = small_talk(rng, rng.choice((0, 0, 0, 1))) + statement.messages
    if kind < 0.5:
        other, other_asked, other_answer = thing_statement(rng)
        if other_asked != asked:
            messages += other.messages
            asked, answer = rng.choice(((asked, answer), (other_asked, other_answer)))
    messages += small_talk(rng, rng.choice((0, 0, 1, 1, 2, 3)))
    return Dialogue(messages + exchange(asked, answer).messages)


def small_talk(rng: Random, count: int) -> list[Json]:
    """Return `count` short exchanges in which the user does not give a name."""
    messages: list[Json] = []
    while len(messages) < 2 * count:
        lesson = rng.choice((talk, talk, arithmetic, repetition))(rng)
        if lesson.messages[0]["role"] == "user" and "Nice to meet you, " not in lesson.messages[1]["content"]:
            messages += lesson.messages
    return messages


def recall_message(rng: Random) -> Dialogue:
    """Return a dialogue that ends with a question for the last or the first message."""
    count = rng.choice((1, 1, 2, 3))
    messages = small_talk(rng, count)
    kind = rng.random()
    if kind < 0.35:
        asked = pick(rng, "memory", "again")
        return Dialogue([*messages, user(asked), assistant(messages[-1]["content"])])
    if kind < 0.7:
        asked = pick(rng, "memory", "last")
        return Dialogue([*messages, user(asked), assistant(f"You said: {messages[-2]['content']}")])
    asked = pick(rng, "memory", "first")
    return Dialogue([*messages, user(asked), assistant(f"You first said: {messages[0]['content']}")])
