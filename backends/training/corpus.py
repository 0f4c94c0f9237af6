"""Mixes the subjects into an endless sequence of dialogues; the same seed gives the same sequence."""

from collections.abc import Iterator
from random import Random

from backends.training.dialogue import Dialogue, Json, Subject, system
from backends.training.subjects import (
    arithmetic,
    everyday,
    facts,
    memory,
    objects,
    repetition,
    schemas,
    talk,
    unknown,
    weather,
)
from backends.training.wording import lines, pick
from backends.training.words import adjective, noun, person, phrase, verb

# The subjects by name, with their share of the dialogues in percent.
SUBJECTS: dict[str, tuple[Subject, float]] = {
    "talk": (talk.talk, 3.5),
    "facts": (facts.fact, 1),
    "capitals": (facts.capital, 1),
    "counting": (facts.counting, 2.5),
    "stories": (facts.story, 1),
    "unknown": (unknown.unknown, 4),
    "repetition": (repetition.repetition, 9),
    "arithmetic": (arithmetic.arithmetic, 13),
    "objects": (objects.objects, 12),
    "schemas": (schemas.schemas, 10),
    "memory": (memory.memory, 8),
    "weather_call": (weather.weather_call, 7),
    "weather_answer": (weather.weather_answer, 7),
    "weather_refusal": (weather.weather_refusal, 1.5),
    "weather_talk": (weather.weather_talk, 2.5),
    "everyday_call": (everyday.everyday_call, 14),
    "everyday_answer": (everyday.everyday_answer, 3),
}
EASY = ("talk", "talk", "repetition", "arithmetic", "facts", "unknown")
NEUTRAL = ("talk", "talk", "repetition")
BESIDE_WEATHER = (*NEUTRAL, "arithmetic", "unknown")


def dialogues(seed: str) -> Iterator[Dialogue]:
    """Yield lessons without end, in the shares of SUBJECTS; some continue with small talk."""
    names = list(SUBJECTS)
    shares = [share for _, share in SUBJECTS.values()]
    number = 0
    while True:
        rng = Random(f"{seed}/{number}")
        name = rng.choices(names, shares)[0]
        found = lesson(rng, name)
        continues = rng.random() < (0.2 if name.endswith("_answer") else 0.03)
        yield Dialogue(found.messages + talk.talk(rng).messages, found.tools) if continues else found
        number += 1


def lesson(rng: Random, name: str) -> Dialogue:
    """Return one dialogue of a subject as people would send it, sometimes after other turns or a system message."""
    main = SUBJECTS[name][0](rng)
    messages = list(main.messages)
    has_system = messages[0]["role"] == "system"
    if not has_system and name != "memory" and rng.random() < 0.2:
        for _ in range(rng.choice((1, 1, 2, 3))):
            messages = unrelated_turn(rng, name) + messages
    if not has_system and rng.random() < 0.4:
        messages.insert(0, system(instructions(rng)))
    return Dialogue(messages, main.tools)


def unrelated_turn(rng: Random, name: str) -> list[Json]:
    """Return messages unrelated to the subject's functions; none if they begin with a system message."""
    choice: tuple[str, ...] = EASY
    if name.startswith(("weather", "everyday")):
        choice = NEUTRAL if name.startswith("everyday") else BESIDE_WEATHER
    messages = SUBJECTS[rng.choice(choice)][0](rng).messages
    return messages if messages[0]["role"] == "user" else []


def instructions(rng: Random) -> str:
    """Return a system message that changes nothing in the expected answer; now and then a very long one."""
    kind = rng.random()
    if kind < 0.4:
        return lines("systems", "systems")[0]
    if kind < 0.75:
        return pick(rng, "systems", "systems")
    if kind < 0.8:
        return f"You are {person(rng)}, {rng.choice(('a', 'the'))} {adjective(rng)} {noun(rng)}."
    count = rng.choice((1, 2, 3)) if rng.random() < 0.95 else rng.randint(10, 100)
    return " ".join(rule(rng) for _ in range(count))


def rule(rng: Random) -> str:
    kind = rng.random()
    if kind < 0.6:
        return (f"{rng.choice(('You', 'Always', 'Never', 'Please', 'Do not', 'You must', 'We'))} {verb(rng)} "
                f"{rng.choice(('the', 'a', 'your', 'every'))} {adjective(rng)} {noun(rng)}.")  # fmt: skip
    return phrase(rng, 3, 12).capitalize() + "."
