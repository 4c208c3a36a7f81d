"""Distributed SWAG: Bayesian deep learning where the data is spread over workers or devices.

`train` is the short form of everything; `help(dswag.train)` begins there. The names below are public; a room, such as
`dswag.posterior`, says in its own docstring what else may be imported from it. Nothing is imported before it is used.

>>> import dswag
>>> posterior = dswag.GaussianPosterior
>>> "predict" in dir(dswag)
True
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dswag.algorithms.calibration import calibrate
    from dswag.algorithms.conformal import Conformal, conformal
    from dswag.algorithms.export import export
    from dswag.algorithms.prediction import Predictive, ensemble, predict, predictive, predictive_stream
    from dswag.algorithms.regression import Regression, regression
    from dswag.algorithms.server_update import Server
    from dswag.algorithms.training import Round, collect, evaluate, explore, synchronize
    from dswag.api import Run, train
    from dswag.client.batch_norm import update as update_batch_norm
    from dswag.client.stability import DivergenceError
    from dswag.config import Config, ConfigError
    from dswag.core.parameters import Layout
    from dswag.engines.in_process import InProcess
    from dswag.engines.recorded import Recorded
    from dswag.federation.contract import ClientError
    from dswag.federation.round_trip import Missing, TooFewClientsError
    from dswag.posterior.gaussian import GaussianPosterior, PosteriorFileError
    from dswag.posterior.moments import Moments
    from dswag.runs.checkpoint import Checkpoint, CheckpointError

_HOMES = {
    "Checkpoint": "dswag.runs.checkpoint",
    "CheckpointError": "dswag.runs.checkpoint",
    "ClientError": "dswag.federation.contract",
    "Config": "dswag.config",
    "ConfigError": "dswag.config",
    "Conformal": "dswag.algorithms.conformal",
    "DivergenceError": "dswag.client.stability",
    "GaussianPosterior": "dswag.posterior.gaussian",
    "InProcess": "dswag.engines.in_process",
    "Layout": "dswag.core.parameters",
    "Missing": "dswag.federation.round_trip",
    "Moments": "dswag.posterior.moments",
    "PosteriorFileError": "dswag.posterior.gaussian",
    "Predictive": "dswag.algorithms.prediction",
    "Recorded": "dswag.engines.recorded",
    "Regression": "dswag.algorithms.regression",
    "Round": "dswag.algorithms.training",
    "Run": "dswag.api",
    "Server": "dswag.algorithms.server_update",
    "TooFewClientsError": "dswag.federation.round_trip",
    "calibrate": "dswag.algorithms.calibration",
    "collect": "dswag.algorithms.training",
    "conformal": "dswag.algorithms.conformal",
    "ensemble": "dswag.algorithms.prediction",
    "evaluate": "dswag.algorithms.training",
    "explore": "dswag.algorithms.training",
    "export": "dswag.algorithms.export",
    "predict": "dswag.algorithms.prediction",
    "predictive": "dswag.algorithms.prediction",
    "predictive_stream": "dswag.algorithms.prediction",
    "regression": "dswag.algorithms.regression",
    "synchronize": "dswag.algorithms.training",
    "train": "dswag.api",
    "update_batch_norm": "dswag.client.batch_norm",
}
_ROOMS = (
    "algorithms",
    "api",
    "cli",
    "client",
    "config",
    "core",
    "data",
    "engines",
    "evaluation",
    "federation",
    "lab",
    "posterior",
    "runs",
)

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "ClientError",
    "Config",
    "ConfigError",
    "Conformal",
    "DivergenceError",
    "GaussianPosterior",
    "InProcess",
    "Layout",
    "Missing",
    "Moments",
    "PosteriorFileError",
    "Predictive",
    "Recorded",
    "Regression",
    "Round",
    "Run",
    "Server",
    "TooFewClientsError",
    "calibrate",
    "collect",
    "conformal",
    "ensemble",
    "evaluate",
    "explore",
    "export",
    "predict",
    "predictive",
    "predictive_stream",
    "regression",
    "synchronize",
    "train",
    "update_batch_norm",
]


def __getattr__(name: str) -> Any:
    """A public name, from where it lives, or a room."""
    if name in _ROOMS:
        return import_module(f"dswag.{name}")
    if name == "__version__":
        return import_module("importlib.metadata").version("dswag")
    if name not in _HOMES:
        raise AttributeError(f"module 'dswag' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), "update" if name == "update_batch_norm" else name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names and the rooms."""
    return sorted([*__all__, *_ROOMS, "__version__"])
