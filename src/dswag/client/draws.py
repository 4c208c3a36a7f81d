"""θ as a client makes it: the payload's own, or draws from the payload's posterior."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dswag.client.replica import Workspace
from dswag.data.examples import Batch
from dswag.federation.contract import Payload, Task
from dswag.federation.folds import prefixed, within
from dswag.federation.layouts import in_layout_of
from dswag.posterior.draws import Draws
from dswag.posterior.gaussian import GaussianPosterior
from dswag.posterior.sampling import GROUP


def thetas(groups: tuple[Draws, ...], payload: Payload) -> Iterator[Tensor]:
    """The payload's θ, or the draws from its posterior, of which a few are held at a time."""
    if not groups:
        yield payload["theta"]
    for draws in groups:
        scales = {"within_scale": draws.within_scale, "between_scale": draws.between_scale}
        posterior = GaussianPosterior.from_tensors(payload, **scales)
        end = draws.first + draws.count
        for first in range(draws.first, end, GROUP):  # as fast as one of them alone
            yield from posterior.sample(
                draws.seed, min(GROUP, end - first), first=first, kind=draws.kind, scale=draws.scale
            )


def loaded_in_turn(
    task: Task, payload: Payload, draws: Draws, workspace: Workspace, *, first: int = 0
) -> Iterator[None]:
    """Loads one draw after the other, with its own row of the payload's buffers, of which `first` is the first's."""
    rows = within("buffer", payload)
    for number, theta in enumerate(thetas((draws,), payload), start=first):
        workspace.check_time(task)
        buffers = {name: values[number] for name, values in rows.items()}
        workspace.load({**in_layout_of(payload, theta), **prefixed("buffer", buffers)})
        yield


def classes(workspace: Workspace, batches: Sequence[Batch]) -> tuple[Tensor, Tensor]:
    """Logits of the model as it is loaded, and the class, for each label in the batches that counts.

    Raises:
        ValueError: outputs and targets that are not those of classes or of yes-or-no labels.
    """
    found = []
    for inputs, targets in batches:
        classes = workspace.labels.classes(workspace.outputs(inputs), targets)
        if classes is None:
            raise ValueError("calibration takes scores [b, c] and the class of each example: set calibrate=False")
        found.append(classes)
    scores, labels = torch.cat([scores for scores, _ in found]), torch.cat([labels for _, labels in found])
    counts = labels != workspace.labels.ignored
    return scores[counts], labels[counts]
