#!/usr/bin/env bash
# Under Accelerate's gradient accumulation the last step of an epoch is smaller; under the Trainer it is not.
#
# accelerate 1.15.0, transformers 5.23.0. Six batches and four a step make two steps: of four batches and of two.
# `Accelerator.accumulate` divides each loss by four, also for the last two, so that the second gradient is half of the
# mean over its examples. The Trainer, which stands on the same Accelerator, divides by the batches that there are. The
# same loop moved from one to the other trains differently on every data set whose batches the step does not divide.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder/site" torch==2.13.0 numpy transformers==5.23.0 accelerate==1.15.0

cat > "$folder/script.py" <<'PYTHON'
import tempfile
import warnings

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

warnings.simplefilter("ignore")
import accelerate  # noqa: E402
import transformers  # noqa: E402

BATCHES, A_STEP = 6, 4


class Slope(nn.Module):
    """Whose gradient is the mean of its inputs, which are ones."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, inputs):
        return {"loss": (self.weight * inputs).mean()}


by_accelerate = []
accelerator = accelerate.Accelerator(gradient_accumulation_steps=A_STEP, cpu=True)
model = Slope()
optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(TensorDataset(torch.ones(BATCHES)), 1))
for (inputs,) in loader:
    with accelerator.accumulate(model):
        accelerator.backward(model(inputs)["loss"])
        if accelerator.sync_gradients:
            by_accelerate.append(model.weight.grad.item())
        optimizer.step()
        optimizer.zero_grad()

by_trainer = []


class Recorder(transformers.TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, *, model, **kwargs):
        by_trainer.append(model.weight.grad.item())


arguments = transformers.TrainingArguments(
    output_dir=tempfile.mkdtemp(),
    use_cpu=True,
    per_device_train_batch_size=1,
    gradient_accumulation_steps=A_STEP,
    num_train_epochs=1,
    max_grad_norm=0,
    report_to=[],
    disable_tqdm=True,
    save_strategy="no",
)
examples = [{"inputs": torch.ones(())} for _ in range(BATCHES)]
transformers.Trainer(Slope(), arguments, train_dataset=examples, callbacks=[Recorder()]).train()
print(f"accelerate {accelerate.__version__}: gradients of the two steps {by_accelerate}")
print(f"transformers {transformers.__version__}: gradients of the two steps {by_trainer}")
assert by_accelerate == [1.0, 0.5]
assert by_trainer == [1.0, 1.0]
PYTHON
PYTHONPATH="$folder/site" python3 "$folder/script.py"
