"""One of several processes, as `torchrun` starts it: a posterior over a model that FSDP2 splits, and its memory."""

import json
import os
import resource
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from dswag.core.parameters import Layout
from dswag.posterior.gaussian import GaussianPosterior
from dswag.posterior.moments import Moments

WIDTH, RANK, SNAPSHOTS = 1000, 20, 22  # two matrices of a million: D takes 160 MB


class Network(nn.Module):
    """With rows that do not part evenly, a scalar, tied and frozen weights, and BatchNorm."""

    def __init__(self, width=7):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Linear(5, width), nn.BatchNorm1d(width)
        self.second, self.third = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.third.weight = self.second.weight
        self.last, self.scale = nn.Linear(width, 3), nn.Parameter(torch.ones(1))
        self.last.bias.requires_grad_(False)


def steps(module, count):
    """The module as it is after each of so many steps, which are the same on every process."""
    for number in range(count):
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.requires_grad:
                    change = torch.randn(parameter.shape, generator=generator)
                    if hasattr(parameter, "placements"):
                        change = distribute_tensor(change, parameter.device_mesh, parameter.placements)
                    parameter.add_(change)
        yield module


def whole(module):
    """All parameters, put together."""
    found = {name: p.full_tensor() if hasattr(p, "full_tensor") else p for name, p in module.named_parameters()}
    return {name: tensor.detach().clone() for name, tensor in found.items()}


def words_of_error(function):
    """What went wrong."""
    try:
        function()
    except ValueError as error:
        return str(error)


def peak():
    """The most memory that the process ever had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def compare(folder):
    """Saves what a model that is split gives."""
    found = {}
    for name, layout in (("all", None), ("part", Layout.of(Network(), only=["second.weight", "scale"]))):
        module = fully_shard(Network())
        moments = Moments(rank=4, layout=layout)
        for _ in steps(module, 6):
            moments.add(module)
        posterior = moments.posterior()
        posterior.save(folder / f"{name}.safetensors")
        before = whole(module)
        for kind in ("swag", "diagonal", "low_rank"):
            with posterior.sampled(module, seed=3, number=6, kind=kind):
                found |= {f"{name}/{kind}/{key}": tensor for key, tensor in whole(module).items()}
        assert all(torch.equal(tensor, before[key]) for key, tensor in whole(module).items())
        read = GaussianPosterior.load(folder / f"{name}.safetensors")
        with read.sampled(module, seed=3, number=6):
            found |= {f"{name}/read/{key}": tensor for key, tensor in whole(module).items()}
        posterior.mean_into(module)
        found |= {f"{name}/mean/{key}": tensor for key, tensor in whole(module).items()}
    if dist.get_rank() == 0:
        save_file({name: tensor.contiguous() for name, tensor in found.items()}, folder / "found.safetensors")
    module = fully_shard(Network())
    old = FullyShardedDataParallel(Network(), use_orig_params=True, device_id=torch.device("cpu"))
    flat = FullyShardedDataParallel(nn.Linear(4, 4), device_id=torch.device("cpu"))
    columns = Network()
    weight = distribute_tensor(columns.first.weight, next(module.parameters()).device_mesh, [Shard(1)])
    columns.first.weight = nn.Parameter(weight)
    copied = Network()
    weight = distribute_tensor(copied.first.weight, next(module.parameters()).device_mesh, [Replicate()])
    copied.first.weight = nn.Parameter(weight)
    Moments().add(copied)
    errors = {
        "FSDP1": words_of_error(lambda: Moments().add(old)),
        "FSDP1 flat": words_of_error(lambda: Moments().add(flat)),
        "svd": words_of_error(lambda: Moments(columns="svd").add(module)),
        "columns": words_of_error(lambda: Moments().add(columns)),
        "flatten": words_of_error(lambda: Layout.of(module).flatten(module)),
        "density": words_of_error(lambda: posterior.entropy(floor=1e-3)),
        "whole module": words_of_error(lambda: posterior.mean_into(Network())),
    }
    (folder / f"errors-{dist.get_rank()}.json").write_text(json.dumps(errors))


def measure(folder):
    """Saves how much memory a large model's posterior takes in this process."""
    torch.manual_seed(0)
    module = fully_shard(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)))
    moments = Moments(rank=RANK)
    before = peak()
    for _ in range(SNAPSHOTS):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.to_local().add_(torch.randn_like(parameter.to_local()))
        moments.add(module)
    posterior = moments.posterior()
    with posterior.sampled(module, seed=0):
        pass
    posterior.save(folder / "large.safetensors")
    (folder / f"memory-{dist.get_rank()}.json").write_text(json.dumps([before, peak()]))


if __name__ == "__main__":
    dist.init_process_group("gloo")
    measure(Path(sys.argv[1]))
    compare(Path(sys.argv[1]))
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # a thread of PyTorch's may else abort the process while it ends, now and then
