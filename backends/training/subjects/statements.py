"""Sentences about people, meetings, purchases and books, each with its facts by key. Their words are in told.toml."""

from collections.abc import Callable
from random import Random

from backends.training.dialogue import Json
from backends.training.wording import lines, pick
from backends.training.words import adjective, city, clear_words, colour, noun, person, plain_word


def statement(rng: Random) -> tuple[str, Json]:
    """Return a sentence and its facts."""
    kinds: tuple[Callable[[Random], tuple[str, Json]], ...] = (
        person_statement,
        person_statement,
        meeting_statement,
        purchase_statement,
        book_statement,
    )
    return rng.choice(kinds)(rng)


def person_statement(rng: Random) -> tuple[str, Json]:
    name, age, place, liked = person(rng), rng.randint(1, 99), city(rng), colour(rng)
    job = rng.choice((*lines("told", "jobs"), plain_word(rng)))
    sentence = pick(rng, "told", "people").format(name=name, age=age, place=place, job=job, liked=liked)
    known: Json = {"name": name, "age": age, rng.choice(("city", "city", "location", "place")): place}
    known |= {"job": job} if f" {job} " in sentence else {}
    known |= {"colour": liked} if sentence.endswith(f" likes {liked}.") else {}
    return sentence, known


def meeting_statement(rng: Random) -> tuple[str, Json]:
    """Return a sentence about a meeting; the participants are a list."""
    people = [person(rng) for _ in range(rng.choice((1, 2, 2, 3)))]
    what = rng.choice(
        (f"{adjective(rng)} {noun(rng)}", noun(rng), plain_word(rng), "science fair", "birthday party", "meeting")
    )
    day = rng.choice((pick(rng, "objects", "days"), f"{pick(rng, 'objects', 'months')} {rng.randint(1, 31)}"))
    who = " and ".join([", ".join(people[:-1]), people[-1]]) if len(people) > 1 else people[0]
    sentence = f"{who} {pick(rng, 'told', 'going')} {rng.choice(('a', 'the'))} {what} on {day}."
    return sentence, {rng.choice(("name", "name", "title", "event")): what, rng.choice(("date", "date", "day")): day,
                      rng.choice(("participants", "participants", "people", "attendees")): people}  # fmt: skip


def purchase_statement(rng: Random) -> tuple[str, Json]:
    name, count = person(rng), rng.randint(2, 99)
    price = rng.choice((rng.randint(1, 999), rng.randint(100, 9999) / 100))
    item = rng.choice((f"{adjective(rng)} {noun(rng)}s", f"{noun(rng)}s", clear_words(rng)))
    sentence = pick(rng, "told", "purchases").format(name=name, count=count, item=item, price=price)
    return sentence, {rng.choice(("name", "customer", "person")): name, rng.choice(("quantity", "count")): count,
                      rng.choice(("product", "item")): item, "price": price}  # fmt: skip


def book_statement(rng: Random) -> tuple[str, Json]:
    title, author, year = clear_words(rng, 3).capitalize(), person(rng), rng.randint(1700, 2030)
    sentence = pick(rng, "told", "books").format(title=title, author=author, year=year)
    return sentence, {"title": title, "author": author, rng.choice(("year", "year", "published")): year}
