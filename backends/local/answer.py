"""Generated tokens -> the events of a response: reasoning, text and tool calls as they arrive, and how it ended."""

import time
from collections.abc import AsyncIterator, Collection, Sequence
from typing import Any

from backends.local.decoding.job import Token
from backends.local.host.engine import Generation
from backends.local.logprobs import LogprobTracker
from backends.local.model.tokenizer import ModelTokenizer
from backends.local.request import LocalRequest
from backends.local.speech import (
    CustomCall,
    FunctionCall,
    OutputParser,
    Reasoning,
    ReasoningParser,
    Segment,
    Text,
    build_parser,
)
from proxy.wire.compose import Composer, in_runs, new_id, response_object, usage
from proxy.wire.event import Batch, Event


class ResponseBuilder:
    """Builds the events of one response, from the first to the last."""

    def __init__(self, request: LocalRequest, tokenizer: ModelTokenizer) -> None:
        response = response_object(request.body, response_id=new_id("resp"), created_at=int(time.time()))
        tools, tags = request.tools, request.reasoning_tags
        visible = (*tools.visible_tags, *(tags.both if tags else ()))
        top = request.options.top_logprobs
        self._composer = Composer(response)
        self._request = request
        self._detokenize = tokenizer.build_detokenizer(request.prompt, visible=visible)
        self._parser = OutputParser(
            build_parser(tools.tool_format, tools.kinds, constrained=bool(request.options.grammar)),
            reasoning=None if tags is None else ReasoningParser(tags, is_open=request.reasoning_open),
            stop_sequences=request.stop_sequences,
        )
        self._logprobs = None if top is None else LogprobTracker(tokenizer.token_bytes, top)
        self._last_kind: type[Segment] | None = None  # of the last item; None before the first
        self._in_call = False  # whether the last item is a call that is not complete
        self._done = False
        self._output_tokens = self._reasoning_tokens = 0

    async def batches(self, generation: Generation, followed: Collection[str]) -> AsyncIterator[Batch]:
        """Yield what each part of a generation adds; events of types that are not in `followed` as runs."""
        yield self._composer.start()
        async for tokens in generation:
            events: list[Event] = []
            for token in tokens:
                events += self._compose(self._parse(token))
                if self._done:
                    break
            if events:
                yield in_runs(events, followed)
            if self._done:
                break
        yield in_runs(self._end(generation), followed)

    def _parse(self, token: Token) -> list[Segment]:
        """Return the segments that become known with this token."""
        in_reasoning = self._parser.in_reasoning
        text = self._detokenize(token.id)
        if self._logprobs is not None:
            self._logprobs.add(token, text)
        segments = self._parser.feed(text) if text else []
        self._output_tokens += 1
        if in_reasoning or self._parser.in_reasoning:
            self._reasoning_tokens = self._output_tokens  # reasoning comes first, so it includes all tokens so far
        return segments

    def _compose(self, segments: Sequence[Segment]) -> list[Event]:
        events: list[Event] = []
        for segment in segments:
            events += self._compose_segment(segment)
            self._last_kind = type(segment)
            self._in_call = isinstance(segment, FunctionCall | CustomCall) and not segment.complete
            if isinstance(segment, FunctionCall | CustomCall) and segment.complete and self._request.tools.one_call:
                self._done = True
                return events
        self._done = self._parser.stopped
        return events

    def _compose_segment(self, segment: Segment) -> list[Event]:
        composer, continues = self._composer, self._last_kind is type(segment)
        match segment:
            case Text():
                logprobs = self._logprobs.take(segment) if self._logprobs is not None else ()
                return [*(() if continues else composer.open_message()), *composer.delta(segment.text, logprobs)]
            case Reasoning():
                return [*(() if continues else composer.open_reasoning()), *composer.delta(segment.text)]
            case FunctionCall():
                open_call, text = composer.open_function_call, segment.arguments
            case CustomCall():
                open_call, text = composer.open_custom_call, segment.input
        name, namespace = self._request.tools.split_name(segment.name)
        events = [] if self._in_call else open_call(name, namespace=namespace)
        events += composer.delta(text) if text or not self._in_call else ()
        # A call that was cut off stays open, so that finishing the response makes it incomplete.
        return [*events, *(composer.close() if segment.complete else ())]

    def _end(self, generation: Generation) -> list[Event]:
        truncated = generation.finish == "length" and not self._done
        events = [] if self._done else self._compose(self._parser.close(truncated=truncated))
        truncated = truncated and not self._parser.stopped
        if self._last_kind is None or (self._last_kind is Reasoning and not truncated):
            events += self._composer.open_message()  # clients expect a message even in an empty answer
        reason = "max_output_tokens" if truncated else None
        return [*events, *self._composer.finish(self._usage(generation), incomplete=reason)]

    def _usage(self, generation: Generation) -> dict[str, Any]:
        return usage(
            input_tokens=len(self._request.prompt), output_tokens=self._output_tokens,
            cached_tokens=generation.cached_tokens, reasoning_tokens=self._reasoning_tokens,
        )  # fmt: skip
