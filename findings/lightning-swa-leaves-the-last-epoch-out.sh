#!/usr/bin/env bash
# Lightning's weight averaging averages the weights at the starts of epochs: what the last epoch learns is thrown away.
#
# lightning 2.6.6. `StochasticWeightAveraging(swa_epoch_start=1)` with four epochs, of a weight that starts at 0 and
# grows by 1 an epoch: the weights after the epochs are 1, 2, 3 and 4. The model ends with (0 + 1 + 2 + 3) / 4 = 1.5,
# not with their mean 2.5: each epoch's start counts, the one before any training among them, and the last end does
# not. With a BatchNorm layer in the model there is a fifth epoch, for its statistics, with the average in the module
# and without backward passes; it ends with an optimizer step all the same, on the gradient that the last batch of
# training left. So the model ends one step away from the average: at 2.5.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder/site" torch==2.13.0 numpy lightning==2.6.6

cat > "$folder/script.py" <<'PYTHON'
import logging
import tempfile
import warnings

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

warnings.simplefilter("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
import lightning  # noqa: E402
from lightning.pytorch import Callback, LightningModule, Trainer  # noqa: E402
from lightning.pytorch.callbacks import StochasticWeightAveraging  # noqa: E402


class Growing(LightningModule):
    def __init__(self, batch_norm):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        if batch_norm:
            self.norm = nn.BatchNorm1d(1, affine=False)

    def training_step(self, batch, batch_idx):
        if hasattr(self, "norm"):
            self.norm(batch[0])
        return -self.weight

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


class Recorder(Callback):
    def on_train_epoch_end(self, trainer, module):
        ends.append(round(module.weight.item(), 3))


for batch_norm in (False, True):
    ends = []
    averaging = StochasticWeightAveraging(swa_lrs=1.0, swa_epoch_start=1)
    trainer = Trainer(
        max_epochs=4,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tempfile.mkdtemp(),
        callbacks=[averaging, Recorder()],
    )
    module = Growing(batch_norm)
    trainer.fit(module, DataLoader(TensorDataset(torch.randn(4, 1)), batch_size=4))
    print(
        f"lightning {lightning.__version__}, BatchNorm {batch_norm}: ends of epochs {ends}, "
        f"average {module.weight.item():.2f}, steps {trainer.global_step}"
    )
    assert ends[:4] == [1, 2, 3, 4]
    assert abs(module.weight.item() - (2.5 if batch_norm else 1.5)) < 1e-6
    assert (len(ends), trainer.global_step) == ((5, 5) if batch_norm else (4, 4))
PYTHON
PYTHONPATH="$folder/site" python3 "$folder/script.py"
