"""Generated tokens -> the events of a response: reasoning, text and tool calls as they arrive, and how it ended."""

import time
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
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
from proxy.wire.event import Batch, Event, Run
from proxy.wire.items import DELTAS
from proxy.wire.passage import Outlet, Passage


class ResponseBuilder:
    """Builds the events of one response, from the first to the last."""

    def __init__(
        self, request: LocalRequest, tokenizer: ModelTokenizer, fields: Mapping[str, Any] = MappingProxyType({})
    ) -> None:  # fmt: skip
        """`fields` of the response are set by the gateway."""
        response = response_object(request.body, response_id=new_id("resp"), created_at=int(time.time()))
        tools, tags = request.tools, request.reasoning_tags
        visible = (*tools.visible_tags, *(tags.both if tags else ()))
        top = request.options.top_logprobs
        self._composer = Composer({**response, **fields})
        self._request = request
        self._detokenize = tokenizer.build_detokenizer(request.prompt, visible=visible)
        self._parser = OutputParser(
            build_parser(tools.tool_format, tools.kinds, constrained=bool(request.options.grammar)),
            reasoning=None if tags is None else ReasoningParser(tags, is_open=request.reasoning_open),
            stop_sequences=request.stop_sequences,
        )
        self._logprobs = None if top is None else LogprobTracker(tokenizer.token_bytes, top)
        self._may_reason, self._may_stop = tags is not None, bool(request.stop_sequences)
        self._followed: Collection[str] = ()
        self._is_one_text = tags is None and not tools.tools  # whether the answer can be nothing but one message
        self._makes_runs = False  # whether deltas that continue a text are encoded at once
        self._last_kind: type[Segment] | None = None  # of the last item; None before the first
        self._run_kind: type[Segment] | None = None  # of the text that is open, if its deltas are
        self._in_call = False  # whether the last item is a call that is not complete
        self.is_done = False
        """Whether nothing of what the model still generates belongs to the answer."""
        self._output_tokens = self._reasoning_tokens = 0

    def batches(self, generation: Generation, followed: Collection[str]) -> "AnswerBatches":
        """Return what each part of a generation adds; events of types that are not in `followed` as runs."""
        self._followed = followed
        self._makes_runs = self._logprobs is None and DELTAS.isdisjoint(followed)
        return AnswerBatches(self, generation)

    def start(self) -> Batch:
        """Return the first events, and those that open a message if nothing else can come: the model works now."""
        events = self._composer.start()
        if not self._is_one_text:
            return events
        events += self._composer.open_message()
        self._note_item(Text)
        if self._makes_runs:
            self._composer.prepare_runs()
        return in_runs(events, self._followed)

    def add(self, tokens: Sequence[Token]) -> Batch:
        """Return what these tokens add, up to where the answer `is_done`."""
        units: list[Event | Run] = []
        has_events = False
        for token in tokens:
            for segment in self._parse(token):
                if type(segment) is self._run_kind:  # almost always
                    units.append(self._composer.delta_run(segment.text))  # type: ignore[union-attr]  # a text
                else:
                    has_events = True
                    units += self._compose(segment)
                    if self.is_done:
                        return in_runs(units, self._followed)
            if self._may_stop and self._parser.stopped:
                self.is_done = True
                break
        return in_runs(units, self._followed) if has_events or len(units) > 1 else units

    def end(self, generation: Generation) -> Batch:
        """Return the last events, once the generation has ended or the answer is done."""
        truncated = generation.finish == "length" and not self.is_done
        units: list[Event | Run] = []
        for segment in () if self.is_done else self._parser.close(truncated=truncated):
            units += self._compose(segment)
            if self.is_done:
                break
        truncated = truncated and not self._parser.stopped
        if self._last_kind is None or (self._last_kind is Reasoning and not truncated):
            units += self._composer.open_message()  # clients expect a message even in an empty answer
        reason = "max_output_tokens" if truncated else None
        return in_runs([*units, *self._composer.finish(self._usage(generation), incomplete=reason)], self._followed)

    def _parse(self, token: Token) -> list[Segment]:
        """Return the segments that become known with this token."""
        parser = self._parser
        in_reasoning = self._may_reason and parser.in_reasoning
        text = self._detokenize(token.id)
        if self._logprobs is not None:
            self._logprobs.add(token, text)
        segments = parser.feed(text) if text else []
        self._output_tokens += 1
        if self._may_reason and (in_reasoning or parser.in_reasoning):
            self._reasoning_tokens = self._output_tokens  # reasoning comes first, so it includes all tokens so far
        return segments

    def _compose(self, segment: Segment) -> list[Event]:
        events = self._compose_segment(segment)
        self._note_item(type(segment))
        self._in_call = isinstance(segment, FunctionCall | CustomCall) and not segment.complete
        if isinstance(segment, FunctionCall | CustomCall) and segment.complete and self._request.tools.one_call:
            self.is_done = True
        return events

    def _note_item(self, kind: type[Segment]) -> None:
        self._last_kind = kind
        self._run_kind = kind if self._makes_runs and kind in (Text, Reasoning) else None

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

    def _usage(self, generation: Generation) -> dict[str, Any]:
        return usage(
            input_tokens=len(self._request.prompt), output_tokens=self._output_tokens,
            cached_tokens=generation.cached_tokens, reasoning_tokens=self._reasoning_tokens,
        )  # fmt: skip


class AnswerBatches(Passage):
    """The batches of one answer, from its first event to its last."""

    __slots__ = ("_builder", "_error", "_generation", "_is_ended", "_is_started", "_left", "_outlet", "_steps")

    def __init__(self, builder: ResponseBuilder, generation: Generation) -> None:
        self._builder = builder
        self._generation = generation
        self._steps = aiter(generation)
        self._is_started = self._is_ended = False
        self._outlet: Outlet
        self._left: Batch = ()  # what was made of forwarded tokens and not taken by the outlet
        self._error: Exception | None = None  # that was raised by making it

    async def __anext__(self) -> Batch:
        builder = self._builder
        if not self._is_started:
            self._is_started = True
            return builder.start()
        while not builder.is_done:
            tokens = await anext(self._steps, None)
            if tokens is None:
                break
            if batch := builder.add(tokens) if tokens else self._take_left():
                return batch
        if self._is_ended:
            raise StopAsyncIteration
        self._is_ended = True
        return builder.end(self._generation)

    def forward_runs(self, outlet: Outlet) -> None:
        self._outlet = outlet
        self._generation.forward_tokens(self._forward)

    def deliver_at_once(self) -> None:
        self._generation.deliver_at_once()

    def _forward(self, tokens: Sequence[Token]) -> bool:
        """Give the run that tokens add to the outlet; return whether nothing is left for the next batch."""
        builder = self._builder
        try:
            batch = builder.add(tokens)
        except Exception as error:  # noqa: BLE001  it fails this answer, and not all of the engine
            self._error = error
            return False
        if not batch or (len(batch) == 1 and isinstance(run := batch[0], Run) and self._outlet(run.sse)):
            return not builder.is_done
        self._left = batch
        return False

    def _take_left(self) -> Batch:
        """Return the batch that was left. Raises the error that came in place of it."""
        left, self._left = self._left, ()
        if self._error is not None:
            raise self._error
        return left
