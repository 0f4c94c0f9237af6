"""Tokens -> events: text as it is decoded, function calls as they become whole, and an end that says why."""

import time
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

from backends.local.engine import Generation
from backends.local.hermes import TAGS, FunctionCall, HermesParser
from backends.local.request import Request
from backends.local.tokens import Tokens
from proxy.wire.compose import Composer, new_id, response_object, usage
from proxy.wire.event import Event


class Answer:
    """One response, from its first event to its last."""

    def __init__(self, request: Request, tokens: Tokens) -> None:
        begun = response_object(request.body, response_id=new_id("resp"), created_at=int(time.time()))
        self._composer = Composer(begun)
        self._request = request
        self._hear = tokens.decoder(request.prompt, shows=TAGS if request.functions else ())
        self._parser = HermesParser(request.functions) if request.functions else None
        self._kind = ""  # of the last item: "text", "call", or "" when there is none
        self._done = False

    async def batches(self, generation: Generation) -> AsyncIterator[Sequence[Event]]:
        yield self._composer.start()
        output_tokens = 0
        async for ids in generation:
            events: list[Event] = []
            for token in ids:
                output_tokens += 1
                events += self._events(self._heard(self._hear(token)))
                if self._done:
                    break
            if events:
                yield events
            if self._done:
                break
        tokens = usage(input_tokens=len(self._request.prompt), output_tokens=output_tokens)
        yield self._end(tokens, cut_short=generation.finish == "length" and not self._done)

    def _heard(self, text: str) -> Iterable[str | FunctionCall]:
        if not text:
            return ()
        return (text,) if self._parser is None else self._parser.feed(text)

    def _events(self, pieces: Iterable[str | FunctionCall]) -> list[Event]:
        events: list[Event] = []
        for piece in pieces:
            if self._done:
                break
            events += self._call(piece) if isinstance(piece, FunctionCall) else self._text(piece)
        return events

    def _text(self, text: str) -> list[Event]:
        opening = [] if self._kind == "text" else self._composer.open_message()
        self._kind = "text"
        return [*opening, *(self._composer.delta(text) if text else ())]

    def _call(self, call: FunctionCall) -> list[Event]:
        self._kind = "call"
        self._done = self._request.one_call
        opening = self._composer.open_function_call(call.name)
        return [*opening, *self._composer.delta(call.arguments), *self._composer.close()]

    def _end(self, tokens: dict[str, Any], *, cut_short: bool) -> list[Event]:
        left = () if self._parser is None or self._done else self._parser.close()
        events = self._events(left)
        if not self._kind:
            events += self._text("")  # a model that says nothing has still answered: readers look for a message
        return [*events, *self._composer.finish(tokens, incomplete="max_output_tokens" if cut_short else None)]
