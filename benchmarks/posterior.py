"""Speed of collecting and sampling a posterior, against the formulas that public SWAG code uses, at the size of VGG16.

A is ours, B the usual way: a list of parameter tensors, float32 running averages of θ and θ², deviation rows joined by
`torch.cat`, and for a draw z₁ and z₂ for all of θ at once, one draw after another. Runs of A and B are interleaved, the
medians are printed, and beside them what the machine can do at best: bytes copied a second, and normal numbers drawn.

    python benchmarks/posterior.py [--d 15250000] [--rank 20] [--draws 10] [--repeats 5]
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

import dswag
from dswag.randomness import generator_for


def seconds(function: Callable[[], object]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


class UsualMoments:
    """Running averages of a list of tensors, as the first SWAG implementation has them."""

    def __init__(self, parameters: list[Tensor], rank: int) -> None:
        self.rank = rank
        self.count = 0
        self.mean = [torch.zeros_like(p) for p in parameters]
        self.squares = [torch.zeros_like(p) for p in parameters]
        self.columns = [p.new_empty(0, p.numel()) for p in parameters]

    def add(self, parameters: list[Tensor]) -> None:
        """One snapshot."""
        n = self.count
        for i, p in enumerate(parameters):
            self.mean[i] = self.mean[i] * n / (n + 1.0) + p / (n + 1.0)
            self.squares[i] = self.squares[i] * n / (n + 1.0) + p**2 / (n + 1.0)
            if self.rank:
                self.columns[i] = torch.cat((self.columns[i], (p - self.mean[i]).view(1, -1)))[-self.rank :]
        self.count += 1


def usual_draw(posterior: dswag.GaussianPosterior) -> Tensor:
    """One draw from whole vectors."""
    k = len(posterior.deviations)
    diagonal = posterior.variance.sqrt() * torch.randn_like(posterior.variance)
    low_rank = posterior.deviations.t().matmul(torch.randn(k)) / (k - 1) ** 0.5
    draw: Tensor = posterior.mean + (diagonal + low_rank) / 2**0.5
    return draw


def interleaved(repeats: int, **functions: Callable[[], object]) -> dict[str, float]:
    """The median seconds of each, one call of each after the other."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    for _ in range(repeats):
        for name, function in functions.items():
            times[name].append(seconds(function))
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--d", type=int, default=15_250_000)
    parser.add_argument("--rank", type=int, default=20)
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    d, rank, draws = arguments.d, arguments.rank, arguments.draws
    generator = generator_for(0)
    anchor = torch.randn(d, generator=generator)
    theta = anchor + 1e-3 * torch.randn(d, generator=generator)
    tensors = list(torch.chunk(theta, 30))
    ours = {k: dswag.Moments(anchor, rank=k) for k in (0, rank)}
    usual = {k: UsualMoments(tensors, k) for k in (0, rank)}
    for _ in range(rank):
        ours[rank].add(theta)
        usual[rank].add(tensors)
    target = torch.empty_like(anchor)
    add = interleaved(
        arguments.repeats,
        copy=lambda: target.copy_(theta),
        ours=lambda: ours[0].add(theta),
        usual=lambda: usual[0].add(tensors),
        ours_columns=lambda: ours[rank].add(theta),
        usual_columns=lambda: usual[rank].add(tensors),
    )
    bandwidth = 8 * d / add["copy"]
    print(f"d = {d:,}, K = {rank}, {torch.get_num_threads()} threads; copying moves {bandwidth / 1e9:.1f} GB/s")
    least = {"ours": 40, "ours_columns": 44}  # θ and anchor read, two float64 sums read and written; the column written
    for name, label in (("", "add, no columns"), ("_columns", "add, with columns")):
        mine, theirs = add["ours" + name], add["usual" + name]
        share = least["ours" + name] * d / bandwidth / mine
        print(f"{label:20} {mine / d * 1e9:6.2f} ns/parameter, {theirs / mine:5.1f} x usual, {share:4.0%} of bandwidth")
    posterior = dswag.GaussianPosterior(
        anchor, torch.rand(d, generator=generator), torch.randn(rank, d, generator=generator), count=rank
    )
    one = torch.empty(1 << 17)
    sample = interleaved(
        arguments.repeats,
        normal=lambda: [one.normal_(generator=generator) for _ in range(20)],
        ours=lambda: posterior.sample(0, draws),
        usual=lambda: [usual_draw(posterior) for _ in range(draws)],
        ours_one=lambda: posterior.sample(0),
        usual_one=lambda: usual_draw(posterior),
    )
    floor = sample["normal"] / 20 / len(one) / torch.get_num_threads()
    for name, number in (("", draws), ("_one", 1)):
        mine, theirs = (sample[who + name] / d / number for who in ("ours", "usual"))
        print(
            f"{f'sample, {number} at once':20} {mine * 1e9:6.2f} ns/parameter and draw, {theirs / mine:5.1f} x usual; "
            f"normal numbers alone take {floor * 1e9:.2f} on all threads"
        )


if __name__ == "__main__":
    main()
