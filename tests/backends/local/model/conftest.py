"""Model folders for tests that modify them."""

import json
import shutil
from pathlib import Path

import pytest

TOOL = {"type": "function", "function": {"name": "f", "description": "", "parameters": {}}}


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """Return a copy of a model folder."""
    return Path(shutil.copytree(folder, tmp_path / "model"))


def write(path: Path, content: object) -> None:
    """Write text unchanged, and anything else as JSON."""
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
