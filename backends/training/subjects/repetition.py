"""Saying back what one is told to say, whatever it is."""

from random import Random

from backends.training.dialogue import Dialogue, assistant, exchange, system, user
from backends.training.wording import lines, pick, wordings
from backends.training.words import arbitrary, code, number, phrase, plain, pseudo


def repetition(rng: Random) -> Dialogue:
    """Verbatim after a colon; inside quotes what they hold; otherwise without the full stop of the request."""
    kind = rng.random()
    if kind < 0.34:
        return after_colon(rng)
    if kind < 0.58:
        return direct(rng)
    if kind < 0.74:
        return one_word(rng)
    if kind < 0.86:
        return quoted(rng)
    if kind < 0.89:
        return several_times(rng)
    return ordered(rng)


def material(rng: Random) -> str:
    """What is to be repeated: mostly a few words, now and then a long row of them."""
    if rng.random() < 0.06:
        return pick(rng, "repetition", "sentences")
    length = rng.choice((1, 1, 2, 3, 4, 5, 6, 8, 10, 20 if rng.random() < 0.5 else 3))
    text = phrase(rng, length, length + 1)
    return text[0].upper() + text[1:] + rng.choice((".", "!", "?")) if rng.random() < 0.25 else text


def bare(rng: Random) -> str:
    """Material that a request can end with: the request's own full stop must not look like a part of it."""
    if rng.random() < 0.06:
        return pick(rng, "repetition", "sentences").rstrip(".!")
    source = rng.choice((plain, arbitrary, arbitrary, code, number, pseudo))
    text = source(rng) if rng.random() < 0.6 else phrase(rng, 2, 6)
    return text.rstrip(".!?,;:'\"`”*~_ ") or plain(rng)


def cased(rng: Random, lead: str) -> str:
    return lead[0].lower() + lead[1:] if rng.random() < 0.2 else lead


def after_colon(rng: Random) -> Dialogue:
    text = material(rng)
    joint = rng.choice((" ", " ", " ", "\n", "\n\n"))
    lead = cased(rng, pick(rng, "repetition", "after_colon"))
    if rng.random() < 0.15:
        marks = pick(rng, "repetition", "quotes")
        return exchange(f"{lead}{joint}{marks[0]}{text.strip(marks)}{marks[1]}", text.strip(marks))
    return exchange(lead + joint + text, text)


def direct(rng: Random) -> Dialogue:
    text = bare(rng)
    tail = pick(rng, "repetition", "tails") if rng.random() < 0.15 else ""
    lead = cased(rng, pick(rng, "repetition", "direct"))
    return exchange(f"{lead} {text}{tail}{rng.choice(('.', '', '.', '!'))}", text)


def one_word(rng: Random) -> Dialogue:
    text = rng.choice((pseudo, plain, arbitrary, code))(rng).rstrip(".!?,;:'\"`”*~_") or plain(rng)
    tail = pick(rng, "repetition", "tails") if rng.random() < 0.2 else ""
    lead = cased(rng, pick(rng, "repetition", "one_word"))
    return exchange(f"{lead} {text}{tail}{rng.choice(('.', '', '.'))}", text)


def quoted(rng: Random) -> Dialogue:
    marks = pick(rng, "repetition", "quotes")
    text = material(rng).strip("".join(lines("repetition", "quotes"))) or plain(rng)
    text = text.replace(marks[0], "").replace(marks[1], "") or plain(rng)
    lead = rng.choice(lines("repetition", rng.choice(("direct", "one_word", "after_colon"))))
    tail = pick(rng, "repetition", "tails") if rng.random() < 0.2 else ""
    return exchange(f"{cased(rng, lead)} {marks[0]}{text}{marks[1]}{tail}{rng.choice(('.', '', '.'))}", text)


def several_times(rng: Random) -> Dialogue:
    text = bare(rng)
    times, spoken = rng.choice(((2, "twice"), (2, "two times"), (3, "three times"), (3, "3 times")))
    return exchange(f"{rng.choice(('Say', 'Repeat', 'Write'))} {text} {spoken}.", " ".join([text] * times))


def ordered(rng: Random) -> Dialogue:
    """The order to repeat stands in the system's message."""
    if rng.random() < 0.5:
        text = material(rng)
        return Dialogue([system(pick(rng, "repetition", "parrots")), user(text), assistant(text)])
    text = bare(rng)
    marks = rng.choice(("  ", '""', "''")).strip()
    wording = pick(rng, "repetition", "always").format(marks[:1] + text + marks[1:])
    usual = rng.choice(rng.choice(wordings("talk")["intent"])["ask"])
    question = rng.choice((usual, phrase(rng), phrase(rng) + "?"))
    return Dialogue([system(wording + rng.choice((".", ""))), user(question), assistant(text)])
