"""What an answer must be, as a grammar in Lark: text, calls in a family's own way, a thought before them.

    start: thought? answer
    answer: (said calls)* (TEXT | said after)     free text with calls in it; or: tag after, nothing but calls
    after: calls | raw_0
    calls: fun (between fun)*
    fun: "{\"name\": \"get_weather\", \"arguments\": " %json {...} "}"

A tag that is one token of the tokenizer stands as that token: spelled out it would be another thing to the model. Text
that is free may not spell it out either, so that whoever reads the answer finds in it what the grammar had in mind.
Source: https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from backends.local.speech.form import ToolFormat
from backends.local.speech.thinking import Thinking


@dataclass(frozen=True, slots=True)
class Rules:
    """Writes the rules for one model; `controls` are its tokenizer's control tokens."""

    controls: Mapping[str, int]

    def answer(
        self, *, text: str | None, form: ToolFormat | None, calls: Mapping[str, str], raw: Sequence[str],
        must_call: bool, one_call: bool,
    ) -> Iterator[str]:  # fmt: skip
        """An answer that is `text`, a rule; or free text if None; or calls, by name with the rule of their arguments.

        Of the names in `raw` the text is the grammar @raw_0, @raw_1 ... in their order.
        """
        free = text is None and not must_call
        said = () if must_call else (("TEXT",) if text is None else (text,))
        if form is None or not (calls or raw):
            yield f"answer: {' | '.join(said)}"
            return
        tagged = "said after" if free else f"{self.written(form.tag)} after"
        bare = ("calls",) if form.bare and calls and text is None else ()
        before = "(said calls)* " if free and calls and not (bare or one_call) else ""
        yield f"answer: {before}({' | '.join((*said, tagged, *bare))})"
        several = not (one_call or (before and form.tag in form.between))
        yield from self._after(form, calls, raw, several=several)
        if free:
            yield from self._said(form)

    def thought(self, thinking: Thinking, *, begun: bool) -> Iterator[str]:
        """A thought that an answer may begin with; one that has begun in the prompt comes to its end."""
        opens = "" if begun else self.written(thinking.opens) + " "
        if thinking.closes in self.controls:
            yield f"thought: {opens}THOUGHT {self.written(thinking.closes)} SPACE?"
            yield f"THOUGHT: ANY & ~(ANY {quoted(thinking.closes)} ANY)"
        else:
            yield f"thought: {opens}thinks SPACE?"
            yield f"thinks[lazy]: ANY {quoted(thinking.closes)}"
        yield r"SPACE: /[ \n]{1,4}/"

    def written(self, text: str) -> str:
        """A text that is given: control tokens as such, all else quoted."""
        tags = "|".join(map(re.escape, self.controls)) or "(?!)"
        parts = re.split(f"({tags})", text)
        return " ".join(
            f"<[{self.controls[part]}]>" if part in self.controls else quoted(part) for part in parts if part
        )

    def _after(self, form: ToolFormat, calls: Mapping[str, str], raw: Sequence[str], *, several: bool) -> Iterator[str]:
        """What follows the tag that opens calls."""
        raws = [f"raw_{place}" for place in range(len(raw))]
        yield f"after: {' | '.join((*(('calls',) if calls else ()), *raws))}"
        for rule, name in zip(raws, raw, strict=True):
            yield f"{rule}: {self.written(form.starts)} {self.written(form.raw % name)} @{rule}"
        if calls:
            more = f" ({self.written(form.between)} fun)*" if several else ""
            yield f"calls: {self.written(form.starts)} fun{more} {self.written(form.ends)}"
            yield f"fun: {' | '.join(f'fun_{place}' for place in range(len(calls)))}"
        for place, (name, arguments) in enumerate(calls.items()):
            yield f"fun_{place}: {self.written(form.head % name)} {arguments} {self.written(form.tail)}"

    def _said(self, form: ToolFormat) -> Iterator[str]:
        """Free text, and free text before calls."""
        if form.tag in self.controls:
            yield f"said: TEXT {self.written(form.tag)}"
        else:
            yield f"said[lazy]: FREE {quoted(form.tag)}"


def terminals(form: ToolFormat | None, thinking: Thinking | None) -> Iterator[str]:
    """What free text is: anything but what begins a thought or a call.

    Of two readings of the same letters the longer one wins, so free text must not begin as something else does.
    """
    yield "ANY: /(?s:.*)/"
    limits = ["ANY"]
    if thinking is not None:
        limits += [f"~(/\\s*/ {quoted(thinking.opens)} ANY)"]
    if form is not None and form.bare:
        limits += [r"/(?s:\s*([^{\s].*)?)/"]
    yield f"FREE: {' & '.join(limits)}"
    yield "TEXT: FREE" + (f" & ~(ANY {quoted(form.tag)} ANY)" if form is not None else "")


def quoted(text: str) -> str:
    return json.dumps(text)
