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
    epoch that `max_steps` cuts short counts as an epoch. Under data parallelism every process has the same posterior;
    where FSDP2 splits the weights, its own part of it.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: nn.Module, **kwargs: Any
    ) -> None:
        """Refuses models whose weights lie where they cannot be read, and a second training.

        What counts is the model: `accelerate launch` wraps it without a word of that in the arguments.

        Raises:
            ValueError: DeepSpeed, or what `training_begins` refuses, such as FSDP1.
        """
        if args.deepspeed or any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
            raise ValueError(
                "DeepSpeed splits the weights among processes, so that none has a whole snapshot: take the posterior "
                "from whole checkpoints, with dswag collect, or use FSDP2"
            )
        self.training_begins(model, state.global_step)
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
