"""All settings, in parts: one for each phase, one for the client's update, one for faults.

Import `Config` and `ConfigError` from `dswag`; the parts, such as `ExploreSettings`, from here. `differences` compares
the settings of two runs.

>>> from dswag.config import Config
>>> config = Config(clients=5, explorers="40%")
>>> config.explore.explorers, config.train.rounds
('40%', 20)
"""

from dswag.config.comparison import differences
from dswag.config.parts import (
    CalibrationSettings,
    ExploreSettings,
    FaultSettings,
    LocalSettings,
    PosteriorSettings,
    PredictSettings,
    ServerSettings,
    TrainSettings,
)
from dswag.config.whole import PAPER, Config
from dswag.core.validation import ConfigError

__all__ = [
    "PAPER",
    "CalibrationSettings",
    "Config",
    "ConfigError",
    "ExploreSettings",
    "FaultSettings",
    "LocalSettings",
    "PosteriorSettings",
    "PredictSettings",
    "ServerSettings",
    "TrainSettings",
    "differences",
]
