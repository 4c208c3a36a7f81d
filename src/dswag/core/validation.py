"""Classes of settings that are checked when made, and say in our words what is wrong with them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass as record
from dataclasses import fields
from difflib import get_close_matches
from functools import wraps
from inspect import Parameter, Signature, cleandoc
from operator import attrgetter
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
    "dataclass_type": "a part with its settings",
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
    """The class as a frozen dataclass of settings given by name; what cannot be is a ConfigError, a line a fault.

    A field whose class is itself validated is a part. A part's settings can also be given to the whole, each by a name
    of its own: that of its field, unless the part's `FLAT` has another one for it.
    """
    config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    made: Any = dataclass(frozen=True, kw_only=True, repr=False, config=config)(cls)
    made.__init__ = _in_our_words(made.__init__)
    made.__repr__ = _short
    known = described(made)
    made.__paths__ = {setting.name: setting.path for setting in known}
    made.__signature__ = Signature(
        [Parameter(s.name, Parameter.KEYWORD_ONLY, default=s.default, annotation=s.plain) for s in known]
    )
    listed = "\n".join(f"    {setting.name}: {setting.description}" for setting in known)
    made.__doc__ = f"{cleandoc(made.__doc__ or '')}\n\nSettings:\n{listed}"
    return made  # type: ignore[no-any-return]


@record(frozen=True)
class Setting:
    """One setting, as help texts and reports show it."""

    name: str
    """Its own among all settings."""
    path: tuple[str, ...]
    """Attributes that lead to it, such as ("explore", "epochs")."""
    group: str
    """Which part it belongs to, by how the docstring of the part begins, such as "Phase 1"."""
    description: str
    default: Any
    annotation: Any
    plain: Any
    """The annotation without what is checked."""


def described(cls: type) -> tuple[Setting, ...]:
    """Every setting of a validated class and its parts."""
    plain, annotated = get_type_hints(cls), get_type_hints(cls, include_extras=True)
    group = (cls.__doc__ or "").partition(":")[0]
    found: list[Setting] = []
    for field in fields(cls):
        if hasattr(plain[field.name], "__pydantic_fields__"):
            names = getattr(plain[field.name], "FLAT", {})
            for s in described(plain[field.name]):
                path = (field.name, *s.path)
                found.append(
                    Setting(names.get(s.name, s.name), path, s.group, s.description, s.default, s.annotation, s.plain)
                )
        else:
            text = " ".join(_docstrings(cls)[field.name].split())
            default, of = field.default, field.name
            found.append(Setting(of, (of,), group, text, default, annotated[of], plain[of]))
    return tuple(found)


def paths(cls: Any) -> Mapping[str, tuple[str, ...]]:
    """Where each setting of the class stands, by its own name."""
    found: Mapping[str, tuple[str, ...]] = cls.__paths__
    return found


def defaults(cls: type) -> dict[str, Any]:
    """The defaults by the settings' own names."""
    return {setting.name: setting.default for setting in described(cls)}


def flat(settings: Any) -> dict[str, Any]:
    """All values by the settings' own names."""
    return {name: attrgetter(".".join(path))(settings) for name, path in paths(type(settings)).items()}


def nested(settings: Any) -> dict[str, Any]:
    """All values but None, those of a part in a mapping of their own, as TOML has it."""
    found: dict[str, Any] = {}
    for *parts, last in sorted(paths(type(settings)).values(), key=len):
        value = attrgetter(".".join((*parts, last)))(settings)
        if value is not None:
            (found.setdefault(parts[0], {}) if parts else found)[last] = value
    return found


def _docstrings(cls: type) -> dict[str, str]:
    """The docstring of each field; pydantic keeps it with the class that defines the field."""
    return {
        name: field.description
        for base in reversed(cls.__mro__)
        for name, field in getattr(base, "__pydantic_fields__", {}).items()
        if field.description
    }


def _in_our_words(init: Callable[..., None]) -> Callable[..., None]:
    @wraps(init)
    def wrapped(self: Any, /, *values: Any, **named: Any) -> None:
        known = paths(type(self))
        try:
            init(self, *values, **_in_parts(known, named))
        except ValidationError as error:
            faults = dict.fromkeys(line for fault in error.errors() for line in _faults(fault, known))
            raise ConfigError("\n".join(faults)) from None

    return wrapped


def _in_parts(known: Mapping[str, tuple[str, ...]], named: Mapping[str, Any]) -> dict[str, Any]:
    """The values with those of parts inside of them; a setting's own name wins over its part."""
    own = {name: value for name, value in named.items() if len(known.get(name, ())) == 2}
    given = {name: value for name, value in named.items() if name not in own}
    for name, value in own.items():
        part, setting = known[name]
        before = given.get(part, {})
        if hasattr(before, "__pydantic_fields__"):
            before = {field.name: getattr(before, field.name) for field in fields(before)}
        if isinstance(before, Mapping):  # else it is refused as it is
            given[part] = {**before, setting: value}
    return given


def _short(self: Any) -> str:
    """The call that makes it, without the settings that are left at their defaults."""
    usual = defaults(type(self))
    changed = [f"{name}={value!r}" for name, value in flat(self).items() if repr(value) != repr(usual[name])]
    return f"{type(self).__name__}({', '.join(changed)})"


def _faults(fault: Any, known: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    """A line for each thing that is wrong."""
    names = {path: name for name, path in known.items()}
    place = tuple(fault["loc"])
    depth = next((n for n in (2, 1) if place[:n] in names), len(place))
    name = names.get(place[:depth], ".".join(map(str, place)))
    got = f"got {fault['input']!r}"
    if fault["type"] == "unexpected_keyword_argument":
        near = get_close_matches(str(place[-1]).replace("-", "_"), _beside(place, known), n=1)
        yield f"unknown setting {name}" + (f": did you mean {near[0]}?" if near else "")
    elif fault["type"] == "unexpected_positional_argument":
        yield f"settings are given by name, such as {next(iter(known))}={fault['input']!r}"
    elif fault["type"] == "value_error":
        words = str(fault["ctx"]["error"])
        yield from [f"{name} {words}, {got}"] if place in names else words.splitlines()
    elif fault["type"] in _MUST_BE:
        index = "".join(f"[{number}]" for number in place[depth:])
        yield f"{name}{index} must be {_MUST_BE[fault['type']].format(**fault.get('ctx', {}))}, {got}"
    else:
        yield f"{name}: {fault['msg']}, {got}"


def _beside(place: tuple[Any, ...], known: Mapping[str, tuple[str, ...]]) -> list[str]:
    """The names that could have been meant: those of the part, or all own names and those of parts."""
    if len(place) == 2:
        return [path[1] for path in known.values() if path[0] == place[0] and len(path) == 2]
    return [*known, *{path[0] for path in known.values() if len(path) == 2}]
