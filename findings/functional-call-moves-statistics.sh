#!/usr/bin/env bash
# torch.func.functional_call is not functional for BatchNorm: it moves the statistics of the module, or of its argument.
#
# PyTorch 2.13.0, CPU. In training mode, `functional_call(module, parameters, x)` with parameters alone writes new
# running statistics into the module, as a plain call would. With buffers passed in, the module stays as it is, and the
# tensors of the caller's dictionary are overwritten in place: two calls with the same arguments see different ones.
# Under `torch.func.grad` the same call is an error, so that a loss that was tried without gradients fails with them.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder/site" torch==2.13.0 numpy

cat > "$folder/functional.py" <<'PYTHON'
import torch
from torch import nn
from torch.func import functional_call, grad

torch.manual_seed(0)
module, inputs = nn.BatchNorm1d(2), torch.randn(8, 2) + 3
parameters = dict(module.named_parameters())
functional_call(module, parameters, inputs)
moved = module.running_mean.clone()
buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
given = buffers["running_mean"].clone()
functional_call(module, (parameters, buffers), inputs)
try:
    grad(lambda p: functional_call(module, p, inputs).sum())(parameters)
    error = "none"
except RuntimeError as raised:
    error = str(raised).split(" that would mutate")[0]
print(f"torch {torch.__version__}: the module's running mean became {moved.tolist()}, from zeros")
print(f"with buffers passed in: the module's is unchanged, {module.running_mean.tolist()}")
print(f"  and the argument went from {given.tolist()} to {buffers['running_mean'].tolist()}")
print(f"under torch.func.grad: {error}")
assert not torch.equal(moved, torch.zeros(2))
assert torch.equal(module.running_mean, moved)
assert not torch.equal(buffers["running_mean"], given)
assert "grad" in error
PYTHON
PYTHONPATH="$folder/site" python3 "$folder/functional.py"
