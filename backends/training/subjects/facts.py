"""A handful of things everybody asks a new model first: capitals, colours, jokes, stories, counting."""

from random import Random

from backends.training.dialogue import Dialogue, exchange, said
from backends.training.wording import lines, pick, wordings
from backends.training.words import adjective, noun, pseudo


def fact(rng: Random) -> Dialogue:
    """One of the memorised answers."""
    intent = rng.choice(wordings("facts")["intent"])
    return exchange(said(rng, rng.choice(intent["ask"])), intent["answer"])


def capital(rng: Random) -> Dialogue:
    capitals = wordings("facts")["capitals"]
    country = rng.choice(list(capitals))
    text = pick(rng, "facts", "capital_questions")
    return exchange(said(rng, text.format(country)), f"The capital of {country} is {capitals[country]}.")


def counting(rng: Random) -> Dialogue:
    """Counting up, so that an answer takes a while and can be watched as it streams."""
    last = rng.randint(2, 30)
    spoken = lines("facts", "numbers")[last - 1] if last <= 20 and rng.random() < 0.6 else str(last)
    answer = ", ".join(map(str, range(1, last + 1))) + "."
    return exchange(said(rng, pick(rng, "facts", "counts").format(spoken)), answer)


def story(rng: Random) -> Dialogue:
    """A story or a poem about whatever is asked for."""
    hero = pseudo(rng) if rng.random() < 0.5 else noun(rng)
    if rng.random() < 0.3:
        hero = f"{adjective(rng)} {hero}"
    kind = rng.random()
    if kind < 0.6:
        answer = f"Once upon a time a little {hero} fell asleep under the stars and dreamed of a kind new friend."
        return exchange(article(said(rng, pick(rng, "facts", "tales").format(hero)), hero), answer)
    if kind < 0.8:
        answer = wordings("facts")["story"].format(hero=hero)
        return exchange(article(said(rng, pick(rng, "facts", "long_tales").format(hero)), hero), answer)
    poem = f"Quiet is the night,\nand the {hero} sings alone,\nuntil morning comes."
    return exchange(said(rng, pick(rng, "facts", "poems").format(rng.choice(("a ", "the ", "")) + hero)), poem)


def article(text: str, hero: str) -> str:
    return text.replace(f" a {hero}", f" an {hero}") if hero[0] in "aeio" else text
