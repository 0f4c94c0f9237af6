"""How the tests of all tool formats parse model output."""

from collections.abc import Iterable, Sequence

from hypothesis import strategies as st

from backends.local.speech import AnswerParser, Segment, Text, ToolFormat, build_parser
from backends.local.speech.segments import CustomCall, FunctionCall, ToolKinds

TOOLS: ToolKinds = {"f": "function", "g": "function", "note": "custom", "patch": "raw"}


def call(name: str, arguments: str = "{}") -> FunctionCall:
    return FunctionCall(name, arguments)


def collect(parser: AnswerParser, chunks: Iterable[str], *, truncated: bool = False) -> list[Segment]:
    """Return the segments of an output, with the parts of each text and each call joined."""
    found = [segment for chunk in chunks for segment in parser.feed(chunk)]
    joined: list[Segment] = []
    for segment in [*found, *parser.close(truncated=truncated)]:
        if isinstance(segment, Text) and joined and isinstance(joined[-1], Text):
            before = joined[-1]
            assert segment.offset == before.offset + len(before.text)
            joined[-1] = Text(before.text + segment.text, before.offset)
        elif joined and isinstance(segment, FunctionCall) and _continues(joined[-1], segment):
            joined[-1] = FunctionCall(segment.name, joined[-1].arguments + segment.arguments, segment.complete)
        elif joined and isinstance(segment, CustomCall) and _continues(joined[-1], segment):
            joined[-1] = CustomCall(segment.name, joined[-1].input + segment.input, segment.complete)
        else:
            joined.append(segment)
    return joined


def _continues(before: Segment, segment: Segment) -> bool:
    return type(before) is type(segment) and not before.complete and before.name == segment.name


def parse(
    tool_format: ToolFormat, *chunks: str, truncated: bool = False, constrained: bool = False
) -> list[Segment | str]:
    """Return the same with texts as strings, after checking the offset of each text."""
    output = "".join(chunks)
    segments = collect(build_parser(tool_format, TOOLS, constrained=constrained), chunks, truncated=truncated)
    for segment in segments:
        if isinstance(segment, Text):
            assert output[segment.offset : segment.offset + len(segment.text)] == segment.text
    return [segment.text if isinstance(segment, Text) else segment for segment in segments]


def split_everywhere(output: str) -> list[Sequence[str]]:
    """Return the output in single characters, split at every position, and at every two when it is short."""
    size = len(output)
    twice = [(a, b) for a in range(size) for b in range(a, size)] if size < 90 else []
    return [
        tuple(output),
        *((output[:a], output[a:]) for a in range(size)),
        *((output[:a], output[a:b], output[b:]) for a, b in twice),
    ]


@st.composite
def splits(draw: st.DrawFn, words: Sequence[str]) -> tuple[str, list[str]]:
    """Draw an output of these words, and the same output in chunks."""
    output = "".join(draw(st.lists(st.sampled_from(words), max_size=14)))
    positions = sorted(draw(st.lists(st.integers(0, len(output)), max_size=8)))
    chunks = [output[start:end] for start, end in zip([0, *positions], [*positions, len(output)], strict=True)]
    return output, chunks
