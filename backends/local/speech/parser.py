"""Finds the calls in what a model says, while it is saying it: what the parsers of all formats have in common."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from backends.local.speech.piece import Call, CustomCall, FunctionCall, Names, Piece, Text, call_in, half_call_in
from backends.local.speech.scan import JsonObject


class Parser(ABC):
    """Feed it text, cut anywhere; it gives text that is no call, and calls of what is in `names`.

    What stands where a call should but is none is given as the text that it is. White space around a call is left out,
    so the end of a text is held back until it is known not to lead to one.

    A call is given when it is whole; or, where a grammar is `sure` to make it one, the arguments as they come: every
    piece but the last of such a call is not whole.
    """

    def __init__(self, names: Names, tag: str) -> None:
        self.names = names
        self.sure = False
        self.rest = ""  # what was fed and neither told nor read
        self.opening: str | None = None  # what a call began with, and the space before it; None outside of calls
        self.object = JsonObject()  # of the call
        self.after_call = False
        self._telling: str | None = None  # the function whose call is told as it comes; "" for a call that is not
        self._told_chars = 0  # of its arguments
        self._tag = tag
        self._at = 0  # where that begins which is not told

    def feed(self, text: str) -> list[Piece]:
        self.rest += text
        return list(self._pieces())

    def close(self, *, cut: bool = False) -> list[Piece]:
        """What is left when the model has ended. A call that lacks nothing but its last tag is one.

        With `cut` the model was stopped before its end: a call whose name is known is told as far as it goes.
        """
        if self.opening is None:
            return [] if self.after_call and self.is_nothing(self.rest) else self.say(self.rest)
        read = self.object.text + self.rest
        half = self.half_call(read) if cut else None
        if self._telling:
            return [] if half is None or not half.whole else [FunctionCall(self._telling, "")]
        return self.say(self.opening + read) if half is None else [half]

    def _pieces(self) -> list[Piece]:
        """All that is known by now."""
        pieces: list[Piece] = []
        while True:
            told = self.read_text() if self.opening is None else self.read_call()
            if told is None:
                return pieces
            pieces += told

    @abstractmethod
    def read_call(self) -> Sequence[Piece] | None:
        """Read on in a call. None when more text is needed."""

    def read_text(self) -> Sequence[Piece] | None:
        """Read on up to the next tag that opens a call. None when more text is needed."""
        if self.after_call:
            self.leave_out(len(self.rest) - len(self.rest.lstrip()))
        before, tag, rest = self.rest.partition(self._tag)
        end = len(before.rstrip()) if tag else self._end_of_text()
        said, self.rest = self.rest[:end], self.rest[end:]
        self.after_call = self.after_call and end == 0
        told = self.say(said)
        if not tag:
            return told or None
        self.begin(self.rest[: len(self.rest) - len(rest)], rest)
        return told

    def begin(self, opening: str, rest: str) -> None:
        """A call begins."""
        self.opening, self.rest, self.object = opening, rest, JsonObject()
        self._telling, self._told_chars = None, 0

    def going_on(self) -> Sequence[Piece] | None:
        """The object goes on: what can be told of the call now."""
        read, self.rest = self.rest, ""
        if not self.sure or not read or self._telling == "":
            return None
        if self._telling is None:
            half = self.half_call(self.object.text)
            if not isinstance(half, FunctionCall):
                self._telling = "" if isinstance(half, CustomCall) else None
                return None
            self._telling, read = half.name, half.arguments
        self._told_chars += len(read)
        return [FunctionCall(self._telling, read, whole=False)]

    def read_object(self) -> Call | None:
        """The call in an object that has ended."""
        return call_in(self.object.text, self.names) if self.object.whole else None

    def half_call(self, text: str) -> Call | None:
        """What became of a call that was cut off, its opening left out."""
        return half_call_in(text, self.names)

    def judge(self, call: Call | None, after: str) -> list[Piece]:
        """The object has ended before `after`: a call, or else text, in which a call may yet begin."""
        opening, read, whole = self.opening or "", self.object.text, self.object.whole
        self.opening, self.object, self.after_call = None, JsonObject(), call is not None
        if self._telling and isinstance(call, FunctionCall):
            call = FunctionCall(call.name, call.arguments[self._told_chars :])
        if call is not None:
            self._at += len(opening) + len(read)
            self.rest = after
            return [call]
        self.rest = after if whole else read + after
        return self.say(opening + read if whole else opening)

    def say(self, text: str) -> list[Piece]:
        at = self._at
        self._at += len(text)
        return [Text(text, at)] if text else []

    def is_nothing(self, text: str) -> bool:
        """Whether what is left after a call may be left out."""
        return not text.strip()

    def leave_out(self, count: int) -> None:
        """Of the rest, that many characters."""
        self._at += count
        self.rest = self.rest[count:]

    def _end_of_text(self) -> int:
        """Where the rest begins that may belong to a call."""
        end = len(self.rest) - begun(self.rest, self._tag)
        return len(self.rest[:end].rstrip())


def begun(text: str, tag: str) -> int:
    """How many characters at the end of a text may be the beginning of a tag."""
    return next((size for size in range(min(len(tag) - 1, len(text)), 0, -1) if text.endswith(tag[:size])), 0)
