"""Small examples of what a run leaves, and damage to files."""

import torch

from dswag import GaussianPosterior, Layout
from dswag.evaluation.loss_landscape import Plane, Surroundings
from dswag.evaluation.metrics import Scores
from dswag.evaluation.reliability import Reliability
from dswag.runs.schema import Landscape, Metrics

LAYOUT = Layout(("weight", "bias"), ((2, 3), (2,)))
POSTERIOR = GaussianPosterior(torch.arange(8.0), torch.ones(8), torch.ones(2, 8), count=2, layout=LAYOUT)
METRICS = Metrics(
    scores={"DSWAG": Scores(0.9, 0.3, 0.1, 0.02, 0.03, 10)},
    reliability={"DSWAG": Reliability("equal-mass", (0.6, 0.9), (0.5, 1.0), (5, 5))},
    samples=3,
    scale=0.5,
    seconds={"phase 1": 1.5},
    environment={"torch": "2"},
)

LANDSCAPE = Landscape(
    num_examples=1200,
    surroundings=Surroundings(
        at=(-2.0, 0.0, 2.0),
        eigenvalues=(4.0, 1.0),
        total_variance=20.0,
        lines={"train": ((0.5, 0.25, 0.375), (0.3, 0.25, 0.26))},
        planes=(
            Plane(
                axes=(1, 2),
                loss=((0.7, 0.3, 0.5), (0.5, 0.25, 0.375), (0.6, 0.26, 0.4)),
                log_density=((-4.0, -2.0, -4.0), (-2.0, 0.0, -2.0), (-4.0, -2.0, -4.0)),
            ),
        ),
    ),
    places={"phase-1 model": ((0.5, -1.0),), "snapshots": ((1.0, 1.5), (-3.0, 0.0))},
)


def flip(path, place):
    """Changes one bit of the file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def cut(path, number=9):
    """Takes the last bytes off the file."""
    path.write_bytes(path.read_bytes()[:-number])
