"""The short form: a model and its clients in, a posterior out."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dswag.config import Config
from dswag.engines.in_process import InProcess
from dswag.parameters import Layout
from dswag.posterior import GaussianPosterior
from dswag.prediction import Predictive, predictive
from dswag.scaling import calibrate
from dswag.server import Server
from dswag.tasks import Engine
from dswag.training import Round, collect, explore, synchronize
from dswag.workspace import Loss


@dataclass(frozen=True, eq=False)
class Run:
    """What `train` leaves behind."""

    config: Config
    theta: Float[Tensor, "d"] = field(repr=False)
    """θ_T, the phase-1 model."""
    posterior: GaussianPosterior
    history: tuple[Round, ...] = field(repr=False)
    engine: Engine = field(repr=False)
    """Where the clients are; a model with BatchNorm layers needs it to predict."""

    def predictive(self, model: nn.Module, inputs: Tensor | Iterable[Any], **options: Any) -> Predictive:
        """Algorithm 2 as the config says: its draws, scale and examples for BatchNorm, from the run's clients.

        Takes what `dswag.predictive` takes, which wins over the config.
        """
        settings = {
            "samples": self.config.samples,
            "scale": self.config.scale,
            "batch_norm_examples": self.config.batch_norm_examples,
            "engine": self.engine,
        }
        return predictive(model, self.posterior, inputs, **{**settings, **options})


def train(
    model: nn.Module,
    clients: Sequence[Any],
    config: Config,
    *,
    loss: Loss = F.cross_entropy,
    engine: Engine | None = None,
) -> Run:
    """Algorithm 1 from the model's weights on the clients' data, in this process unless another engine is given.

    Args:
        model: any module with trainable parameters. It is not changed; `run.posterior.mean_into(model)` does that.
        clients: each client's examples: a pair of tensors, a `Dataset` or a `DataLoader`.
        config: the settings; its `clients` is the length of `clients`.
        loss: mean loss of (outputs, targets).
        engine: where the clients run instead; `clients` and `loss` are then the engine's affair.

    Raises:
        TypeError: no module, no list of clients, or no config.
        ValueError: settings that do not fit the clients.
        ClientError: a client failed; it is named, with the round, the epoch and the cause.
        TooFewClientsError, DivergenceError: from the algorithms.
    """
    if not isinstance(config, Config):
        raise TypeError(f"config must be a dswag.Config, got {type(config).__name__}: Config(clients=..., ...)")
    if engine is None:
        engine = InProcess(model, clients, loss=loss)
    if engine.num_clients != config.clients:
        raise ValueError(
            f"the config is for {config.clients} clients, got {engine.num_clients}: "
            f"pass Config(clients={engine.num_clients}, ...)"
        )
    layout = Layout.of(model)
    theta = layout.flatten(model)
    history = tuple(synchronize(engine, Server(theta), config))
    theta = history[-1].theta
    posterior = explore(engine, theta, config, collect(theta, config, layout)).fold.posterior()
    if config.calibrate:
        posterior = calibrate(engine, posterior, config)
    return Run(config, theta, posterior, history, engine)
