"""Polite conversation: greetings, thanks, introductions, small facts."""

from random import Random

from backends.training.dialogue import Dialogue, exchange, rephrase
from backends.training.wording import pick, wordings
from backends.training.words import person

OFFER = "How can I help you today?"
ABLE = "I can chat a little, repeat your words, work out small sums, write small JSON objects and call functions."


def talk(rng: Random) -> Dialogue:
    """Return a polite question or remark and its answer, sometimes with a typing error."""
    if rng.random() < 0.12:
        return introduction(rng)
    intent = rng.choice(wordings("talk")["intent"])
    text = rng.choice(intent["ask"])
    kind = rng.random()
    if kind < 0.12:
        text = text.lower()
    elif kind < 0.16:
        text = text.upper()
    elif kind < 0.26:
        text = misspell(rng, text)
    elif kind < 0.5 and len(text) > 9:
        text = rephrase(rng, text)
    elif kind < 0.56:
        text = text.rstrip("!.?") + rng.choice(("!!", "!", "...", " :)", "?", ""))
    return exchange(text, intent["answer"])


def introduction(rng: Random) -> Dialogue:
    """Return a message with a name, and a greeting by that name."""
    name = person(rng)
    opener = pick(rng, "talk", "openers")
    kind = rng.random()
    if kind < 0.35:
        return exchange(f"Say {opener.lower()} to {name}{rng.choice(('.', '', '!'))}", f"{opener}, {name}!")
    greeting = rng.choice((f"{opener}! ", f"{opener}, ", ""))
    claim = rng.choice(("I am {}.", "my name is {}.", "I'm {}.", "this is {}.", "My name is {}.")).format(name)
    if not greeting or greeting.endswith("! "):
        claim = claim[0].upper() + claim[1:]
    return exchange(greeting + rng.choice((claim, claim[:-1])), f"Nice to meet you, {name}! {OFFER}")


def misspell(rng: Random, text: str) -> str:
    """Return the text with one letter omitted, doubled or swapped with the next."""
    if len(text) < 5:
        return text
    at = rng.randrange(1, len(text) - 1)
    return rng.choice((text[:at] + text[at + 1 :], text[:at] + text[at - 1] + text[at:],
                       text[: at - 1] + text[at] + text[at - 1] + text[at + 1 :]))  # fmt: skip
