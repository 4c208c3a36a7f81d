"""A callback for the Trainer of Hugging Face's transformers."""

from typing import Any

from torch import nn

from dswag.posterior.collectors.collector import SnapshotCollector

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:
    raise ImportError(
        "dswag.posterior.collectors.transformers needs transformers: pip install 'dswag[transformers]'"
    ) from error


class PosteriorCallback(SnapshotCollector, TrainerCallback):
    """Takes snapshots of the Trainer's model; `posterior` is the Gaussian over its trainable weights afterwards.

    `with callback.posterior.sampled(model, seed=0): ...` puts the weights of a draw into the model. BatchNorm
    statistics, if the model has any, are not weights: collect them anew for every draw, with
    `dswag.update_batch_norm` inside of that context.

    The snapshots are not part of the Trainer's checkpoints: a training that is resumed starts without any. Then
    `dswag.posterior.collectors.checkpoint_files.moments_from_files` can take them from the checkpoints instead. An
    epoch that `max_steps` cuts short counts as an epoch. Under data parallelism every process has the same posterior.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuses arguments under which a process does not hold all weights.

        Raises:
            ValueError: FSDP or DeepSpeed.
        """
        if args.fsdp or args.deepspeed:
            raise ValueError(
                f"{'FSDP' if args.fsdp else 'DeepSpeed'} splits the weights among processes, so that none has a whole "
                "snapshot: take the posterior from whole checkpoints, with dswag collect"
            )
        self._epochs = int(state.epoch or 0)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: nn.Module, **kwargs: Any
    ) -> None:
        """Takes a snapshot if one is due after this step."""
        self.step_ended(model, state.global_step)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: nn.Module, **kwargs: Any
    ) -> None:
        """Takes a snapshot if one is due after this epoch."""
        self._epochs += 1
        self.epoch_ended(model, self._epochs)
