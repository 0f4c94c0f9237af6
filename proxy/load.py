"""use = "name" -> the one class of that module."""

import inspect
from importlib import import_module
from typing import TypeVar

T = TypeVar("T")


def load(use: str, room: str, kind: type[T]) -> type[T]:
    """The class that `use` names: of `room`'s module of that name, or of a module of your own ("acme.rules.quota").

    Raises ValueError when there is no such module, when it does not define exactly one `kind`, or not all of it.
    """
    if not all(part.isidentifier() and not part.startswith("_") for part in use.split(".")):
        raise ValueError(f"'{use}' is not the name of a module")
    module_name = use if "." in use else f"{room}.{use}"
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there; something that it imports is not
        raise ValueError(f"there is no module {module_name}") from error
    classes = [
        found
        for _, found in inspect.getmembers(module, inspect.isclass)
        if issubclass(found, kind) and found.__module__ == module_name
    ]
    if len(classes) != 1:
        raise ValueError(f"{module_name} defines {len(classes)} classes of {kind.__name__}; it must define one")
    if missing := sorted(getattr(classes[0], "__abstractmethods__", ())):
        raise ValueError(f"{module_name} leaves out {', '.join(missing)}, which every {kind.__name__} must have")
    return classes[0]
