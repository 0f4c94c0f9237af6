"""Reads files of a model folder. Every fault names the file: ValueError or OSError, in one sentence."""

import json
from pathlib import Path
from typing import Any

JSON = dict[str, Any]


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"The model folder {path.parent} has no {path.name}.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}.") from error


def read_json(path: Path) -> Any:
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply.") from error


def read_object(path: Path) -> JSON:
    found = read_json(path)
    if not isinstance(found, dict):
        raise ValueError(f"{path} is not a JSON object.")  # noqa: TRY004  every fault of a file is a ValueError
    return found


def read_optional_object(path: Path) -> JSON:
    """Return the contents of a file that a folder may lack; empty without it."""
    return read_object(path) if path.is_file() else {}
