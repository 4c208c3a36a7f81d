#!/usr/bin/env bash
# TorchScript deletes in-place `foreach` operations on a list that is written where it is used.
#
# PyTorch 2.13.0, CPU. `torch._foreach_mul_([theta], 0.5)` halves θ. The same line in a function that went through
# `torch.jit.script` does nothing, without a word: the compiled graph is empty. The schema says that the operation writes
# to the tensors of a list; the list is new and nobody reads it again, so that the compiler takes the line for dead code.
# A list that comes as an argument keeps its operation. Optimizers are made of these operations: a training step that
# is scripted to run without Python trains nothing, at full speed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder/site" torch==2.13.0 numpy

cat > "$folder/scripted.py" <<'PYTHON'
import warnings

import torch
from torch import Tensor

warnings.simplefilter("ignore")  # TorchScript is deprecated


def halved(theta: Tensor) -> Tensor:
    torch._foreach_mul_([theta], 0.5)
    return theta


def halved_argument(thetas: list[Tensor]) -> Tensor:
    torch._foreach_mul_(thetas, 0.5)
    return thetas[0]


eager = halved(torch.ones(3)).tolist()
script = torch.jit.script(halved)
scripted = script(torch.ones(3)).tolist()
argument = torch.jit.script(halved_argument)([torch.ones(3)]).tolist()
operations = [node.kind() for node in script.graph.nodes()]
print(f"torch {torch.__version__}: eager {eager}, scripted {scripted}, list as an argument {argument}")
print(f"operations left in the scripted function: {operations}")
assert eager == argument == [0.5] * 3
assert scripted == [1.0] * 3
assert operations == []
PYTHON
PYTHONPATH="$folder/site" python3 "$folder/scripted.py"
