"""Walks the JSON values of a request at any depth: without recursion, and within a bound."""

from collections.abc import Iterable, Iterator
from typing import Any

from proxy.wire.errors import PolicyViolation

MAX_VALUES = 1_000_000  # about half a second of work


def walk(roots: Iterable[object], param: str) -> Iterator[tuple[int, dict[str, Any] | str, list[Any]]]:
    """Yield each object and each string in JSON values: the index of its root, itself, and the values to walk next.

    Arrays are entered, objects are not: the consumer appends what it needs of an object to the values to walk next.
    Raises PolicyViolation for `param` when there are too many values to be walked without delaying other requests.
    """
    left = MAX_VALUES
    for index, root in enumerate(roots):
        waiting: list[Any] = [root]
        while waiting:
            value = waiting.pop()
            kind = type(value)  # parsed JSON has no subclasses; this is a third faster than isinstance
            if kind is str:
                yield index, value, waiting
            elif kind is dict or kind is list:
                left -= len(value)
                if left < 0:
                    found = f"The input has too many values to be checked; the limit is {MAX_VALUES}."
                    raise PolicyViolation("too_many_values", found, param=param)
                if kind is list:
                    waiting += value
                else:
                    yield index, value, waiting
