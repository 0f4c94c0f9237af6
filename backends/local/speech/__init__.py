"""Parses model output into text, reasoning and tool calls while it is generated.

    output_parser.py        the output of one answer: combines the parsers below, and ends it at a stop sequence
      reasoning.py          <think>...</think> before the answer
      raw_input.py          calls of custom tools with verbatim input
      hermes.py llama.py mistral.py    calls in the syntax of a family of models
        tool_call_parser.py            what they have in common: tags in a text, JSON objects
    segments.py             what the parsers return
    tool_format.py          a family's syntax as data, from which answer_grammar.py writes grammars

A new family is a file with a ToolFormat and its parser, and an entry in `find_tool_format`.
"""

from collections.abc import Mapping

from backends.local.speech.hermes import HERMES
from backends.local.speech.llama import LLAMA
from backends.local.speech.mistral import ARGS, MISTRAL, MISTRAL_V11
from backends.local.speech.output_parser import AnswerParser, OutputParser, PlainTextParser
from backends.local.speech.raw_input import RawInputParser
from backends.local.speech.reasoning import ReasoningParser, ReasoningTags
from backends.local.speech.segments import CustomCall, FunctionCall, Reasoning, Segment, Text, ToolKind, ToolKinds
from backends.local.speech.tool_format import ToolFormat

__all__ = [
    "AnswerParser",
    "CustomCall",
    "FunctionCall",
    "OutputParser",
    "Reasoning",
    "ReasoningParser",
    "ReasoningTags",
    "Segment",
    "Text",
    "ToolFormat",
    "ToolKind",
    "ToolKinds",
    "build_parser",
    "find_tool_format",
]


def find_tool_format(name: str, control_tokens: Mapping[str, int]) -> ToolFormat:
    """Return the format of that name; the tokenizer's control tokens select the version of Mistral's."""
    mistral = MISTRAL_V11 if ARGS in control_tokens else MISTRAL
    return {"hermes": HERMES, "llama": LLAMA, "mistral": mistral}[name]


def build_parser(tool_format: ToolFormat | None, tools: ToolKinds, *, constrained: bool = False) -> AnswerParser:
    """Return the parser for a model that may call `tools`; `constrained`: a grammar guarantees that calls are valid."""
    if tool_format is None or not tools:
        return PlainTextParser()
    openings = {tool_format.raw_opening(name): name for name, kind in tools.items() if kind == "raw"}
    parser = tool_format.parser(tools)
    parser.constrained = constrained
    return RawInputParser(parser, openings) if openings else parser
