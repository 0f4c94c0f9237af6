"""`truncation: "auto"`: drops the oldest turns of a conversation that is too long, but no system messages.

Of a last turn that is too long by itself, such as one of many tool calls, the oldest steps are dropped.

Source: https://platform.openai.com/docs/api-reference/responses/create#responses-create-truncation
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any

from proxy.wire.errors import RequestError

JSON = dict[str, Any]
TOO_LONG = "context_length_exceeded"


Render = Callable[[Sequence[JSON]], list[int]]


def fit_prompt(messages: Sequence[JSON], render: Render, *, max_tokens: int, truncate: bool) -> list[int]:
    """Return the prompt of a conversation; with `truncate`, of its newest turns that take at most `max_tokens`.

    A turn begins with a user message, so that calls stay with their results. Raises RequestError when not even the
    last step of the last turn fits into the context.
    """
    if not truncate:
        return render(messages)
    head = next((index for index, message in enumerate(messages) if message["role"] != "system"), len(messages))
    starts = [head] + [index for index in range(head + 1, len(messages)) if messages[index]["role"] == "user"]
    try:
        return _first_that_fits([[*messages[:head], *messages[start:]] for start in starts], render, max_tokens)
    except RequestError as error:
        question = messages[starts[-1] : starts[-1] + 1]
        steps = [[*messages[:head], *question, *messages[start:]] for start in _step_starts(messages, starts[-1] + 1)]
        if error.code != TOO_LONG or len(steps) < 2:
            raise
    return _first_that_fits(steps[1:], render, max_tokens)


def _first_that_fits(conversations: Sequence[Sequence[JSON]], render: Render, max_tokens: int) -> list[int]:
    """Return the prompt of the first conversation that fits, each of which is shorter than the one before.

    The last one may take more than `max_tokens`. Raises RequestError when not even that fits into the context.
    """
    prompts: dict[int, list[int]] = {}
    last = len(conversations) - 1

    def fits(index: int) -> bool:
        try:
            prompts[index] = render(conversations[index])
        except RequestError as error:
            if error.code != TOO_LONG or index == last:
                raise
            return False
        return len(prompts[index]) <= max_tokens

    if fits(0):
        return prompts[0]
    found = bisect_left(range(len(conversations)), True, lo=1, key=fits)
    return prompts[min(found, last)]


def _step_starts(messages: Sequence[JSON], start: int) -> list[int]:
    """Return where the steps of a turn begin: assistant messages before which every call has its result."""
    starts: list[int] = []
    open_calls: set[str] = set()
    for index in range(start, len(messages)):
        message = messages[index]
        if message["role"] == "assistant" and not open_calls:
            starts.append(index)
        open_calls |= {call["id"] for call in message.get("tool_calls", ())}
        open_calls.discard(message.get("tool_call_id", ""))
    return starts
