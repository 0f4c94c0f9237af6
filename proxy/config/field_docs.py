"""The descriptions of a model's fields: the docstrings below them.

pydantic's `use_attribute_docstrings` reads the source of each class when it is defined. That is a sixth of the time in
which a gateway starts, for texts that only `headgate explain` and the document of the admin API need.
"""

import ast
import inspect
from itertools import pairwise
from textwrap import dedent

from pydantic import BaseModel


def field_docs(kind: type[BaseModel]) -> dict[str, str]:
    """Return the descriptions of the fields of a model, inherited ones included, by their names."""
    found: dict[str, str] = {}
    for part in reversed(kind.__mro__):
        if issubclass(part, BaseModel) and part is not BaseModel:
            found |= _own_docs(part)
    return found


def _own_docs(kind: type[BaseModel]) -> dict[str, str]:
    try:
        definition = ast.parse(dedent(inspect.getsource(kind))).body[0]
    except (OSError, TypeError):  # its module is compiled, or no file
        return {}
    return {
        field.target.id: inspect.cleandoc(text.value.value)
        for field, text in pairwise(getattr(definition, "body", ()))
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }
