"""A callback for Lightning's Trainer."""

from typing import Any

from dswag.posterior.collectors.collector import SnapshotCollector

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
except ImportError as error:
    raise ImportError("dswag.posterior.collectors.lightning needs lightning: pip install 'dswag[lightning]'") from error


class PosteriorCallback(SnapshotCollector, Callback):
    """Takes snapshots of a LightningModule while it is fitted; `posterior` is the Gaussian over its weights afterwards.

    Names and shapes are those of the LightningModule: `with callback.posterior.sampled(module, seed=0): ...` puts the
    weights of a draw into it. BatchNorm statistics are not weights: collect them anew for every draw, with
    `dswag.update_batch_norm` inside of that context.

    The snapshots are not part of Lightning's checkpoints: a fit that is resumed starts without any. Then
    `dswag.posterior.collectors.checkpoint_files.moments_from_files` can take them from the checkpoints instead. Under
    data parallelism every process has the same posterior.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses strategies under which a process does not hold all weights.

        Raises:
            ValueError: such a strategy.
        """
        if isinstance(trainer.strategy, DeepSpeedStrategy | FSDPStrategy | ModelParallelStrategy):
            raise ValueError(
                f"{type(trainer.strategy).__name__} splits the weights among processes, so that none has a whole "
                "snapshot: take the posterior from whole checkpoints, with dswag collect"
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Takes a snapshot if one is due after this step."""
        self.step_ended(pl_module, trainer.global_step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes a snapshot if one is due after this epoch."""
        self.epoch_ended(pl_module, trainer.current_epoch + 1)
