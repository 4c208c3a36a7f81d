"""Prints a checksum of each tensor of a posterior's file: the same before and after a change that is to be neutral.

python tools/hash_posterior.py runs/demo/posterior.safetensors
"""

import sys
from pathlib import Path

from safetensors.torch import load_file

from dswag.core.checksums import fingerprint


def main(path: Path) -> None:
    """Prints a line for each tensor, by name."""
    for name, tensor in sorted(load_file(path).items()):
        print(f"{fingerprint({name: tensor})}  {name} {list(tensor.shape)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
