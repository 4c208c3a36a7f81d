"""Packages that come with an extra of dswag, imported where they are used."""

from importlib import import_module
from importlib.util import find_spec
from typing import Any


def required(module: str, user: str, *, extra: str = "cli") -> Any:
    """The module. Raises ImportError, with what to install, where its package is not there."""
    check(user, module, extra=extra)
    return import_module(module)


def check(user: str, *modules: str, extra: str = "cli") -> None:
    """Raises ImportError, with what to install, where the package of a module is not there."""
    for package in (module.partition(".")[0] for module in modules):
        if find_spec(package) is None:
            raise ImportError(f"{user} needs {package}: pip install 'dswag[{extra}]'", name=package)
