#!/usr/bin/env bash
# Gloo's all_reduce gives equal numbers unequal sums: the result depends on where in the tensor an element lies.
#
# PyTorch 2.13.0, CPU, four processes. Each rank holds one number in every element, so that all sums are sums of the same
# four numbers. Gloo divides the tensor into segments and adds each segment up in another order of the ranks, with
# roundings in the tensor's own dtype. Seen: float16 sums of 2048, 1, 1, 1 are 2048 in some elements and 2052 in others
# of one tensor; sums of 60000, 60000, -60000, -60000 are -inf, 0 and inf. In float32, 42 % of the elements of a random
# tensor change their last bits when the tensor is reversed before the sum, and 31 % when it is cut to a thousandth.
# All ranks agree with one another; but nobody's sum is that of the ranks in their order.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder/site" torch==2.13.0 numpy

cat > "$folder/sums.py" <<'PYTHON'
import sys

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

WORLD = 4


def reduced(values):
    dist.all_reduce(values)
    return values


def work(rank, store):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD)
    ones = reduced(torch.full((1000,), [2048.0, 1.0, 1.0, 1.0][rank], dtype=torch.float16))
    large = reduced(torch.full((6,), [6e4, 6e4, -6e4, -6e4][rank], dtype=torch.float16))
    own = torch.randn(1_000_003, generator=torch.Generator().manual_seed(rank))
    forward, backward = reduced(own.clone()), reduced(own.flip(0).contiguous()).flip(0)
    short = reduced(own[:1000].clone())
    moved = float((forward != backward).float().mean())
    cut = float((forward[:1000] != short).float().mean())
    if rank == 0:
        print(f"torch {torch.__version__}, gloo, {WORLD} ranks")
        print(f"float16, 2048 + 1 + 1 + 1: {sorted(set(ones.tolist()))}")
        print(f"float16, 60000 + 60000 - 60000 - 60000: {large.tolist()}")
        print(f"float32: {moved:.0%} of the sums differ in a reversed tensor, {cut:.0%} in a shorter one")
        assert sorted(set(ones.tolist())) == [2048.0, 2052.0]
        assert {str(value) for value in large.tolist()} == {"-inf", "0.0", "inf"}
        assert moved > 0.1
        assert cut > 0.1


if __name__ == "__main__":
    mp.spawn(work, (sys.argv[1],), WORLD)
PYTHON
OMP_NUM_THREADS=1 PYTHONPATH="$folder/site" python3 "$folder/sums.py" "$folder/store"
