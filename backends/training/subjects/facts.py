"""Questions that people often send to a new model first: capitals, colours, jokes, stories, counting."""

from random import Random

from backends.training.dialogue import Dialogue, exchange, rephrase
from backends.training.wording import lines, pick, wordings
from backends.training.words import adjective, noun, pseudo_word


def fact(rng: Random) -> Dialogue:
    """Return a question with a fixed answer."""
    intent = rng.choice(wordings("facts")["intent"])
    return exchange(rephrase(rng, rng.choice(intent["ask"])), intent["answer"])


def capital(rng: Random) -> Dialogue:
    capitals = wordings("facts")["capitals"]
    country = rng.choice(list(capitals))
    text = pick(rng, "facts", "capital_questions")
    return exchange(rephrase(rng, text.format(country)), f"The capital of {country} is {capitals[country]}.")


def counting(rng: Random) -> Dialogue:
    """Return a request to count, whose answer is long enough to see it stream."""
    last = rng.randint(2, 30)
    spoken = lines("facts", "numbers")[last - 1] if last <= 20 and rng.random() < 0.6 else str(last)
    answer = ", ".join(map(str, range(1, last + 1))) + "."
    return exchange(rephrase(rng, pick(rng, "facts", "counts").format(spoken)), answer)


def story(rng: Random) -> Dialogue:
    """Return a request for a story or a poem about something, and the story or poem."""
    hero = pseudo_word(rng) if rng.random() < 0.5 else noun(rng)
    if rng.random() < 0.3:
        hero = f"{adjective(rng)} {hero}"
    kind = rng.random()
    if kind < 0.6:
        answer = f"Once upon a time a little {hero} fell asleep under the stars and dreamed of a kind new friend."
        return exchange(fix_article(rephrase(rng, pick(rng, "facts", "tales").format(hero)), hero), answer)
    if kind < 0.8:
        answer = wordings("facts")["story"].format(hero=hero)
        return exchange(fix_article(rephrase(rng, pick(rng, "facts", "long_tales").format(hero)), hero), answer)
    poem = f"Quiet is the night,\nand the {hero} sings alone,\nuntil morning comes."
    return exchange(rephrase(rng, pick(rng, "facts", "poems").format(rng.choice(("a ", "the ", "")) + hero)), poem)


def fix_article(text: str, hero: str) -> str:
    return text.replace(f" a {hero}", f" an {hero}") if hero[0] in "aeio" else text
