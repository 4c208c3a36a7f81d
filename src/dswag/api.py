"""The short form: a model and its clients in, a posterior out."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dswag.algorithms.calibration import calibrate
from dswag.algorithms.prediction import Predictive, predictive
from dswag.algorithms.server_update import Server
from dswag.algorithms.training import RoundSummary, collect, explore, synchronize
from dswag.client.calling import Loss
from dswag.client.replica import OptimizerFactory
from dswag.config import Config
from dswag.core.links import learned
from dswag.core.parameters import Layout
from dswag.engines.in_process import InProcess
from dswag.federation.contract import Engine
from dswag.posterior.gaussian import GaussianPosterior


@dataclass(frozen=True, eq=False)
class Run:
    """What `train` returns."""

    config: Config
    theta: Float[Tensor, "d"] = field(repr=False)
    """θ_T, the phase-1 model."""
    posterior: GaussianPosterior
    history: tuple[RoundSummary, ...] = field(repr=False)
    """Every round of phase 1, without its weights: those of many rounds would fill the memory."""
    engine: Engine = field(repr=False)
    """Where the clients are; a model with BatchNorm layers needs it to predict."""

    def predictive(self, model: nn.Module, inputs: Tensor | Iterable[Any], **options: Any) -> Predictive:
        """Algorithm 2 as the config says: its draws, scale and examples for BatchNorm, from the run's clients.

        Takes what `dswag.predictive` takes, which wins over the config.
        """
        settings = {
            "samples": self.config.predict.samples,
            "scale": self.config.predict.scale,
            "batch_norm_examples": self.config.predict.batch_norm_examples,
            "engine": self.engine,
        }
        return predictive(model, self.posterior, inputs, **{**settings, **options})


def train(
    model: nn.Module,
    clients: Sequence[Any],
    config: Config | None = None,
    *,
    loss: Loss = F.cross_entropy,
    engine: Engine | None = None,
    layout: Layout | None = None,
    optimizer: OptimizerFactory | None = None,
    **settings: Any,
) -> Run:
    """Algorithm 1: the posterior after training from the model's weights on the clients' data, with all that led to it.

    The clients run in this process unless another engine is given.

    Args:
        model: any module with trainable parameters. It is not changed; `run.posterior.mean_into(model)` does that.
        clients: each client's examples: a pair of tensors (inputs, targets), a `Dataset` or a `DataLoader`.
        config: the settings; `config.clients` must be the number of clients. Or leave it out, and give those settings
            that differ from the defaults by name.
        loss: a function of (outputs, targets) that returns the mean loss of the batch, or "model"; see `InProcess`.
        engine: where the clients run instead; `clients`, `loss` and `optimizer` are then not used, as the engine has
            its own.
        layout: the parameters in θ, all trainable ones if None; the others stay as they are in the model.
        optimizer: makes each client's optimizer, such as `torch.optim.Adam`, instead of the config's; see `InProcess`.
        settings: of the config, by name; `clients` is their number.

    Raises:
        TypeError: a model that is no module, data that are no sequence of clients, or no config.
        ValueError: settings that do not fit the clients, or a client without examples.
        ClientError: a client failed; it is named, with the round, the epoch and the cause.
        TooFewClientsError: with `on_failure="skip"`, fewer clients answered than are needed.
        DivergenceError: the loss of phase 1 has grown too much, or θ is not finite.
    """
    if not isinstance(config, Config | None):
        raise TypeError(f"config must be a dswag.Config, got {type(config).__name__}: Config(clients=..., ...)")
    if config is not None and settings:
        raise TypeError(f"settings come in a config or by name, got a config and {list(settings)}: choose one")
    if engine is None:
        engine = InProcess(model, clients, loss=loss, layout=layout, optimizer=optimizer)
    config = config or Config(**{"clients": engine.num_clients, **settings})
    if engine.num_clients != config.clients:
        raise ValueError(
            f"the config is for {config.clients} clients, got {engine.num_clients}: "
            f"pass Config(clients={engine.num_clients}, ...)"
        )
    said = getattr(engine, "loss", None)
    link = None if said is None else learned(said)
    if link == "identity" and (config.calibration.calibrate or config.train.stop_accuracy is not None):
        setting = "calibrate" if config.calibration.calibrate else "stop_accuracy"
        raise ValueError(f"{setting} is for classes and yes-or-no labels, and the loss takes outputs as they are")
    layout = layout or Layout.of(model)
    theta = layout.flatten(model)
    history = []
    for done in synchronize(engine, Server(theta, layout=layout), config):
        theta = done.theta
        history.append(done.summary())
    posterior = explore(engine, theta, config, collect(theta, config, layout), layout=layout).fold.finish()
    posterior = replace(posterior, link=link)
    if config.calibration.calibrate:
        posterior = calibrate(engine, posterior, config)
    return Run(config, theta, posterior, tuple(history), engine)
