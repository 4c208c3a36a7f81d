#!/usr/bin/env bash
# A model of experts and its own file have weights of different names and shapes.
#
# transformers 5.23.0, Mixtral. In memory the experts of a layer are two tensors, `experts.gate_up_proj` and
# `experts.down_proj`; `save_pretrained` writes three for every expert, under another module's name (`w1`, `w2`, `w3` in
# `block_sparse_moe`), and `from_pretrained` joins them again. What reads the file without transformers, averages
# checkpoints, or compares `state_dict()` with it, finds neither the names nor the shapes: `load_state_dict` of the
# model's own file misses its weights. The number of elements is the same.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder/site" torch==2.13.0 numpy transformers==5.23.0

cat > "$folder/script.py" <<'PYTHON'
import tempfile
import warnings

import torch
from safetensors.torch import load_file

warnings.simplefilter("ignore")
import transformers  # noqa: E402

sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
config = transformers.MixtralConfig(vocab_size=20, num_key_value_heads=2, num_local_experts=2, **sizes)
model = transformers.MixtralForCausalLM(config)
folder = tempfile.mkdtemp()
model.save_pretrained(folder)
file = load_file(f"{folder}/model.safetensors")
state = model.state_dict()
in_file, in_model = ({name for name in a if name not in b} for a, b in ((file, state), (state, file)))
print(f"torch {torch.__version__}, transformers {transformers.__version__}")
for where, names, tensors in (("file", in_file, file), ("model", in_model, state)):
    for name in sorted(names):
        print(f"only in the {where}: {name} {list(tensors[name].shape)}")
missing = model.load_state_dict(file, strict=False).missing_keys
again = transformers.MixtralForCausalLM.from_pretrained(folder).state_dict()
assert all(torch.equal(state[name], again[name]) for name in state)
assert sum(t.numel() for t in file.values()) == sum(t.numel() for t in state.values())
assert sorted(missing) == sorted(in_model)
assert len(in_model) == 3 and len(in_file) == 7
PYTHON
PYTHONPATH="$folder/site" python3 "$folder/script.py"
