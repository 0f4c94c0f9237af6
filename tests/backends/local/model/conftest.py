"""Model folders to break."""

import json
import shutil
from pathlib import Path

import pytest

TOOL = {"type": "function", "function": {"name": "f", "description": "", "parameters": {}}}


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A model folder of the test's own."""
    return Path(shutil.copytree(folder, tmp_path / "model"))


def write(path: Path, content: object) -> None:
    """A file of text as it is, of anything else as JSON."""
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
