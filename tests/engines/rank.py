"""One of several processes, as `torchrun` starts it: plays all scenarios, and writes what came into a folder."""

import sys
from pathlib import Path

import torch
from engines.scenarios import SCENARIOS, clients, network, tasks, text, theta
from patience import PATIENCE
from safetensors.torch import save_file

from dswag.engines.distributed import Distributed
from dswag.engines.ranks import joined
from dswag.federation.aggregation import Mean
from dswag.federation.folds import Snapshots
from dswag.federation.round_trip import round_trip
from dswag.posterior.moments import Moments


class Spoiled(Snapshots):
    """A fold that fails where client 1's result comes in."""

    def add(self, result):
        if result.client == 1:
            raise OSError("the disk is full")
        super().add(result)


def words_of_error(function):
    """What went wrong."""
    try:
        function()
    except Exception as error:
        return {"error": text(f"{type(error).__name__}: {error}")}


def main(folder):
    """Plays the scenarios."""
    with joined(timeout=PATIENCE) as ranks:

        def make_engine(model, data):
            return Distributed(model, data, ranks=ranks)

        found = {scenario.__name__: scenario(make_engine) for scenario in SCENARIOS}
        engine = make_engine(network(), clients())

        def folded(payload, fold, **options):
            return lambda: round_trip(engine, payload, tasks([0, 1], **options), fold)

        found["spoiled"] = words_of_error(folded({"theta": theta()}, Spoiled()))
        found["printed"] = words_of_error(folded({"theta": theta()}, Moments(theta(), centering="running")))
        found["apart"] = words_of_error(folded({"theta": theta() + ranks.rank}, Snapshots()))
        rates = (0.1, 0.05 + ranks.rank)
        found["other_tasks"] = words_of_error(folded({"theta": theta()}, Snapshots(), learning_rates=rates))
        fold = Mean(theta()) if ranks.rank else Snapshots()
        found["other_fold"] = words_of_error(folded({"theta": theta()}, fold))
        twice = Snapshots()
        round_trip(engine, {"theta": theta()}, tasks([0, 1]), twice)
        found["twice"] = words_of_error(folded({"theta": theta()}, twice))
        values = torch.arange(5.0)
        found["coordinates"] = {
            "part": ranks.part(values),
            "whole": ranks.whole(ranks.part(values)),
            "total": ranks.total(ranks.part(values).sum()),
        }
        named = {f"{name}/{key}": tensor.contiguous() for name, one in found.items() for key, tensor in one.items()}
        save_file(named, Path(folder) / f"{ranks.rank}.safetensors")


if __name__ == "__main__":
    main(sys.argv[1])
