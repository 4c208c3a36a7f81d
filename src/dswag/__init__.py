"""Distributed SWAG: Bayesian deep learning where the data is spread over workers or devices."""

from dswag.api import Run, train
from dswag.batch_norm import update as update_batch_norm
from dswag.checkpoint import Checkpoint, CheckpointError
from dswag.config import Config, ConfigError
from dswag.divergence import DivergenceError
from dswag.engines.in_process import InProcess
from dswag.engines.recorded import Recorded
from dswag.exchange import Missing, TooFewClientsError
from dswag.moments import Moments
from dswag.parameters import Layout
from dswag.posterior import GaussianPosterior, PosteriorFileError
from dswag.prediction import Predictive, ensemble, predict, predictive, predictive_stream
from dswag.regression import Regression, regression
from dswag.scaling import calibrate
from dswag.server import Server
from dswag.tasks import ClientError
from dswag.training import Round, collect, evaluate, explore, synchronize

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "ClientError",
    "Config",
    "ConfigError",
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
