"""Grammars that callers wrote themselves, for the input of custom tools.

Source: https://platform.openai.com/docs/guides/function-calling#context-free-grammars,
https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
"""

import re

from backends.local.grammar.compiling import refusal
from proxy.wire.errors import RequestError

MAX_CHARS = 20_000
# Each doubles what it takes to find out whether anything matches.
MAX_INTERSECTIONS = 6
# Texts, patterns and comments: what stands in them is no syntax.
QUOTED = re.compile(r'"(?:\\.|[^"\\\n])*"|//[^\n]*|#[^\n]*|/(?:\\.|[^/\\\n])+/')
# Of llguidance's own syntax what reaches beyond the text: other grammars, tokens by name, ways to stop early.
EARLY = r"\b(?:stop|suffix|lazy|max_tokens|temperature)\b(?=\s*[=,\]])"
BEYOND = re.compile(r"%(?!ignore\b|import\b)\w*|<[^>\s]*>|@\w+|" + EARLY)


def lark_grammar(definition: str, where: str = "format.definition") -> str:
    """The grammar as the engine takes it. Raises RequestError with what is wrong with it."""
    _check_size(definition, where)
    bare = QUOTED.sub('""', definition)
    beyond = BEYOND.search(bare)
    if beyond is not None:
        raise _invalid(where, f"'{beyond[0][:40]}' is not supported.")
    if len(re.findall(r"&|~(?!\s*\d)", bare)) > MAX_INTERSECTIONS:
        raise _invalid(where, f"more than {MAX_INTERSECTIONS} of & and ~ are not supported.")
    return _checked(definition, where)


def regex_grammar(definition: str, where: str = "format.definition") -> str:
    """The same for a regular expression, which must match the whole text."""
    from llguidance import regex_to_lark

    _check_size(definition, where)
    return _checked(f"start: /{regex_to_lark(definition, '')}/", where)


def _check_size(definition: str, where: str) -> None:
    if len(definition) > MAX_CHARS:
        raise _invalid(where, f"it has {len(definition)} characters; at most {MAX_CHARS} are supported.")


def _checked(grammar: str, where: str) -> str:
    message = refusal(grammar)
    if message:
        raise _invalid(where, message)
    return grammar


def _invalid(where: str, message: str) -> RequestError:
    return RequestError(f"Invalid grammar in {where}: {message}", code="invalid_grammar", param=where)
