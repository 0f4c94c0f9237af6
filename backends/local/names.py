"""What tools of the protocol are called where models know only functions."""

# To a model a custom tool is a function with this one parameter.
CUSTOM_INPUT = "input"
BETWEEN = "__"


def flat_name(name: str, namespace: str | None) -> str:
    """The one name that stands for a tool's and its namespace's."""
    return f"{namespace}{BETWEEN}{name}" if namespace else name
