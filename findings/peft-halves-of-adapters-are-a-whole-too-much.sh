#!/usr/bin/env bash
# Two halves of the same adapter are twice the adapter.
#
# PEFT 0.21.2, LoRA. `add_weighted_adapter([a, b], [0.5, 0.5], combination_type="linear")` looks like the mean of two
# adapters. It takes √0.5 of each factor and adds up the factors, A with A and B with B, so that their product has the
# terms of a with b as well: for two equal adapters 2 times the adapter instead of 1, for unequal ones something else
# again. Weights that sum to 1 are no average, and a server that averages its clients' adapters so scales them up by
# as much as the number of clients. "cat" and "svd" give the mean of the products.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder/site" torch==2.13.0 numpy transformers==5.23.0 accelerate==1.15.0 peft==0.21.2

cat > "$folder/script.py" <<'PYTHON'
import warnings

import torch
from torch import nn

warnings.simplefilter("ignore")
import peft  # noqa: E402

CLIENTS = 4
torch.manual_seed(0)
config = peft.LoraConfig(target_modules=["0"], r=2, lora_alpha=2)
model = peft.get_peft_model(nn.Sequential(nn.Linear(6, 5)), config, adapter_name="client0")
layer = model.base_model.model[0]
with torch.no_grad():
    layer.lora_B["client0"].weight.normal_()
weights = peft.get_peft_model_state_dict(model, adapter_name="client0")
names = ["client0"]
for number in range(1, CLIENTS):
    names.append(f"client{number}")
    model.add_adapter(names[-1], config)
    peft.set_peft_model_state_dict(model, weights, adapter_name=names[-1])

found = {}
for combination in ("linear", "cat", "svd"):
    for count in (2, CLIENTS):
        name = f"{combination}{count}"
        model.add_weighted_adapter(names[:count], [1 / count] * count, name, combination_type=combination)
        ratio = layer.get_delta_weight(name) / layer.get_delta_weight("client0")
        found[name] = round(ratio.median().item(), 3)
print(f"peft {peft.__version__}: the average of equal adapters, as a multiple of one of them: {found}")
assert found == {"linear2": 2, "linear4": 4, "cat2": 1, "cat4": 1, "svd2": 1, "svd4": 1}
PYTHON
PYTHONPATH="$folder/site" python3 "$folder/script.py"
