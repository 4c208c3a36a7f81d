"""From the command line's arguments to options: a command has a flag for each of its own, and for each setting."""

from collections.abc import Sequence
from dataclasses import make_dataclass
from typing import Annotated, Any, TypedDict, cast

import tyro
from tyro.conf import PositionalMetavarFromFieldName, arg, subcommand

from dswag.cli.options import (
    Calibrate,
    Check,
    Collect,
    Compare,
    Configured,
    Evaluate,
    Options,
    Predict,
    Report,
    Reproduce,
    Train,
)
from dswag.config.parts import Share
from dswag.core.validation import Setting
from dswag.lab.experiments.recipe import settings


def parse(arguments: Sequence[str]) -> Options:
    """The command and its options.

    Raises:
        SystemExit: after --help (code 0), and for flags that cannot be read (code 2).
    """
    configured = (_with_settings(Train), _with_settings(Compare))
    commands = (*configured, Evaluate, Calibrate, Predict, Report, Check, Collect, Reproduce)
    named = [Annotated[command, subcommand(command.__name__.lower())] for command in commands]
    union: Any = named[0]
    for command in named[1:]:
        union = union | command
    options = tyro.cli(
        union,
        prog="dswag",
        args=arguments,
        config=(PositionalMetavarFromFieldName,),
    )
    return cast("Options", options)


def _with_settings(command: type[Configured]) -> type[Configured]:
    """The command with a flag for each setting of a recipe, in groups; only those given on the command line are set."""
    groups = [
        (
            _identifier(group),
            Annotated[
                cast("Any", TypedDict)(_identifier(group), {s.name: _flag(s) for s in members}, total=False),
                arg(name=group.lower()),
            ],
        )
        for group, members in _grouped_settings().items()
    ]
    made = make_dataclass(command.__name__, groups, bases=(command,), frozen=True, kw_only=True)
    made.__doc__ = command.__doc__
    return made


def _flag(setting: Setting) -> Any:
    default = "none" if setting.default == () else setting.default
    return Annotated[
        setting.annotation,
        arg(
            help=setting.description,
            help_behavior_hint=f"(default: {default})",
            metavar="NUMBER|PERCENTAGE|all" if setting.annotation == Share else None,
            prefix_name=False,
        ),
    ]


def _grouped_settings() -> dict[str, list[Setting]]:
    groups: dict[str, list[Setting]] = {}
    for setting in settings():
        groups.setdefault(setting.group, []).append(setting)
    return groups


def _identifier(group: str) -> str:
    return group.lower().replace(" ", "_")
