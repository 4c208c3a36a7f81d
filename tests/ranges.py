"""Several threads that hold a range of θ's coordinates each, as the processes of a distributed run do."""

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import torch
from patience import PATIENCE


class Ranges:
    """One of them, as `dswag.federation.contract.Coordinates`."""

    def __init__(self, number, edges, told, barrier):
        self.number, self.edges, self.told, self.barrier = number, edges, told, barrier

    def _tell(self, tensor):
        self.told[self.number] = tensor
        self.barrier.wait(timeout=PATIENCE)
        heard = list(self.told)
        self.barrier.wait(timeout=PATIENCE)
        return heard

    def total(self, values):
        return torch.stack(self._tell(values)).sum(0)

    def part(self, whole):
        start, end = list(pairwise(self.edges))[self.number]
        return whole[start:end]

    def whole(self, part):
        return torch.cat(self._tell(part))


def in_ranges(edges, work):
    """What work(coordinates) gives for each range between two edges, all at the same time."""
    count = len(edges) - 1
    told, barrier = [None] * count, threading.Barrier(count)
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda number: work(Ranges(number, edges, told, barrier)), range(count)))


def spread_copy(fold, coordinates):
    """A fold with this range of what the fold keeps of each client."""
    copy = fold.empty()
    copy.load({name: coordinates.part(t.T).T if name.endswith("[d]") else t for name, t in fold.state().items()})
    copy.spread(coordinates)
    return copy
