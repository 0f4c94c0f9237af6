"""The grammar of a whole answer, in Lark: reasoning, text, and tool calls in the syntax of a family of models.

    start: reasoning? answer
    answer: (preamble calls)* (TEXT | preamble tool_calls)     free text with calls in it; or only: tag tool_calls
    tool_calls: calls | raw_0
    calls: call (separator call)*
    call: "{\"name\": \"get_weather\", \"arguments\": " %json {...} "}"

A tag that is one token of the tokenizer is written as that token, because the model does not recognise it spelled out.
Free text must not spell a tag out either, so that the parser finds in the answer exactly what the grammar intended.
Source: https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from backends.local.speech.reasoning import ReasoningTags
from backends.local.speech.tool_format import ToolFormat


@dataclass(frozen=True, slots=True)
class AnswerGrammar:
    """Writes the rules for one model; `control_tokens` are those of its tokenizer."""

    control_tokens: Mapping[str, int]

    def build_answer(
        self, *, text: str | None, tool_format: ToolFormat | None, calls: Mapping[str, str], raw: Sequence[str],
        must_call: bool, one_call: bool,
    ) -> Iterator[str]:  # fmt: skip
        """Yield the rules of an answer that is `text`, a rule; free text if None; or calls.

        `calls` maps the names of tools to the rules of their arguments. The inputs of the tools in `raw` are the
        grammars @raw_0, @raw_1 ... in the same order.
        """
        free = text is None and not must_call
        texts = () if must_call else (("TEXT",) if text is None else (text,))
        if tool_format is None or not (calls or raw):
            yield f"answer: {' | '.join(texts)}"
            return
        tagged = "preamble tool_calls" if free else f"{self.quote(tool_format.tag)} tool_calls"
        untagged = ("calls",) if tool_format.tag_optional and calls and text is None else ()
        repeated = "(preamble calls)* " if free and calls and not (untagged or one_call) else ""
        yield f"answer: {repeated}({' | '.join((*texts, tagged, *untagged))})"
        several = not (one_call or (repeated and tool_format.tag in tool_format.separator))
        yield from self._build_tool_calls(tool_format, calls, raw, several=several)
        if free:
            yield self._build_preamble(tool_format)

    def build_reasoning(self, tags: ReasoningTags, *, is_open: bool) -> Iterator[str]:
        """Yield the rules of the reasoning; with `is_open` the prompt contains its opening tag."""
        opening = "" if is_open else self.quote(tags.opening) + " "
        if tags.closing in self.control_tokens:
            yield f"reasoning: {opening}REASONING {self.quote(tags.closing)} SPACE?"
            yield f"REASONING: ANY & ~(ANY {quote_string(tags.closing)} ANY)"
        else:
            yield f"reasoning: {opening}reasoning_text SPACE?"
            yield f"reasoning_text[lazy]: ANY {quote_string(tags.closing)}"
        yield r"SPACE: /[ \n]{1,4}/"

    def quote(self, text: str) -> str:
        """Return a fixed text in Lark: control tokens as tokens, everything else as quoted strings."""
        control = "|".join(map(re.escape, self.control_tokens)) or "(?!)"
        parts = re.split(f"({control})", text)
        return " ".join(
            f"<[{self.control_tokens[part]}]>" if part in self.control_tokens else quote_string(part)
            for part in parts
            if part
        )

    def _build_tool_calls(
        self, tool_format: ToolFormat, calls: Mapping[str, str], raw: Sequence[str], *, several: bool
    ) -> Iterator[str]:
        """Yield the rules of what follows the tag that opens calls."""
        raw_rules = [f"raw_{index}" for index in range(len(raw))]
        list_start = self.quote(tool_format.list_start)
        yield f"tool_calls: {' | '.join((*(('calls',) if calls else ()), *raw_rules))}"
        for rule, name in zip(raw_rules, raw, strict=True):
            yield f"{rule}: {list_start} {self.quote(tool_format.raw_prefix % name)} @{rule}"
        if calls:
            more = f" ({self.quote(tool_format.separator)} call)*" if several else ""
            yield f"calls: {list_start} call{more} {self.quote(tool_format.list_end)}"
            yield f"call: {' | '.join(f'call_{index}' for index in range(len(calls)))}"
        suffix = self.quote(tool_format.call_suffix)
        for index, (name, arguments) in enumerate(calls.items()):
            yield f"call_{index}: {self.quote(tool_format.call_prefix % name)} {arguments} {suffix}"

    def _build_preamble(self, tool_format: ToolFormat) -> str:
        """Return the rule of free text up to and including the tag that opens calls."""
        if tool_format.tag in self.control_tokens:
            return f"preamble: TEXT {self.quote(tool_format.tag)}"
        return f"preamble[lazy]: FREE {quote_string(tool_format.tag)}"


def build_terminals(tool_format: ToolFormat | None, tags: ReasoningTags | None) -> Iterator[str]:
    """Yield the terminals of free text: anything that does not begin like reasoning or a call.

    Of two readings of the same characters the longer one wins, so free text must not begin as something else does.
    """
    yield "ANY: /(?s:.*)/"
    limits = ["ANY"]
    if tags is not None:
        limits += [f"~(/\\s*/ {quote_string(tags.opening)} ANY)"]
    if tool_format is not None and tool_format.tag_optional:
        limits += [r"/(?s:\s*([^{\s].*)?)/"]
    yield f"FREE: {' & '.join(limits)}"
    yield "TEXT: FREE" + (f" & ~(ANY {quote_string(tool_format.tag)} ANY)" if tool_format is not None else "")


def quote_string(text: str) -> str:
    return json.dumps(text)
