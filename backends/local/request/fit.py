"""Makes a long conversation fit: with `truncation: "auto"` the oldest turns are left out, never what the system said.

Source: https://platform.openai.com/docs/api-reference/responses/create#responses-create-truncation
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any

from proxy.wire.errors import RequestError

JSON = dict[str, Any]
TOO_LONG = "context_length_exceeded"


def fitted(
    messages: Sequence[JSON], prompt_of: Callable[[Sequence[JSON]], list[int]], *, longest: int, whole: bool
) -> list[int]:
    """The prompt of the whole conversation, or, unless `whole`, of its newest turns that make at most `longest` tokens.

    A turn begins where the user speaks, so that calls stay with their results. Raises RequestError when not even the
    last turn fits.
    """
    if whole:
        return prompt_of(messages)
    head = next((index for index, message in enumerate(messages) if message["role"] != "system"), len(messages))
    starts = [head] + [index for index in range(head + 1, len(messages)) if messages[index]["role"] == "user"]
    prompts: dict[int, list[int]] = {}

    def fits(start: int) -> bool:
        try:
            prompts[start] = prompt_of([*messages[:head], *messages[start:]])
        except RequestError as error:
            if error.code != TOO_LONG or start == starts[-1]:
                raise
            return False
        return len(prompts[start]) <= longest

    if fits(starts[0]):
        return prompts[starts[0]]
    first_that_fits = bisect_left(starts, True, lo=1, key=fits)
    return prompts[starts[min(first_that_fits, len(starts) - 1)]]
