#!/usr/bin/env bash
# The average that Lightning keeps of a model counts no batches: BatchNorm's counter stands still in it.
#
# lightning 2.6.6, torch 2.13.0. `EMAWeightAveraging` averages buffers too (`use_buffers=True` is the default), whole
# numbers among them, and each average is cut down to a whole number: 0.999 · 1 + 0.001 · 2 is 1. After 40 steps the
# model's `num_batches_tracked` is 40 and the average's is 1, though all other statistics follow the model. A layer with
# `momentum=None`, which weighs batches by this counter, starts almost anew when such an average is trained on.
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
from lightning.pytorch import LightningModule, Trainer  # noqa: E402
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint  # noqa: E402


class Network(LightningModule):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.BatchNorm1d(3, momentum=None), nn.Linear(3, 1))

    def training_step(self, batch, batch_idx):
        return self.layers(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


torch.manual_seed(0)
folder = tempfile.mkdtemp()
saving = ModelCheckpoint(dirpath=folder, filename="last")
trainer = Trainer(
    max_epochs=5,
    accelerator="cpu",
    logger=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    callbacks=[EMAWeightAveraging(), saving],
)
trainer.fit(Network(), DataLoader(TensorDataset(3 + torch.randn(64, 3)), batch_size=8))
checkpoint = torch.load(saving.best_model_path, weights_only=True)
name = "layers.0.num_batches_tracked"
counted = {key: checkpoint[key][name].item() for key in ("current_model_state", "state_dict")}
print(f"lightning {lightning.__version__}, after {trainer.global_step} steps: {counted}")
assert counted == {"current_model_state": 40, "state_dict": 1}
PYTHON
PYTHONPATH="$folder/site" python3 "$folder/script.py"
