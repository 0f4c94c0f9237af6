"""Whether a file that the gateway writes could be opened: asked without creating anything."""

import os
from pathlib import Path


def check_writable(path: Path) -> None:
    """Raises ValueError for a file that could neither be opened for writing nor be created."""
    folder = path.absolute().parent
    if not folder.is_dir():
        raise ValueError(f"the folder {folder} does not exist")
    if path.is_dir():
        raise ValueError(f"{path} is a folder")
    if path.exists() and not _may(path, os.R_OK | os.W_OK):
        raise ValueError(f"{path} may not be read and written by this user")
    if not path.exists() and not _may(folder, os.W_OK | os.X_OK):
        raise ValueError(f"this user may not create a file in {folder}")


def _may(path: Path, what: int) -> bool:
    return os.access(path, what, effective_ids=os.access in os.supports_effective_ids)
