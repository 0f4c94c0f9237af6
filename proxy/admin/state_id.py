"""A name for the place of a state: a command compares it before it changes what another gateway keeps."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

PLACES = ("url", "cluster_nodes", "sentinels")


def state_id(tables: Mapping[str, Any]) -> str:
    """Return a name for where the `[state]` of a config is; the place cannot be read from it."""
    table = tables.get("state", {})
    path = str(Path(table["path"]).resolve()) if "path" in table else ""
    parts = [table.get("use", "memory"), path, *(table.get(name) for name in PLACES)]
    return hashlib.sha256(orjson.dumps(parts)).hexdigest()[:16]
