#!/usr/bin/env bash
# Class weights in cross entropy mean something else when the same labels are given in one-hot form.
#
# PyTorch 2.13.0, CPU. `F.cross_entropy(logits, labels, weight=w)` divides by the sum of the weights of the labels;
# with `F.one_hot(labels)` as targets it divides by the number of examples. The formulas are in the reference, each in
# its place; the name of the reduction, "mean", is the same. Seen: 0.737 and 2.211 for the same three examples. Training
# with mixed or smoothed labels thus has another effective learning rate, and a loss averaged over batches of unequal
# weight is the mean of the whole set in neither form.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder/site" torch==2.13.0 numpy

cat > "$folder/weights.py" <<'PYTHON'
import torch
import torch.nn.functional as F

logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
labels, weight = torch.tensor([0, 1, 1]), torch.tensor([1.0, 4.0])
one_hot = F.one_hot(labels, 2).float()
indexed = float(F.cross_entropy(logits, labels, weight=weight))
probabilities = float(F.cross_entropy(logits, one_hot, weight=weight))
plain = [float(F.cross_entropy(logits, targets)) for targets in (labels, one_hot)]
first, rest = (F.cross_entropy(logits[part], labels[part], weight=weight) for part in (slice(0, 1), slice(1, 3)))
batches = float(first / 3 + 2 * rest / 3)
print(f"torch {torch.__version__}: labels {indexed:.3f}, the same in one-hot form {probabilities:.3f}")
print(f"without weights both are {plain[0]:.3f}; batches of 1 and 2, averaged by their sizes, {batches:.3f}")
assert abs(plain[0] - plain[1]) < 1e-6
assert abs(probabilities / indexed - 3) < 1e-5  # the weights 1 + 4 + 4 over three examples
assert abs(batches - indexed) > 0.1
PYTHON
PYTHONPATH="$folder/site" python3 "$folder/weights.py"
