#!/usr/bin/env bash
# A weight that is too large for float8 becomes the largest number, infinity or NaN: each of the three types has its own.
#
# torch 2.13.0 on the CPU, through safetensors 0.8.0, as quantized checkpoints come. 60,000 converts to 448 in
# float8_e4m3fn, which saturates, to 57,344 in float8_e5m2, and to NaN in float8_e4m3fnuz; 1e30 to 448, infinity and NaN.
# Whoever looks for damage with `isfinite` finds it in the second and third alone, and in the first the function is not
# even implemented. Saturated weights look sound.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder/site" torch==2.13.0 numpy safetensors==0.8.0

cat > "$folder/script.py" <<'PYTHON'
import tempfile

import safetensors
import torch
from safetensors.torch import load_file, save_file

TYPES = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz)
weights = torch.tensor([1.5, 6e4, 1e30, -1e30])
path = f"{tempfile.mkdtemp()}/weights.safetensors"
save_file({str(dtype): weights.to(dtype) for dtype in TYPES}, path)
loaded = load_file(path)
found = {}
for dtype in TYPES:
    tensor = loaded[str(dtype)]
    assert tensor.dtype == dtype
    found[str(dtype)] = [str(value) for value in tensor.float().tolist()]
    try:
        checked = torch.isfinite(tensor).tolist()
    except NotImplementedError:
        checked = "not implemented"
    print(f"torch {torch.__version__}, safetensors {safetensors.__version__}, {dtype}: {found[str(dtype)]}, {checked}")
assert found["torch.float8_e4m3fn"] == ["1.5", "448.0", "448.0", "-448.0"]
assert found["torch.float8_e5m2"] == ["1.5", "57344.0", "inf", "-inf"]
assert found["torch.float8_e4m3fnuz"] == ["1.5", "nan", "nan", "nan"]
PYTHON
PYTHONPATH="$folder/site" python3 "$folder/script.py"
