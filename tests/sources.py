"""The sources of the project as syntax trees, each parsed and walked once."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCES = [path for folder in ("proxy", "policies", "backends") for path in sorted((ROOT / folder).rglob("*.py"))]


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def walk(tree: ast.AST) -> tuple[ast.AST, ...]:
    """Return the nodes of a tree in the order of `ast.walk`."""
    return tuple(ast.walk(tree))
