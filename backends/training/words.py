"""The words dialogues are made of: common ones from lists, and arbitrary ones nobody has seen before."""

import string
from random import Random

from backends.training.wording import lines, pick

_FOREIGN = "áàâäãåæçéèêëíìîïñóòôöõøúùûüýßžšłčРусскийпривет日本語你好世界안녕😀🚀🎉❤αβγδ"
_QUOTES = str.maketrans("", "", "\"'\\`“”,=")
_MARKS = "!?.,;:-+*/=#@%&$()[]'\"_~^|<>"


def pseudo(rng: Random) -> str:
    """A pronounceable word that most likely exists in no list, in small letters."""
    if rng.random() < 0.12:
        return "".join(rng.choices(string.ascii_lowercase, k=rng.randint(1, 8)))
    starts, middles, ends = (lines("words", part) for part in ("starts", "middles", "ends"))
    return "".join(
        rng.choice(starts) + rng.choice(middles) + rng.choice(ends) for _ in range(rng.choice((1, 1, 2, 2, 2, 3)))
    )


def common(rng: Random) -> str:
    """A word from one of the lists; long lists are drawn from more often."""
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


def plain(rng: Random) -> str:
    """A word in its usual spelling; every second one is made up."""
    return pseudo(rng) if rng.random() < 0.5 else common(rng)


def number(rng: Random) -> str:
    if rng.random() < 0.1:
        return rng.choice("123456789") + "".join(
            rng.choices(rng.choice(("0123456789", "17", "05")), k=rng.randint(2, 5))
        )
    return str(rng.randrange(10 ** rng.choice((1, 1, 2, 2, 3, 4, 6))))


def arbitrary(rng: Random) -> str:
    """Anything without a space: words in any case, numbers, codes, and at times signs or other scripts."""
    kinds = (plain, _capital, _upper, number, code, _mixed, _marked, _marks, _foreign)
    return rng.choices(kinds, (45, 13, 8, 8, 12, 4, 3, 3, 4))[0](rng)


def code(rng: Random) -> str:
    """A word with digits in it or beside it, as in `pong-1234`, `Kora_7` or `x9f2`."""
    word, digits = plain(rng), number(rng)
    letters = "".join(rng.choices(string.ascii_letters + string.digits, k=rng.randint(3, 8)))
    joint = rng.choice(("-", "_", "", ".", "/", ":"))
    return rng.choice((word + joint + digits, word + joint + plain(rng), word.upper() + joint + digits, letters))


def phrase(rng: Random, shortest: int = 1, longest: int = 6) -> str:
    """Arbitrary words in a row."""
    source = arbitrary if rng.random() < 0.5 else plain
    return " ".join(source(rng) for _ in range(rng.randint(shortest, longest)))


def unmistakable(rng: Random, longest: int = 1) -> str:
    """Words to fill in where a sentence must show without quotes where they end: no joints, no quotes, no commas."""
    found = [
        word
        for word in phrase(rng, 1, longest).translate(_QUOTES).split()
        if word.lower() not in lines("words", "joints")
    ]
    text = " ".join(found).strip(".,;:!?=*~_")
    return text or pseudo(rng)


def person(rng: Random) -> str:
    return pick(rng, "words", "names") if rng.random() < 0.4 else pseudo(rng).capitalize()


def city(rng: Random) -> str:
    """A city, often made up, sometimes with its country behind a comma."""
    if rng.random() < 0.5:
        name = pick(rng, "words", "cities")
    else:
        name = " ".join(pseudo(rng).capitalize() for _ in range(rng.choice((1, 1, 1, 2))))
    if rng.random() < 0.12:
        name += ", " + (pick(rng, "words", "regions") if rng.random() < 0.5 else pseudo(rng).capitalize())
    return name.lower() if rng.random() < 0.04 else name


def identifier(rng: Random) -> str:
    """A made-up name for a function or an argument."""
    parts = [_short(rng).lower() for _ in range(rng.choice((1, 1, 2, 2, 2, 3)))]
    style = rng.random()
    if style < 0.75:
        return "_".join(parts)
    if style < 0.9:
        return parts[0] + "".join(part.capitalize() for part in parts[1:])
    return "-".join(parts)


def _short(rng: Random) -> str:
    word = plain(rng)
    return word if len(word) < 9 else common(rng)


def _capital(rng: Random) -> str:
    return plain(rng).capitalize()


def _upper(rng: Random) -> str:
    return plain(rng).upper()


def _mixed(rng: Random) -> str:
    return "".join(rng.choice((letter.upper(), letter)) for letter in plain(rng))


def _marked(rng: Random) -> str:
    return plain(rng) + rng.choice("!?.,;:%")


def _marks(rng: Random) -> str:
    return "".join(rng.choices(_MARKS, k=rng.randint(1, 4)))


def _foreign(rng: Random) -> str:
    return "".join(rng.choices(_FOREIGN, k=rng.randint(1, 4)))
