"""Grammars that callers write for the input of custom tools.

Source: https://platform.openai.com/docs/guides/function-calling#context-free-grammars,
https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
"""

import re

from backends.local.grammar.compilation import TOO_COMPLEX, compile_error
from backends.local.grammar.compile_cost import MAX_UNITS, estimate_lark, estimate_pattern
from proxy.wire.errors import RequestError

MAX_CHARS = 20_000
# Each doubles the time that it takes to find out whether anything matches.
MAX_INTERSECTIONS = 6
# Strings, patterns and comments: their contents are not syntax.
QUOTED = re.compile(r'"(?:\\.|[^"\\\n])*"|//[^\n]*|#[^\n]*|/(?:\\.|[^/\\\n])+/')
# The part of llguidance's syntax that reaches beyond the input: other grammars, tokens by name, early ends.
EARLY_END = r"\b(?:stop|suffix|lazy|max_tokens|temperature)\b(?=\s*[=,\]])"
ESTIMATES = {"lark": estimate_lark, "regex": estimate_pattern}
UNSUPPORTED_SYNTAX = re.compile(r"%(?!ignore\b|import\b)\w*|<[^>\s]*>|@\w+|" + EARLY_END)


def lark_grammar(definition: str, param: str = "format.definition") -> str:
    """Return a caller's grammar in Lark unchanged. Raises RequestError when it cannot be followed."""
    _check_size(definition, param)
    bare = QUOTED.sub('""', definition)
    unsupported = UNSUPPORTED_SYNTAX.search(bare)
    if unsupported is not None:
        raise invalid_grammar(param, f"'{unsupported[0][:40]}' is not supported.")
    if len(re.findall(r"&|~(?!\s*\d)", bare)) > MAX_INTERSECTIONS:
        raise invalid_grammar(param, f"more than {MAX_INTERSECTIONS} of & and ~ are not supported.")
    _check_units(estimate_lark(definition), param)
    return _check_compiles(definition, param)


def regex_grammar(definition: str, param: str = "format.definition") -> str:
    """Return a grammar in Lark for a regular expression that must match the whole input. Raises RequestError."""
    from llguidance import regex_to_lark

    _check_size(definition, param)
    _check_units(estimate_pattern(definition), param)
    return _check_compiles(f"start: /{regex_to_lark(definition, '')}/", param)


def estimate_units(definition: str, syntax: str, param: str) -> int:
    """Return the work of compiling a grammar. Raises RequestError when it takes too much."""
    if len(definition) > MAX_CHARS or syntax not in ESTIMATES:
        return 0  # it is refused where it is read
    return _check_units(ESTIMATES[syntax](definition), param)


def _check_units(units: int, param: str) -> int:
    if units > MAX_UNITS:
        raise invalid_grammar(param, TOO_COMPLEX)
    return units


def _check_size(definition: str, param: str) -> None:
    if len(definition) > MAX_CHARS:
        raise invalid_grammar(param, f"it has {len(definition)} characters; at most {MAX_CHARS} are supported.")


def _check_compiles(grammar: str, param: str) -> str:
    message = compile_error(grammar)
    if message:
        raise invalid_grammar(param, message)
    return grammar


def invalid_grammar(param: str, message: str) -> RequestError:
    """Return the error of a grammar that cannot be used."""
    return RequestError(f"Invalid grammar in {param}: {message}", code="invalid_grammar", param=param)
