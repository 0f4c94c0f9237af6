"""Grammars that callers write for the input of custom tools.

Source: https://platform.openai.com/docs/guides/function-calling#context-free-grammars,
https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
"""

import re

from backends.local.grammar.compilation import compile_error
from proxy.wire.errors import RequestError

MAX_CHARS = 20_000
# Each doubles the time that it takes to find out whether anything matches.
MAX_INTERSECTIONS = 6
# Strings, patterns and comments: their contents are not syntax.
QUOTED = re.compile(r'"(?:\\.|[^"\\\n])*"|//[^\n]*|#[^\n]*|/(?:\\.|[^/\\\n])+/')
# The part of llguidance's syntax that reaches beyond the input: other grammars, tokens by name, early ends.
EARLY_END = r"\b(?:stop|suffix|lazy|max_tokens|temperature)\b(?=\s*[=,\]])"
UNSUPPORTED_SYNTAX = re.compile(r"%(?!ignore\b|import\b)\w*|<[^>\s]*>|@\w+|" + EARLY_END)


def lark_grammar(definition: str, param: str = "format.definition") -> str:
    """Return a caller's grammar in Lark unchanged. Raises RequestError when it cannot be followed."""
    _check_size(definition, param)
    bare = QUOTED.sub('""', definition)
    unsupported = UNSUPPORTED_SYNTAX.search(bare)
    if unsupported is not None:
        raise _invalid(param, f"'{unsupported[0][:40]}' is not supported.")
    if len(re.findall(r"&|~(?!\s*\d)", bare)) > MAX_INTERSECTIONS:
        raise _invalid(param, f"more than {MAX_INTERSECTIONS} of & and ~ are not supported.")
    return _check_compiles(definition, param)


def regex_grammar(definition: str, param: str = "format.definition") -> str:
    """Return a grammar in Lark for a regular expression that must match the whole input. Raises RequestError."""
    from llguidance import regex_to_lark

    _check_size(definition, param)
    return _check_compiles(f"start: /{regex_to_lark(definition, '')}/", param)


def _check_size(definition: str, param: str) -> None:
    if len(definition) > MAX_CHARS:
        raise _invalid(param, f"it has {len(definition)} characters; at most {MAX_CHARS} are supported.")


def _check_compiles(grammar: str, param: str) -> str:
    message = compile_error(grammar)
    if message:
        raise _invalid(param, message)
    return grammar


def _invalid(param: str, message: str) -> RequestError:
    return RequestError(f"Invalid grammar in {param}: {message}", code="invalid_grammar", param=param)
