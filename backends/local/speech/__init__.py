"""What a model says -> text, thoughts, calls, while it is being said.

    Speech                  all of it, for one answer
      thinking.py           <think>...</think>, before the answer
      raw.py                calls of custom tools that a grammar holds in shape
      hermes.py llama.py mistral.py    calls as a family of models writes them
        parser.py scan.py   what they have in common: tags in a text, objects of JSON
      stops.py              stop strings, in the text that is left
    form.py                 a family's way as data, for whoever writes grammars: rules.py

A new family is a file with a ToolFormat and its parser, and its name below.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from backends.local.speech.form import ToolFormat
from backends.local.speech.hermes import HERMES
from backends.local.speech.llama import LLAMA
from backends.local.speech.mistral import ARGS, MISTRAL, MISTRAL_V11
from backends.local.speech.piece import CustomCall, FunctionCall, Kind, Names, Piece, Text, Thought
from backends.local.speech.raw import RawCalls
from backends.local.speech.stops import Stops
from backends.local.speech.thinking import Thinking, Thoughts

__all__ = [
    "CustomCall",
    "FunctionCall",
    "Kind",
    "Names",
    "Piece",
    "Reader",
    "Speech",
    "Text",
    "Thinking",
    "Thought",
    "Thoughts",
    "ToolFormat",
    "format_named",
    "reader_of",
]


def format_named(name: str, controls: Mapping[str, int]) -> ToolFormat:
    """The format of that name; `controls` are the tokenizer's, which tell Mistral's models of different age apart."""
    mistral = MISTRAL_V11 if ARGS in controls else MISTRAL
    return {"hermes": HERMES, "llama": LLAMA, "mistral": mistral}[name]


class Reader(Protocol):
    def feed(self, text: str) -> list[Piece]: ...
    def close(self, *, cut: bool = False) -> list[Piece]: ...


class Plain:
    """Reads the answer of a model that may call nothing."""

    def __init__(self) -> None:
        self._at = 0

    def feed(self, text: str) -> list[Piece]:
        at, self._at = self._at, self._at + len(text)
        return [Text(text, at)] if text else []

    def close(self, *, cut: bool = False) -> list[Piece]:  # noqa: ARG002  nothing is held back
        return []


class Speech:
    """One answer. Feed it text, cut anywhere; `stopped` says that a stop string has ended it."""

    def __init__(self, reader: Reader, *, thoughts: Thoughts | None = None, stops: tuple[str, ...] = ()) -> None:
        self._reader = reader
        self._thoughts = thoughts
        self._stops = Stops(stops)

    @property
    def thinking(self) -> bool:
        return self._thoughts is not None and self._thoughts.inside

    @property
    def stopped(self) -> bool:
        return self._stops.met

    def feed(self, text: str) -> list[Piece]:
        """All that is known by now."""
        thoughts: list[Thought] = []
        if self._thoughts is not None:
            thoughts, text = self._thoughts.feed(text)
        return [*thoughts, *self._wanted(self._reader.feed(text))]

    def close(self, *, cut: bool = False) -> list[Piece]:
        """What is left when the model has ended, or with `cut` was stopped before its end."""
        thoughts: list[Thought] = []
        text = ""
        if self._thoughts is not None:
            thoughts, text = self._thoughts.close()
        pieces = self._wanted([*self._reader.feed(text), *self._reader.close(cut=cut)])
        return [*thoughts, *pieces, *([] if self.stopped else self._stops.release())]

    def _wanted(self, pieces: Sequence[Piece]) -> list[Piece]:
        """The pieces up to the first stop string, each text where it stands among all that was said."""
        before = 0 if self._thoughts is None else self._thoughts.at
        wanted: list[Piece] = []
        for piece in pieces:
            if self.stopped:
                break
            if isinstance(piece, Text):
                wanted += self._stops.feed(Text(piece.text, before + piece.at))
            else:
                wanted += [*self._stops.release(), piece]
        return wanted


def reader_of(form: ToolFormat | None, names: Names, *, sure: bool = False) -> Reader:
    """What reads the answer of a model that may call these; `sure`: a grammar makes all calls good ones."""
    if form is None or not names:
        return Plain()
    raw = {form.raw_head(name): name for name, kind in names.items() if kind == "raw"}
    parser = form.parser(names)
    parser.sure = sure
    return RawCalls(parser, raw) if raw else parser
