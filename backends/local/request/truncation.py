"""`truncation: "auto"`: drops the oldest turns of a conversation that is too long, but no system messages.

Source: https://platform.openai.com/docs/api-reference/responses/create#responses-create-truncation
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any

from proxy.wire.errors import RequestError

JSON = dict[str, Any]
TOO_LONG = "context_length_exceeded"


def fit_prompt(
    messages: Sequence[JSON], render: Callable[[Sequence[JSON]], list[int]], *, max_tokens: int, truncate: bool
) -> list[int]:
    """Return the prompt of a conversation; with `truncate`, of its newest turns that take at most `max_tokens`.

    A turn begins with a user message, so that calls stay with their results. Raises RequestError when not even the
    last turn fits into the context.
    """
    if not truncate:
        return render(messages)
    head = next((index for index, message in enumerate(messages) if message["role"] != "system"), len(messages))
    starts = [head] + [index for index in range(head + 1, len(messages)) if messages[index]["role"] == "user"]
    prompts: dict[int, list[int]] = {}

    def fits(start: int) -> bool:
        try:
            prompts[start] = render([*messages[:head], *messages[start:]])
        except RequestError as error:
            if error.code != TOO_LONG or start == starts[-1]:
                raise
            return False
        return len(prompts[start]) <= max_tokens

    if fits(starts[0]):
        return prompts[starts[0]]
    first_that_fits = bisect_left(starts, True, lo=1, key=fits)
    return prompts[starts[min(first_that_fits, len(starts) - 1)]]
