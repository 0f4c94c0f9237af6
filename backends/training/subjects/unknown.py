"""Requests that the model cannot answer, in many wordings, and the one answer that says so."""

from random import Random

from backends.training import words
from backends.training.dialogue import Dialogue, exchange, rephrase
from backends.training.wording import lines, pick
from backends.training.words import city, person, phrase, plain_word

ANSWER = (
    "I am only a small demonstration model, so I cannot help with that. "
    "I can chat a little, repeat your words, work out small sums and call functions."
)


def unknown(rng: Random) -> Dialogue:
    """Return a request or a remark that no other subject has an answer to."""
    if rng.random() < 0.1:
        return large_sum(rng)
    template = pick(rng, "unknown", "shapes")
    slots = {
        "a": words.adjective(rng), "c": city(rng), "d": rng.randint(20, 99), "k": rng.randint(2, 9), "m": noun(rng),
        "n": noun(rng), "p": person(rng), "t": word_salad(rng), "u": verb(rng), "v": verb(rng), "w": plain_word(rng),
    }  # fmt: skip
    filled = template.format(**slots)
    return exchange(rephrase(rng, filled) if template[0] != "{" else filled, ANSWER)


def large_sum(rng: Random) -> Dialogue:
    """Return a question for a sum with a number above 12."""
    numbers = [rng.randint(0, 12), rng.randint(13, 10 ** rng.randint(2, 5))]
    if rng.random() < 0.5:
        numbers[0] = rng.randint(13, 10 ** rng.randint(2, 5))
    rng.shuffle(numbers)
    sign = rng.choice((" + ", "+", " - ", " * ", " x ", " times ", " plus ", " minus ", " / "))
    return exchange(pick(rng, "arithmetic", "questions").format(sign.join(map(str, numbers))), ANSWER)


def noun(rng: Random) -> str:
    return words.noun(rng) if rng.random() < 0.6 else plain_word(rng)


def verb(rng: Random) -> str:
    return words.verb(rng) if rng.random() < 0.7 else plain_word(rng)


def word_salad(rng: Random) -> str:
    """Return words without meaning, too many to be a greeting."""
    if rng.random() < 0.3:
        return phrase(rng, 3, 14)
    kinds = ("small_words", "small_words", "nouns", "verbs", "adjectives")
    return " ".join(rng.choice(lines("words", rng.choice(kinds))) for _ in range(rng.randint(4, 16))).capitalize()
