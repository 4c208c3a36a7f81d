"""Speed of the robust rules over 50 clients of a million parameters, against the usual ways with the same outcome.

The usual ways are `torch.median` (whose outcome is the lower of the two in the middle), `torch.sort` and the mean of
what is kept, Weiszfeld's algorithm on all rows, passed over twice in every iteration, and `torch.cdist`. All use all of
PyTorch's threads. Runs are interleaved and the median of the ratios counts, since the machines are shared. The
bandwidth is that of copying the rows, measured in between; "x copy" is a rule's time in copies.

    python benchmarks/aggregation.py [--repeats 5] [--clients 50] [--parameters 1000000]
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from dswag.core.randomness import generator_for
from dswag.federation.aggregation import geometric_median, krum, median, trimmed_mean


def seconds(function: Callable[[], object]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def usual_weiszfeld(rows: Tensor, iterations: int) -> Tensor:
    """The geometric median from the mean on, as it is written down."""
    point = rows.mean(0)
    for _ in range(iterations):
        pulls = 1 / (rows - point).norm(dim=1).clamp_min(1e-6)
        point = (pulls @ rows) / pulls.sum()
    return point


def usual_krum(rows: Tensor, byzantine: int) -> Tensor:
    """The row with the lowest score, from the distances of all pairs."""
    squared = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").square()
    scores = squared.sort(1).values[:, 1 : len(rows) - byzantine - 1].sum(1)
    return rows[int(scores.argmin())]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--parameters", type=int, default=1_000_000)
    parser.add_argument("--iterations", type=int, default=10, help="of the usual Weiszfeld; ours runs to its tolerance")
    arguments = parser.parse_args()
    n, d = arguments.clients, arguments.parameters
    stacked = torch.randn(n, d, generator=generator_for(0))
    rows, anchor, byzantine = list(stacked.unbind()), torch.zeros(d), n // 5

    def ours(rule: Callable[..., Tensor]) -> Callable[[], Tensor]:
        return lambda: rule(rows, anchor, byzantine, lambda tensor: tensor)

    pairs: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "median / torch.median": (ours(median), lambda: stacked.median(0)),
        "median / torch.sort": (ours(median), lambda: stacked.sort(0).values[(n - 1) // 2 : n // 2 + 1].mean(0)),
        "trimmed mean / torch.sort": (
            ours(trimmed_mean),
            lambda: stacked.sort(0).values[byzantine : n - byzantine].mean(0),
        ),
        "geometric median / Weiszfeld on rows": (
            ours(geometric_median),
            lambda: usual_weiszfeld(stacked, arguments.iterations),
        ),
        "Krum / torch.cdist": (ours(krum), lambda: usual_krum(stacked, byzantine)),
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in pairs}
    copies = []
    target = torch.empty_like(stacked)
    for repeat in range(arguments.repeats + 1):
        for name, (mine, usual) in pairs.items():
            measured = seconds(mine), seconds(usual)
            if repeat:  # the first is to warm up
                times[name].append(measured)
        copies.append(seconds(lambda: target.copy_(stacked)))
    copy = statistics.median(copies)
    bandwidth = 2 * stacked.numel() * stacked.element_size() / copy / 1e9
    print(f"{torch.get_num_threads()} threads, {n} clients, {d:,} parameters; copying all rows: {bandwidth:.1f} GB/s")
    print(f"{'rule / usual way':38} {'ours':>8} {'usual':>8} {'ratio':>7} {'x copy':>7}")
    for name, measured_all in times.items():
        mine, usual = (statistics.median(column) for column in zip(*measured_all, strict=True))
        ratio = statistics.median(b / a for a, b in measured_all)
        print(f"{name:38} {mine:7.3f}s {usual:7.3f}s {ratio:7.1f} {mine / copy:7.1f}")


if __name__ == "__main__":
    main()
