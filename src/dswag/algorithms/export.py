"""Algorithm 2 as one program without Python: draws, forward passes and averages, by `torch.export`."""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from dswag.algorithms.prediction import Members, Posterior, draws_of, reading_of
from dswag.algorithms.predictive import Average, Reading
from dswag.core.links import Link
from dswag.core.parameters import parameters, unwrapped
from dswag.federation.contract import Engine
from dswag.federation.folds import within
from dswag.posterior.draws import Kind


def export(
    model: nn.Module,
    posterior: Posterior,
    example: Any,
    *,
    samples: int = 30,
    seed: int = 0,
    kind: Kind = "swag",
    scale: float = 1.0,
    engine: Engine | None = None,
    batch_norm_examples: int | None = None,
    link: Link | None = None,
    class_axis: int | None = None,
) -> torch.export.ExportedProgram:
    """A program that maps a batch of inputs to what `predictive` says of them: a dictionary of two tensors.

    "probabilities" is the mean over the draws, and "mutual_information" how much they disagree, in nats. The program
    holds the weights of all draws, S times θ, and shares none with the model. It takes batches of any size;
    `torch.export.save` writes it to a file that runs without this library.

    Args:
        model: as for `predictive`.
        posterior: as for `predictive`.
        example: a batch of at least two inputs, in the form that the model takes: what shapes and types are like.
        samples: number of draws, S.
        seed: of the draws: the same gives what `predictive` gives.
        kind: which part of the covariance draws use.
        scale: factor on the covariance.
        engine: whose clients collect the BatchNorm statistics of each draw, for models with such layers.
        batch_norm_examples: how many examples each client uses for that at most.
        link: as for `predictive`.
        class_axis: as for `predictive`.

    Raises:
        ValueError: as from `predictive`, or an example of a single input, whose size would be taken for a constant.
        torch.export errors: a model whose Python depends on values, which no program can hold.
    """
    sizes: set[int] = set()
    tree_map_only(Tensor, lambda tensor: sizes.add(tensor.shape[0] if tensor.dim() else 0), example)
    if not sizes or min(sizes) < 2:
        raise ValueError("the example must be a batch of at least two inputs: the size of a smaller one would be fixed")
    reading = reading_of(posterior, engine, link, class_axis)
    members = draws_of(
        model,
        posterior,
        samples=samples,
        seed=seed,
        kind=kind,
        scale=scale,
        engine=engine,
        batch_norm_examples=batch_norm_examples,
    )
    averaged = _Averaged(model, members, reading, posterior.temperature)
    batch = torch.export.Dim("batch")
    shapes = tree_map_only(Tensor, lambda _: {0: batch}, example)
    with torch.no_grad():
        return torch.export.export(averaged, (example,), dynamic_shapes={"inputs": shapes})


class _Averaged(nn.Module):
    """The average over all members as one forward pass."""

    def __init__(self, model: nn.Module, members: Members, reading: Reading, temperature: float) -> None:
        super().__init__()
        inner = unwrapped(model)
        self.model = deepcopy(inner).requires_grad_(False).eval()
        self.members, self.reading, self.temperature = members, reading, temperature
        owned = {id(parameter): name for name, parameter in inner.named_parameters()}
        self.names = {name: owned[id(parameter)] for name, parameter in parameters(inner).items()}
        types = {name: parameter.dtype for name, parameter in self.model.named_parameters()}
        self.states: list[dict[str, str]] = []
        for number in range(members.count):
            payload = members.payload(number)
            views = members.layout.views(payload["theta"])
            own = {self.names[name]: values.to(types[self.names[name]]) for name, values in views.items()}
            own |= within("buffer", payload)
            self.states.append({})
            for place, (name, values) in enumerate(own.items()):
                self.register_buffer(f"draw_{number}_{place}", values.detach().clone())
                self.states[-1][name] = f"draw_{number}_{place}"

    def forward(self, inputs: Any) -> dict[str, Tensor]:
        """Lines 4 to 6 of Algorithm 2."""
        average: Average | None = None
        for state in self.states:
            weights = {name: self.get_buffer(place) for name, place in state.items()}
            probabilities = self.reading.probabilities(torch.func.functional_call(self.model, weights, (inputs,)))
            average = average or Average(self.reading.axis(probabilities.dim()))
            average.add(probabilities)
        if average is None:
            raise ValueError("there are no draws to average")
        result = average.result().tempered(self.temperature)
        return {"probabilities": result.probabilities, "mutual_information": result.mutual_information}
