"""A callback for Lightning's Trainer."""

from typing import Any

from dswag.posterior.collectors.collector import SnapshotCollector

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.callbacks import StochasticWeightAveraging
    from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
except ImportError as error:
    raise ImportError("dswag.posterior.collectors.lightning needs lightning: pip install 'dswag[lightning]'") from error


class PosteriorCallback(SnapshotCollector, Callback):
    """Takes snapshots of a LightningModule while it is fitted; `posterior` is the Gaussian over its weights afterwards.

    Names and shapes are those of the LightningModule: `with callback.posterior.sampled(module, seed=0): ...` puts the
    weights of a draw into it. BatchNorm statistics are not weights: collect them anew for every draw, with
    `dswag.update_batch_norm` inside of that context.

    The snapshots are not part of Lightning's checkpoints: a fit that is resumed starts without any. Then
    `dswag.posterior.collectors.checkpoint_files.moments_from_files` can take them from the checkpoints instead. Under
    data parallelism every process has the same posterior; where FSDP2 splits the weights, its own part of it.

    Snapshots are of the weights that training goes through, also where callbacks of Lightning average them
    (WeightAveraging, EMAWeightAveraging). StochasticWeightAveraging puts its average into the module for one more
    epoch; in that there is no snapshot.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses strategies under which weights lie where they cannot be read, and a second training.

        Raises:
            ValueError: such a strategy, or what `training_begins` refuses.
        """
        if isinstance(trainer.strategy, DeepSpeedStrategy | FSDPStrategy):
            raise ValueError(
                f"{type(trainer.strategy).__name__} splits the weights among processes, so that none has a whole "
                "snapshot: take the posterior from whole checkpoints, with dswag collect, or use FSDP2 "
                "(ModelParallelStrategy)"
            )
        self.training_begins(pl_module, trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Takes a snapshot if one is due after this step."""
        if not _holds_average(trainer):
            self.step_ended(pl_module, trainer.global_step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes a snapshot if one is due after this epoch."""
        if not _holds_average(trainer):
            self.epoch_ended(pl_module, trainer.current_epoch + 1)


def _holds_average(trainer: Trainer) -> bool:
    """Whether this is the epoch in which StochasticWeightAveraging collects BatchNorm statistics for its average."""
    return any(
        isinstance(callback, StochasticWeightAveraging) and trainer.current_epoch > callback.swa_end
        for callback in trainer.callbacks
    )
