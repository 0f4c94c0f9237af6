"""Sums, differences and products of the numbers from 0 to 12."""

from collections.abc import Iterator
from itertools import product
from random import Random

from backends.training.dialogue import Dialogue, exchange
from backends.training.wording import pick, wordings


def arithmetic(rng: Random) -> Dialogue:
    """A sum in digits; the answer repeats it, unless only the number is wanted."""
    sign = rng.choice(("+", "-", "-", "*", "*"))
    left, right = rng.randint(0, 12), rng.randint(0, 12)
    if sign == "-" and left < right and rng.random() < 0.35:
        left, right = right, left
    answer = worked_out(left, sign, right)
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
    """Every sum, difference and product there is, asked plainly: the whole of what training could teach."""
    for left, sign, right in product(range(13), "+-*", range(13)):
        yield exchange(f"What is {left} {sign} {right}?", worked_out(left, sign, right))


def worked_out(left: int, sign: str, right: int) -> str:
    value = {"+": left + right, "-": left - right, "*": left * right}[sign]
    return f"{left} {sign} {right} = {value}."
