#!/usr/bin/env bash
# A model with tied weights that is built on the meta device has two weights once it gets memory.
#
# torch 2.13.0. Large models are built on "meta", given memory (`to_empty`) and then loaded. An embedding and the output
# layer that shares its weight share it on meta, and no longer after `to_empty(device="cpu")`, nor does the same model
# moved to meta; moved within a device, or copied, it keeps one weight. `load_state_dict(..., assign=True)` from a file
# with both names does the same. Nothing says so: loaded from a file both have the right values, and training moves
# them apart. Tie them again after loading.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder/site" torch==2.13.0 numpy

cat > "$folder/script.py" <<'PYTHON'
import copy

import torch
from torch import nn


class Language(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        self.head.weight = self.tokens.weight


def on_meta():
    with torch.device("meta"):
        return Language()


def assigned():
    model = Language()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    return model


ways = {
    "built on meta": on_meta,
    "built on meta, then given memory": lambda: on_meta().to_empty(device="cpu"),
    "moved to meta": lambda: Language().to("meta"),
    "given new memory on the CPU": lambda: Language().to_empty(device="cpu"),
    "moved within the CPU": lambda: Language().to("cpu", torch.float64),
    "copied": lambda: copy.deepcopy(Language()),
    "assigned from a file": assigned,
}
found = {}
for name, make in ways.items():
    model = make()
    found[name] = model.tokens.weight is model.head.weight
    print(f"torch {torch.__version__}, {name}: tied {found[name]}, {len(list(model.parameters()))} parameters")
assert [name for name, tied in found.items() if not tied] == [
    "built on meta, then given memory",
    "moved to meta",
    "assigned from a file",
]
model = on_meta().to_empty(device="cpu")
model.load_state_dict(Language().state_dict())
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
assert torch.equal(model.tokens.weight, model.head.weight)
model.head(model.tokens(torch.arange(7))).logsumexp(1).sum().backward()
optimizer.step()
apart = (model.tokens.weight - model.head.weight).abs().max().item()
print(f"after loading they are equal, and after a step of training they differ by {apart:.3f}")
assert apart > 0.01
PYTHON
PYTHONPATH="$folder/site" python3 "$folder/script.py"
