"""Classes of settings that are checked when made, and say in our words what is wrong with them."""

from collections.abc import Callable, Iterator
from dataclasses import fields
from difflib import get_close_matches
from functools import wraps
from inspect import Parameter, Signature, cleandoc
from typing import Any, TypeVar, dataclass_transform, get_type_hints

from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass

ClassT = TypeVar("ClassT")

_MUST_BE = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a text",
    "tuple_type": "a list",
    "finite_number": "finite",
    "greater_than": "above {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "below {lt:g}",
    "less_than_equal": "at most {le:g}",
    "literal_error": "{expected}",
}
"""What a value must be, by the type of pydantic's error, whose context fills in the limits."""


class ConfigError(ValueError):
    """Settings that cannot be used, in Python, in a file or on the command line; every one is named."""


@dataclass_transform(kw_only_default=True, frozen_default=True)
def validated(cls: type[ClassT]) -> type[ClassT]:
    """The class as a frozen dataclass of settings given by name; what cannot be is a ConfigError, a line a fault."""
    config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    made: Any = dataclass(frozen=True, kw_only=True, repr=False, config=config)(cls)
    made.__init__ = _in_our_words(made.__init__)
    made.__repr__ = _short
    made.__signature__ = _signature(made)  # pydantic's has its checks in every annotation
    listed = "\n".join(f"    {name}: {text}" for name, text in descriptions(made).items())
    made.__doc__ = f"{cleandoc(made.__doc__ or '')}\n\nSettings:\n{listed}"
    return made  # type: ignore[no-any-return]


def descriptions(cls: type) -> dict[str, str]:
    """The docstring of each field, on one line; pydantic keeps it with the class that defines the field."""
    return {
        name: " ".join(field.description.split())
        for base in reversed(cls.__mro__)
        for name, field in getattr(base, "__pydantic_fields__", {}).items()
        if field.description
    }


def _signature(cls: Any) -> Signature:
    """The settings with their types and defaults."""
    types = get_type_hints(cls)
    return Signature(
        [Parameter(f.name, Parameter.KEYWORD_ONLY, default=f.default, annotation=types[f.name]) for f in fields(cls)]
    )


def _in_our_words(init: Callable[..., None]) -> Callable[..., None]:
    @wraps(init)
    def wrapped(self: Any, /, *values: Any, **named: Any) -> None:
        try:
            init(self, *values, **named)
        except ValidationError as error:
            names = list(type(self).__pydantic_fields__)
            faults = dict.fromkeys(line for fault in error.errors() for line in _described(fault, names))
            raise ConfigError("\n".join(faults)) from None

    return wrapped


def _short(self: Any) -> str:
    """The call that makes it, without the settings that are left at their defaults; 1 client and 1.0 of them differ."""
    values = ((field.name, repr(getattr(self, field.name)), repr(field.default)) for field in fields(self))
    return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value, usual in values if value != usual)})"


def _described(fault: Any, names: list[str]) -> Iterator[str]:
    """A line for each thing that is wrong."""
    name, *within = fault["loc"] or ("",)
    got = f"got {fault['input']!r}"
    if fault["type"] == "unexpected_keyword_argument":
        near = get_close_matches(name.replace("-", "_"), names, n=1)
        yield f"unknown setting {name}" + (f": did you mean {near[0]}?" if near else "")
    elif fault["type"] == "unexpected_positional_argument":
        yield f"settings are given by name, such as {names[0]}={fault['input']!r}"
    elif fault["type"] == "value_error":
        words = str(fault["ctx"]["error"])
        yield from [f"{name} {words}, {got}"] if name else words.splitlines()
    elif within and isinstance(within[0], str):  # both of a union's types refuse it
        yield f"{name} must be a whole number or a fraction, {got}"
    elif fault["type"] in _MUST_BE:
        place = f"{name}[{within[0]}]" if within else name
        yield f"{place} must be {_MUST_BE[fault['type']].format(**fault.get('ctx', {}))}, {got}"
    else:
        yield f"{name}: {fault['msg']}, {got}"
