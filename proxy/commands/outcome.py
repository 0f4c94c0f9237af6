"""How a command ends."""

SUCCESS, INPUT_ERROR = 0, 2


def reason(error: Exception) -> str:
    """What an error says, without Python's notation: `audit.jsonl: No such file or directory`."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)
