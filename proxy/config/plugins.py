"""use = "name" -> the class that the module of that name defines."""

from collections.abc import Iterator
from importlib import import_module
from pkgutil import iter_modules
from typing import TypeVar

T = TypeVar("T")
NOT_PLUGINS = frozenset({"support", "training"})
"""Packages that are not plug-ins."""


def load(use: str, package: str, kind: type[T]) -> type[T]:
    """Return the class that `use` names: in `package`'s module of that name, or in a module of your own ("acme.quota").

    Raises ValueError if there is no such module, or if it does not define exactly one complete subclass of `kind`.
    """
    if not all(part.isidentifier() and not part.startswith("_") for part in use.split(".")):
        raise ValueError(f"'{use}' is not the name of a module")
    module_name = use if "." in use else f"{package}.{use}"
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module exists; something that it imports does not
        raise ValueError(f"there is no module {module_name}") from error
    classes = [
        found
        for found in vars(module).values()
        if isinstance(found, type) and issubclass(found, kind) and found.__module__ == module_name
    ]
    if len(classes) != 1:
        raise ValueError(f"{module_name} defines {len(classes)} classes of {kind.__name__}; it must define one")
    if missing := ", ".join(sorted(getattr(classes[0], "__abstractmethods__", ()))):
        raise ValueError(f"{module_name} does not implement {missing}, which every {kind.__name__} must have")
    return classes[0]


def plugin_names(package: str) -> Iterator[str]:
    """Yield the names of a package's plug-ins."""
    for module in iter_modules(import_module(package).__path__):
        if not module.name.startswith("_") and module.name not in NOT_PLUGINS:
            yield module.name
