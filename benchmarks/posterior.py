"""Speed and memory of collecting and sampling a posterior, against the formulas that others use, at the size of VGG16.

The usual way: a list of parameter tensors, float32 running averages of θ and θ², deviation rows joined by `torch.cat`,
and for a draw z₁ and z₂ for all of θ at once, one draw after another. Other libraries stand beside it where they are
installed (peers.py). Runs are interleaved, medians are printed, and beside them what the machine can do at best: bytes
copied a second, and normal numbers drawn.

    python benchmarks/posterior.py [--d 15250000] [--rank 20] [--draws 10] [--repeats 5]
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import peers
import torch
from torch import Tensor

import dswag
from dswag.core.randomness import generator_for

BYTES = 20
"""Moved per parameter by a snapshot in float32, at least: θ read, mean and second moment read and written."""


def seconds(function: Callable[[], object]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


class UsualMoments:
    """Running averages of a list of tensors, as the first SWAG implementation has them."""

    def __init__(self, parameters: Sequence[Tensor], rank: int) -> None:
        self.rank = rank
        self.count = 0
        self.mean = [torch.zeros_like(p) for p in parameters]
        self.squares = [torch.zeros_like(p) for p in parameters]
        self.columns = [p.new_empty(0, p.numel()) for p in parameters]

    def add(self, parameters: Sequence[Tensor]) -> None:
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


def interleaved(repeats: int, functions: dict[str, Callable[[], object]]) -> dict[str, float]:
    """The median seconds of each, one call of each after the other."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    for _ in range(repeats):
        for name, function in functions.items():
            times[name].append(seconds(function))
    return {name: statistics.median(values) for name, values in times.items()}


def on_all_threads(function: Callable[[int], object], pool: ThreadPoolExecutor) -> Callable[[], object]:
    """Calls the function with each thread's number, at the same time."""
    return lambda: list(pool.map(function, range(torch.get_num_threads())))


def collecting(theta: Tensor, rank: int, repeats: int, others: Sequence[peers.Peer]) -> None:
    """Prints how long taking in a snapshot takes."""
    tensors = list(torch.chunk(theta, 30))
    ours = {k: dswag.Moments(rank=k) for k in (0, rank)}
    usual = {k: UsualMoments(tensors, k) for k in (0, rank)}
    for moments in ours.values():
        moments.add(theta + 1e-3)
    for _ in range(rank):
        ours[rank].add(theta)
        usual[rank].add(tensors)
    target = torch.empty_like(theta)
    times = interleaved(
        repeats,
        {
            "copy": lambda: target.copy_(theta),
            "ours, no columns": lambda: ours[0].add(theta),
            "usual, no columns": lambda: usual[0].add(tensors),
            f"ours, {rank} columns": lambda: ours[rank].add(theta),
            f"usual, {rank} columns": lambda: usual[rank].add(tensors),
            **{f"{peer.name}, {rank} columns": peer.add for peer in others if peer.add is not None},
        },
    )
    copying = times.pop("copy") / len(theta) / 8
    print(f"copying moves {1e-9 / copying:.1f} GB/s; the least is {BYTES} bytes a parameter, and 4 for the column")
    print("add                              ns/parameter   x ours   of the least, moved as fast")
    for name, duration in times.items():
        least = copying * (BYTES if "no columns" in name else BYTES + 4)
        mine = times["ours, no columns" if "no columns" in name else f"ours, {rank} columns"]
        per = duration / len(theta)
        print(f"  {name:32} {per * 1e9:9.2f} {duration / mine:8.1f} {least / per:8.0%}")


def sampling(posterior: dswag.GaussianPosterior, draws: int, repeats: int, others: Sequence[peers.Peer]) -> None:
    """Prints how long draws take."""
    d, threads = len(posterior.mean), torch.get_num_threads()
    memory = torch.zeros(draws, d)
    blocks = [torch.empty(1 << 17) for _ in range(threads)]
    generators = [generator_for(thread) for thread in range(threads)]
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        times = interleaved(
            repeats,
            {
                "normal": on_all_threads(
                    lambda i: [blocks[i].normal_(generator=generators[i]) for _ in range(20)], pool
                ),
                f"ours, {draws} at once": lambda: posterior.sample(0, draws, out=memory),
                f"ours, {draws} in new memory": lambda: posterior.sample(0, draws),
                "ours, one": lambda: posterior.sample(0, out=memory[:1]),
                "ours, one, diagonal": lambda: posterior.sample(0, out=memory[:1], kind="diagonal"),
                "usual, one": lambda: usual_draw(posterior),
                **{f"{peer.name}, one, {peer.kind}": peer.draw for peer in others},
            },
        )
    floor = times.pop("normal") / 20 / len(blocks[0]) / threads
    print(f"normal numbers alone take {floor * 1e9:.2f} ns on all threads")
    print("sample                           ns/parameter and draw   x ours, one   normal numbers")
    for name, duration in times.items():
        per = duration / d / (draws if str(draws) in name else 1)
        mine = times["ours, one, diagonal" if "diagonal" in name else "ours, one"] / d
        print(f"  {name:32} {per * 1e9:9.2f} {per / mine:20.1f} {floor / per:14.0%}")


def peak(who: str, d: int, rank: int) -> float:
    """The most memory while snapshots are collected, θ among it, in multiples of θ: of this process."""

    torch.set_num_threads(1)  # which changes no memory, and is quick on a busy machine too

    def collect(theta: Tensor) -> None:
        tensors = list(torch.chunk(theta, 30))
        moments = dswag.Moments(rank=rank) if who == "ours" else UsualMoments(tensors, rank)
        for _ in range(rank + 3):
            theta.add_(1e-3)
            if isinstance(moments, UsualMoments):
                moments.add(tensors)
            else:
                moments.add(theta)

    collect(torch.zeros(10_000))  # what the first call loads and starts is no matter of d
    theta = torch.randn(d, generator=generator_for(0))
    before = _status("VmRSS")
    collect(theta)
    return (_status("VmHWM") - before) / (4 * d) + 1


def _status(name: str) -> int:
    """Bytes, as Linux counts them for this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def peaks(d: int, rank: int) -> None:
    """Prints the most memory of each way, in a process of its own."""
    if not Path("/proc/self/status").exists():
        print("memory: not measured, it takes Linux")
        return
    for who in ("ours", "usual"):
        command = [sys.executable, __file__, "--peak", who, "--d", str(d), "--rank", str(rank)]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        print(f"memory while collecting, {who:6} {found} d floats; 2 + K + 2 = {rank + 4}")


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--d", type=int, default=15_250_000)
    parser.add_argument("--rank", type=int, default=20)
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peak", choices=("ours", "usual"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    d, rank = arguments.d, arguments.rank
    if arguments.peak:
        print(f"{peak(arguments.peak, d, rank):.1f}")
        return
    print(f"d = {d:,}, K = {rank}, {torch.get_num_threads()} threads")
    peaks(d, rank)
    generator = generator_for(0)
    theta = torch.randn(d, generator=generator)
    others, missing = peers.installed(list(torch.chunk(theta, 30)), rank)
    if missing:
        print(f"not installed: {', '.join(missing)}")
    collecting(theta, rank, arguments.repeats, others)
    variance, columns = torch.rand(d, generator=generator), torch.randn(rank, d, generator=generator)
    sampling(dswag.GaussianPosterior(theta, variance, columns, count=rank), arguments.draws, arguments.repeats, others)


if __name__ == "__main__":
    main()
