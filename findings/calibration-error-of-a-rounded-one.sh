#!/usr/bin/env bash
# One probability that was rounded to just above 1 makes torchmetrics take all others for logits.
#
# torchmetrics 1.9.0 with PyTorch 2.13.0, CPU. `multiclass_calibration_error` decides by the values whether it was given
# probabilities: if any lies outside [0, 1], a softmax goes over all of them. Ten softmax outputs added up after each was
# divided by ten, the usual way to average an ensemble in float32, give 1.0000001 for certain examples. Seen: an error of
# 0.008 became 0.398, without a word.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder/site" torch==2.13.0 numpy torchmetrics==1.9.0 "setuptools<81"

cat > "$folder/rounded.py" <<'PYTHON'
import torch
import torchmetrics
from torchmetrics.functional.classification import multiclass_calibration_error as calibration_error

generator = torch.Generator().manual_seed(0)
logits = 12 * torch.randn(2000, 3, generator=generator)
targets = logits.softmax(1).multinomial(1, generator=generator)[:, 0]
members = [(logits + 0.01 * torch.randn(2000, 3, generator=generator)).softmax(1) for _ in range(10)]
averaged = sum(member / 10 for member in members)
clipped = averaged.clamp_max(1)
errors = [float(calibration_error(p, targets, num_classes=3)) for p in (averaged, clipped)]
print(f"torchmetrics {torchmetrics.__version__}, torch {torch.__version__}")
print(f"the largest probability is 1 + {float(averaged.max()) - 1:.1e}: calibration error {errors[0]:.3f}")
print(f"with that cut to 1: {errors[1]:.3f}")
assert 0 < float(averaged.max()) - 1 < 1e-6
assert errors[0] > 5 * errors[1]
PYTHON
PYTHONPATH="$folder/site" python3 "$folder/rounded.py"
