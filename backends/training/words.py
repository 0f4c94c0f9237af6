"""Draws words for dialogues: common words from lists, and made-up words that are in no list."""

import string
from random import Random

from backends.training.wording import lines, pick

_FOREIGN = "áàâäãåæçéèêëíìîïñóòôöõøúùûüýßžšłčРусскийпривет日本語你好世界안녕😀🚀🎉❤αβγδ"
_QUOTES = str.maketrans("", "", "\"'\\`“”,=")
_MARKS = "!?.,;:-+*/=#@%&$()[]'\"_~^|<>"


def pseudo_word(rng: Random) -> str:
    """Return a made-up pronounceable word in lower case, or now and then a row of random letters."""
    if rng.random() < 0.12:
        return "".join(rng.choices(string.ascii_lowercase, k=rng.randint(1, 8)))
    starts, middles, ends = (lines("words", part) for part in ("starts", "middles", "ends"))
    return "".join(
        rng.choice(starts) + rng.choice(middles) + rng.choice(ends) for _ in range(rng.choice((1, 1, 2, 2, 2, 3)))
    )


def common_word(rng: Random) -> str:
    """Return a word from one of the lists; long lists are drawn from more often."""
    kinds = ("names", "nouns", "adjectives", "verbs", "small_words", "colours", "test_words")
    return rng.choice(rng.choices([lines("words", kind) for kind in kinds], (16, 44, 24, 40, 22, 4, 8))[0])


def noun(rng: Random) -> str:
    return pick(rng, "words", "nouns")


def adjective(rng: Random) -> str:
    return pick(rng, "words", "adjectives")


def verb(rng: Random) -> str:
    return pick(rng, "words", "verbs")


def colour(rng: Random) -> str:
    return pick(rng, "words", "colours")


def plain_word(rng: Random) -> str:
    """Return a word in its usual spelling; half of these words are made up."""
    return pseudo_word(rng) if rng.random() < 0.5 else common_word(rng)


def number(rng: Random) -> str:
    if rng.random() < 0.1:
        return rng.choice("123456789") + "".join(
            rng.choices(rng.choice(("0123456789", "17", "05")), k=rng.randint(2, 5))
        )
    return str(rng.randrange(10 ** rng.choice((1, 1, 2, 2, 3, 4, 6))))


def arbitrary_word(rng: Random) -> str:
    """Return anything without a space: a word in any case, a number, a code, punctuation or another script."""
    kinds = (
        plain_word,
        _capitalized_word,
        _upper_word,
        number,
        code_word,
        _mixed_case_word,
        _punctuated_word,
        _punctuation,
        _foreign_letters,
    )
    return rng.choices(kinds, (45, 13, 8, 8, 12, 4, 3, 3, 4))[0](rng)


def code_word(rng: Random) -> str:
    """Return a word joined to digits or another word, or random characters: `pong-1234`, `Kora_7`, `x9f2`."""
    word, digits = plain_word(rng), number(rng)
    letters = "".join(rng.choices(string.ascii_letters + string.digits, k=rng.randint(3, 8)))
    joint = rng.choice(("-", "_", "", ".", "/", ":"))
    return rng.choice((word + joint + digits, word + joint + plain_word(rng), word.upper() + joint + digits, letters))


def phrase(rng: Random, shortest: int = 1, longest: int = 6) -> str:
    """Return words with spaces between them, all arbitrary or all plain."""
    source = arbitrary_word if rng.random() < 0.5 else plain_word
    return " ".join(source(rng) for _ in range(rng.randint(shortest, longest)))


def clear_words(rng: Random, longest: int = 1) -> str:
    """Return words whose end is clear in a sentence without quotes: no conjunctions, quotes or commas."""
    found = [
        word
        for word in phrase(rng, 1, longest).translate(_QUOTES).split()
        if word.lower() not in lines("words", "joints")
    ]
    text = " ".join(found).strip(".,;:!?=*~_")
    return text or pseudo_word(rng)


def person(rng: Random) -> str:
    return pick(rng, "words", "names") if rng.random() < 0.4 else pseudo_word(rng).capitalize()


def city(rng: Random) -> str:
    """Return a city, often made up, sometimes with its country after a comma."""
    if rng.random() < 0.5:
        name = pick(rng, "words", "cities")
    else:
        name = " ".join(pseudo_word(rng).capitalize() for _ in range(rng.choice((1, 1, 1, 2))))
    if rng.random() < 0.12:
        name += ", " + (pick(rng, "words", "regions") if rng.random() < 0.5 else pseudo_word(rng).capitalize())
    return name.lower() if rng.random() < 0.04 else name


def identifier(rng: Random) -> str:
    """Return a made-up name for a function or an argument."""
    parts = [_short_word(rng).lower() for _ in range(rng.choice((1, 1, 2, 2, 2, 3)))]
    style = rng.random()
    if style < 0.75:
        return "_".join(parts)
    if style < 0.9:
        return parts[0] + "".join(part.capitalize() for part in parts[1:])
    return "-".join(parts)


def _short_word(rng: Random) -> str:
    word = plain_word(rng)
    return word if len(word) < 9 else common_word(rng)


def _capitalized_word(rng: Random) -> str:
    return plain_word(rng).capitalize()


def _upper_word(rng: Random) -> str:
    return plain_word(rng).upper()


def _mixed_case_word(rng: Random) -> str:
    return "".join(rng.choice((letter.upper(), letter)) for letter in plain_word(rng))


def _punctuated_word(rng: Random) -> str:
    return plain_word(rng) + rng.choice("!?.,;:%")


def _punctuation(rng: Random) -> str:
    return "".join(rng.choices(_MARKS, k=rng.randint(1, 4)))


def _foreign_letters(rng: Random) -> str:
    return "".join(rng.choices(_FOREIGN, k=rng.randint(1, 4)))
