"""Repeating a given text."""

from random import Random

from backends.training.dialogue import Dialogue, assistant, exchange, system, user
from backends.training.wording import lines, pick, wordings
from backends.training.words import arbitrary_word, code_word, number, phrase, plain_word, pseudo_word


def repetition(rng: Random) -> Dialogue:
    """Return a request to repeat a text: after a colon, inside quotes, or without the request's own full stop."""
    kind = rng.random()
    if kind < 0.34:
        return after_colon(rng)
    if kind < 0.58:
        return direct(rng)
    if kind < 0.74:
        return one_word(rng)
    if kind < 0.86:
        return inside_quotes(rng)
    if kind < 0.89:
        return several_times(rng)
    return by_system_message(rng)


def text_to_repeat(rng: Random) -> str:
    """Return the text to repeat: mostly a few words, now and then many."""
    if rng.random() < 0.06:
        return pick(rng, "repetition", "sentences")
    length = rng.choice((1, 1, 2, 3, 4, 5, 6, 8, 10, 20 if rng.random() < 0.5 else 3))
    text = phrase(rng, length, length + 1)
    return text[0].upper() + text[1:] + rng.choice((".", "!", "?")) if rng.random() < 0.25 else text


def unpunctuated_text(rng: Random) -> str:
    """Return a text for the end of a request, without punctuation that could belong to the request."""
    if rng.random() < 0.06:
        return pick(rng, "repetition", "sentences").rstrip(".!")
    source = rng.choice((plain_word, arbitrary_word, arbitrary_word, code_word, number, pseudo_word))
    text = source(rng) if rng.random() < 0.6 else phrase(rng, 2, 6)
    return text.rstrip(".!?,;:'\"`”*~_ ") or plain_word(rng)


def vary_case(rng: Random, lead: str) -> str:
    return lead[0].lower() + lead[1:] if rng.random() < 0.2 else lead


def after_colon(rng: Random) -> Dialogue:
    text = text_to_repeat(rng)
    joint = rng.choice((" ", " ", " ", "\n", "\n\n"))
    lead = vary_case(rng, pick(rng, "repetition", "after_colon"))
    if rng.random() < 0.15:
        marks = pick(rng, "repetition", "quotes")
        return exchange(f"{lead}{joint}{marks[0]}{text.strip(marks)}{marks[1]}", text.strip(marks))
    return exchange(lead + joint + text, text)


def direct(rng: Random) -> Dialogue:
    text = unpunctuated_text(rng)
    tail = pick(rng, "repetition", "tails") if rng.random() < 0.15 else ""
    lead = vary_case(rng, pick(rng, "repetition", "direct"))
    return exchange(f"{lead} {text}{tail}{rng.choice(('.', '', '.', '!'))}", text)


def one_word(rng: Random) -> Dialogue:
    text = rng.choice((pseudo_word, plain_word, arbitrary_word, code_word))(rng)
    text = text.rstrip(".!?,;:'\"`”*~_") or plain_word(rng)
    tail = pick(rng, "repetition", "tails") if rng.random() < 0.2 else ""
    lead = vary_case(rng, pick(rng, "repetition", "one_word"))
    return exchange(f"{lead} {text}{tail}{rng.choice(('.', '', '.'))}", text)


def inside_quotes(rng: Random) -> Dialogue:
    marks = pick(rng, "repetition", "quotes")
    text = text_to_repeat(rng).strip("".join(lines("repetition", "quotes"))) or plain_word(rng)
    text = text.replace(marks[0], "").replace(marks[1], "") or plain_word(rng)
    lead = rng.choice(lines("repetition", rng.choice(("direct", "one_word", "after_colon"))))
    tail = pick(rng, "repetition", "tails") if rng.random() < 0.2 else ""
    return exchange(f"{vary_case(rng, lead)} {marks[0]}{text}{marks[1]}{tail}{rng.choice(('.', '', '.'))}", text)


def several_times(rng: Random) -> Dialogue:
    text = unpunctuated_text(rng)
    times, spoken = rng.choice(((2, "twice"), (2, "two times"), (3, "three times"), (3, "3 times")))
    return exchange(f"{rng.choice(('Say', 'Repeat', 'Write'))} {text} {spoken}.", " ".join([text] * times))


def by_system_message(rng: Random) -> Dialogue:
    """Return a dialogue whose system message is the order to repeat."""
    if rng.random() < 0.5:
        text = text_to_repeat(rng)
        return Dialogue([system(pick(rng, "repetition", "parrots")), user(text), assistant(text)])
    text = unpunctuated_text(rng)
    marks = rng.choice(("  ", '""', "''")).strip()
    wording = pick(rng, "repetition", "always").format(marks[:1] + text + marks[1:])
    usual = rng.choice(rng.choice(wordings("talk")["intent"])["ask"])
    question = rng.choice((usual, phrase(rng), phrase(rng) + "?"))
    return Dialogue([system(wording + rng.choice((".", ""))), user(question), assistant(text)])
