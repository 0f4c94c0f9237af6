"""Sums, differences and products of the numbers from 0 to 12."""

from collections.abc import Iterator
from itertools import product
from random import Random

from backends.training.dialogue import Dialogue, exchange
from backends.training.wording import pick, wordings


def arithmetic(rng: Random) -> Dialogue:
    """Return a question for a sum; the answer repeats the sum unless the question asks for the number only."""
    sign = rng.choice(("+", "-", "-", "*", "*"))
    left, right = rng.randint(0, 12), rng.randint(0, 12)
    if sign == "-" and left < right and rng.random() < 0.35:
        left, right = right, left
    answer = solve(left, sign, right)
    if rng.random() < 0.15:
        question = rng.choice(wordings("arithmetic")["spoken"][sign]).format(left, right)
    else:
        space = "" if rng.random() < 0.2 else " "
        written = rng.choice(wordings("arithmetic")["signs"][sign])
        space = space or ("" if len(written) == 1 else " ")
        question = pick(rng, "arithmetic", "questions").format(f"{left}{space}{written}{space}{right}")
    if rng.random() < 0.12:
        return exchange(question + pick(rng, "arithmetic", "bare"), answer.rstrip(".").split(" = ")[1])
    return exchange(question, answer)


def tables() -> Iterator[Dialogue]:
    """Yield a question for every sum, difference and product of the numbers from 0 to 12."""
    for left, sign, right in product(range(13), "+-*", range(13)):
        yield exchange(f"What is {left} {sign} {right}?", solve(left, sign, right))


def solve(left: int, sign: str, right: int) -> str:
    value = {"+": left + right, "-": left - right, "*": left * right}[sign]
    return f"{left} {sign} {right} = {value}."
