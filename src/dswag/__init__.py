"""Distributed SWAG: Bayesian deep learning where the data is spread over workers or devices."""

from dswag.algorithms.calibration import calibrate
from dswag.algorithms.conformal import Conformal, conformal
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
    "predict",
    "predictive",
    "predictive_stream",
    "regression",
    "synchronize",
    "train",
    "update_batch_norm",
]
