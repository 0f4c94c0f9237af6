"""Tokens -> events: thoughts and text as they are decoded, calls as they become whole, and an end that says why."""

import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from backends.local.decoding.job import Token
from backends.local.host.engine import Generation
from backends.local.logprobs import Logprobs
from backends.local.model.tokens import Tokens
from backends.local.request import Request
from backends.local.speech import CustomCall, FunctionCall, Piece, Speech, Text, Thought, Thoughts, reader_of
from proxy.wire.compose import Composer, new_id, response_object, usage
from proxy.wire.event import Event


class Answer:
    """One response, from its first event to its last."""

    def __init__(self, request: Request, tokens: Tokens) -> None:
        begun = response_object(request.body, response_id=new_id("resp"), created_at=int(time.time()))
        tools, thinking = request.tools, request.thinking
        thoughts = None if thinking is None else Thoughts(thinking, begun=request.thought_begun)
        shown = (*tools.tags, *(thinking.tags if thinking else ()))
        top = request.options.top_logprobs
        self._composer = Composer(begun)
        self._request = request
        self._hear = tokens.decoder(request.prompt, shows=shown)
        self._speech = Speech(
            reader_of(tools.form, tools.kinds, sure=bool(request.options.grammar)),
            thoughts=thoughts,
            stops=request.stops,
        )
        self._logprobs = None if top is None else Logprobs(tokens.spell, top)
        self._kind: type[Piece] | None = None  # of the last item; None when there is none
        self._calling = False  # whether the last item is a call that goes on
        self._done = False
        self._output_tokens = self._reasoning_tokens = 0

    async def batches(self, generation: Generation) -> AsyncIterator[Sequence[Event]]:
        yield self._composer.start()
        async for tokens in generation:
            events: list[Event] = []
            for token in tokens:
                events += self._told(self._heard(token))
                if self._done:
                    break
            if events:
                yield events
            if self._done:
                break
        yield self._end(generation)

    def _heard(self, token: Token) -> list[Piece]:
        """What there is to tell now that this token is known."""
        thinking = self._speech.thinking
        text = self._hear(token.id)
        if self._logprobs is not None:
            self._logprobs.hear(token, text)
        pieces = self._speech.feed(text) if text else []
        self._output_tokens += 1
        if thinking or self._speech.thinking:
            self._reasoning_tokens = self._output_tokens  # thoughts come first: all tokens until now
        return pieces

    def _told(self, pieces: Sequence[Piece]) -> list[Event]:
        events: list[Event] = []
        for piece in pieces:
            events += self._piece(piece)
            self._kind = type(piece)
            self._calling = isinstance(piece, FunctionCall | CustomCall) and not piece.whole
            if isinstance(piece, FunctionCall | CustomCall) and piece.whole and self._request.tools.one_call:
                self._done = True
                return events
        self._done = self._speech.stopped
        return events

    def _piece(self, piece: Piece) -> list[Event]:
        composer, goes_on = self._composer, self._kind is type(piece)
        match piece:
            case Text():
                logprobs = self._logprobs.of(piece) if self._logprobs is not None else ()
                return [*(() if goes_on else composer.open_message()), *composer.delta(piece.text, logprobs)]
            case Thought():
                return [*(() if goes_on else composer.open_reasoning()), *composer.delta(piece.text)]
            case FunctionCall():
                opening, text = composer.open_function_call, piece.arguments
            case CustomCall():
                opening, text = composer.open_custom_call, piece.input
        name, namespace = self._request.tools.called(piece.name)
        events = [] if self._calling else opening(name, namespace=namespace)
        events += composer.delta(text) if text or not self._calling else ()
        # A call that was cut off is left open: with the answer it becomes incomplete.
        return [*events, *(composer.close() if piece.whole else ())]

    def _end(self, generation: Generation) -> list[Event]:
        cut = generation.finish == "length" and not self._done
        events = [] if self._done else self._told(self._speech.close(cut=cut))
        cut = cut and not self._speech.stopped
        if self._kind is None or (self._kind is Thought and not cut):
            events += self._composer.open_message()  # who says nothing has still answered: readers look for a message
        reason = "max_output_tokens" if cut else None
        return [*events, *self._composer.finish(self._usage(generation), incomplete=reason)]

    def _usage(self, generation: Generation) -> dict[str, Any]:
        return usage(
            input_tokens=len(self._request.prompt), output_tokens=self._output_tokens,
            cached_tokens=generation.cached_tokens, reasoning_tokens=self._reasoning_tokens,
        )  # fmt: skip
