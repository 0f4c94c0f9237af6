"""Exit statuses and error messages of commands."""

SUCCESS, INPUT_ERROR = 0, 2


def reason(error: Exception) -> str:
    """Return the text of an error without Python's notation: `audit.jsonl: No such file or directory`."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)
