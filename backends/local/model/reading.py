"""Files of a model's folder, read so that every fault names the file: ValueError or OSError, in one sentence."""

import json
from pathlib import Path
from typing import Any

JSON = dict[str, Any]


def text_in(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"The model folder {path.parent} has no {path.name}.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}.") from error


def json_in(path: Path) -> Any:
    try:
        return json.loads(text_in(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply.") from error


def object_in(path: Path) -> JSON:
    found = json_in(path)
    if not isinstance(found, dict):
        raise ValueError(f"{path} is not a JSON object.")  # noqa: TRY004  one kind of error for one kind of fault
    return found


def object_if_there(path: Path) -> JSON:
    """What a file holds that a folder need not have."""
    return object_in(path) if path.is_file() else {}
