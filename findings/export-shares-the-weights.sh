#!/usr/bin/env bash
# A program from torch.export is no snapshot: it goes on sharing its weights and BatchNorm statistics with the model.
#
# PyTorch 2.13.0, CPU. After `torch.export.export(model, ...)`, both the program's `state_dict` and the module that
# `program.module()` makes hold the model's own tensors. Whoever averages weights, loads another draw or trains on in
# place changes what the program computes; only `torch.export.save` freezes it. The other way round, running a program
# that was exported in training mode moves the running statistics of the model it came from.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder/site" torch==2.13.0 numpy

cat > "$folder/shared.py" <<'PYTHON'
import io

import torch
from torch import nn

torch.manual_seed(0)
inputs = torch.randn(5, 2)
model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).eval()
program = torch.export.export(model, (inputs,))
saved = io.BytesIO()
torch.export.save(program, saved)
before = program.module()(inputs).detach()
with torch.no_grad():
    model[0].weight.zero_()
after = program.module()(inputs).detach()
saved.seek(0)
frozen = torch.export.load(saved).module()(inputs).detach()

model.train()
training = torch.export.export(model, (inputs,)).module()
statistics = model[1].running_mean.clone()
training(inputs + 3)
moved = float((model[1].running_mean - statistics).abs().max())

print(f"torch {torch.__version__}")
print(f"outputs after the model's weights were set to 0 move by {float((after - before).abs().max()):.3f}")
print(f"outputs of the saved program move by {float((frozen - before).abs().max()):.3f}")
print(f"running an exported training step moves the model's running mean by {moved:.3f}")
assert not torch.equal(after, before)
assert torch.equal(frozen, before)
assert moved > 0
PYTHON
PYTHONPATH="$folder/site" python3 "$folder/shared.py"
