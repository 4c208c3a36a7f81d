"""What the callbacks of all trainers share: when a snapshot is due, and the moments that take it in."""

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from dswag.posterior.gaussian import GaussianPosterior
from dswag.posterior.moments import Moments


class SnapshotCollector:
    """Adds the trainable weights of a module to moments, in place, at the end of certain epochs or steps.

    Args:
        moments: takes the snapshots in; `Moments()`, of rank 20, if None. If it has a layout, only those parameters.
        every_n_epochs: epochs from one snapshot to the next; each is taken at the end of an epoch.
        every_n_steps: steps of the optimizer from one snapshot to the next, or more, where several are counted at once;
            if given, epochs do not count.
        start: number of epochs, or steps, without snapshots; the first is taken `every_n_...` later.
        device: where the moments are kept; GPUs used for training seldom have room for 20 columns.

    Raises:
        ValueError: a number below 1, or a start below 0.
    """

    def __init__(
        self,
        moments: Moments | None = None,
        *,
        every_n_epochs: int = 1,
        every_n_steps: int | None = None,
        start: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        for name, value, least in (
            ("every_n_epochs", every_n_epochs, 1),
            ("every_n_steps", 1 if every_n_steps is None else every_n_steps, 1),
            ("start", start, 0),
        ):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        self.moments = Moments() if moments is None else moments
        self.every_n_epochs = every_n_epochs
        self.every_n_steps = every_n_steps
        self.start = start
        self.device = torch.device(device)
        self._step = 0
        self._next = start + (every_n_steps or 1)
        self._taken = 0

    @property
    def posterior(self) -> GaussianPosterior:
        """The Gaussian over weights of the snapshots so far.

        Raises:
            ValueError: fewer than two snapshots.
        """
        return self.moments.posterior()

    def training_begins(self, module: nn.Module, step: int) -> None:
        """Refuses, before any work, a module of which no snapshot can be taken, and a second training.

        Snapshots of two trainings make no posterior of either. A training that goes on where it stopped is the same.

        Args:
            module: the module to be trained.
            step: how many steps the optimizer has done before.

        Raises:
            ValueError: a module or a training that is refused.
        """
        if self._taken and step != self._step:
            raise ValueError(
                f"this callback has {self._taken} snapshots of a training that ended after step {self._step}, and this "
                f"one begins after step {step}: make a new callback for each training"
            )
        if not any(isinstance(parameter, UninitializedParameter) for parameter in module.parameters()):
            self.moments.layout_for(module)
        if self.every_n_steps is not None and not self._taken and step > self.start:
            done = (step - self.start) // self.every_n_steps
            self._next = self.start + (done + 1) * self.every_n_steps
        self._step = step

    def epoch_ended(self, module: nn.Module, number: int) -> None:
        """Takes a snapshot if one is due after this many epochs."""
        due = number > self.start and (number - self.start) % self.every_n_epochs == 0
        if self.every_n_steps is None and due:
            self._take(module)

    def step_ended(self, module: nn.Module, number: int) -> None:
        """Takes a snapshot if one is due after this many steps of the optimizer; the same number counts once."""
        if self.every_n_steps is not None and number != self._step and number >= self._next:
            self._take(module)
            self._next = number + self.every_n_steps
        self._step = number

    def _take(self, module: nn.Module) -> None:
        self.moments.add(module, device=self.device)
        self._taken += 1
