"""Files and folders that documents, docstrings and comments name exist."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.sources import ROOT, parse, walk

FOLDERS = ("proxy", "policies", "backends", "deploy", "tests")
MODULES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
DOCUMENTS = [
    path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.md")) if "data" not in path.parts
] + [*ROOT.glob("*.md")]
MODULE = re.compile(r"(?<![\w./*{<-])(?:[\w-]+/)*[\w-]+\.py(?![\w/])")
# Names that stand for no file of this project, each with the reason.
OTHER_NAMES = {
    "your_name.py": "a plug-in that the reader writes", "your_name/__init__.py": "the same",
    "tests/backends/test_your_name.py": "its test", "tests/policies/test_your_name.py": "its test",
    "wire/a.py": "an example of a place in the log",
    "tokens/tokenizers/instruct.py": "a file of mistral-common",
}  # fmt: skip


def paths_named_in(document: Path) -> Iterator[str]:
    """Yield the paths in a document: targets of links, and code spans that name a file or a folder."""
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)#]+)", text):
        if "://" not in link:
            yield link
    yield from re.findall(r"`([a-z_]+/(?:[a-z_]+/)*(?:[a-z_]+\.[a-z]+)?|[a-z_]+\.(?:py|md|toml))`", text)


def test_every_path_in_the_architecture_exists():
    """A path is relative to proxy/, to the project, or to the document."""
    named = set(paths_named_in(ROOT / "proxy" / "README.md"))
    plugin_templates = {"_template.py"}

    assert named >= {"pipeline.py", "rules/guard.py", "wire/", "errors.md"}
    assert [
        path
        for path in sorted(named - plugin_templates)
        if not (ROOT / "proxy" / path).exists() and not (ROOT / path).exists()
    ] == []


def test_every_link_of_the_readme_exists():
    """A file that is moved needs a new link."""
    assert [path for path in paths_named_in(ROOT / "README.md") if not (ROOT / path).exists()] == []


def prose_of(path: Path) -> Iterator[str]:
    """Yield what a document says, or the docstrings, other bare strings and comments of a module that name modules."""
    text = path.read_text()
    if path.suffix == ".md":
        yield text
    elif ".py" in text:
        yield from re.findall(r"# [^\n]*", text)
        for node in walk(parse(path)):
            value = node.value if isinstance(node, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield value.value


def test_every_module_that_is_named_in_prose_exists():
    """By its path, or by the end of it. A module that is renamed is renamed in comments and documents too."""
    modules = [path.relative_to(ROOT).parts for path in MODULES]
    ends = {"/".join(parts[at:]) for parts in modules for at in range(len(parts))}
    named = [
        (str(path.relative_to(ROOT)), name)
        for path in [*DOCUMENTS, *MODULES]
        for text in prose_of(path)
        for name in MODULE.findall(text)
    ]

    assert len(named) > 100
    assert [(place, name) for place, name in named if name not in ends and name not in OTHER_NAMES] == []
