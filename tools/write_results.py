"""Writes docs/results.md and draws its pictures from the files in results/, so that both say what was measured.

    python tools/write_results.py [--check] [--results DIR --page FILE]

With --check nothing is written; the exit code is 1 where the page is not what the files give.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dswag.lab.experiments.plan import NAMES, Plan, load
from dswag.lab.experiments.reproduction import present
from dswag.lab.report.figures import draw
from dswag.lab.report.results_page import Planned, results_page

ROOT = Path(__file__).resolve().parents[1]

INTRODUCTION = """# Results

The paper's figures, run again with this library, and tables that the paper does not have. The paper states no numbers,
learning rates or seeds, so only trends can be compared. `tools/write_results.py` writes this page from the files in
[results](../results). There is one for each run, with its settings, versions, machine and duration; no result on this
page is written by hand."""

SETTINGS = """`dswag reproduce all` runs what is missing, `dswag reproduce --list` says how long that takes, and
`dswag reproduce NAME --quick` tries the same on a small data set in about a minute. The settings are in
`src/dswag/lab/experiments/*.toml`. On MNIST, Figures 4 to 7 have up to 100 rounds, ended early at a training accuracy
of 100 %, and 20 epochs of phase 2, as in the paper. With one worker, a snapshot is taken after each of the 20 epochs,
since a single snapshot has no spread: W = 1 is SWAG. With more workers, each gives one snapshot. If clients differ, and
in the table of all methods, phase 1 has exactly 50 rounds, and each worker gives two snapshots and holds out a tenth of
its examples. `mnist5k` are the 4,000 training and 1,000 test digits inside the package: the same runs there
(`--dataset mnist5k`) take a tenth of the time.

Methods:

- `phase-1` is θ_T, the model at the end of phase 1.
- `dswag` and `dswag-diagonal` predict with draws from the posterior and from its diagonal, `dswag-mean` with its mean.
- `dswag-calibrated` has scales and a temperature fitted to held-out examples ([heterogeneous.md](heterogeneous.md)).
- `swag-global` and `swag-local` are two readings of the paper's "SWAG after distributed training": moments of the
  averaged models of further rounds, and of the weights of one worker that continues alone.
- `ensemble` averages the predictions of the workers' snapshots.
- `noise-matched` is equal noise on all weights, with the total variance of DSWAG.
- The others are the methods of `dswag compare` ([baselines.md](baselines.md))."""

DATASETS = ("mnist", "mnist5k", "cifar10")
"""In the order in which they are shown. Those that are not a figure's own have a folder in results/."""


def page(results: Path, *, draw_too: bool) -> str:
    """What the page should be, with pictures drawn anew if so asked."""
    planned: dict[str, Planned] = {}
    found: dict[str, dict[str, list[dict[str, Any]]]] = {dataset: {} for dataset in DATASETS}
    for name in NAMES:
        plan = load(name)
        own = plan.cases[0].recipe.dataset
        cases = {}
        for dataset, folder, of_dataset in _variants(plan, own, results):
            runs = present(of_dataset, folder)
            if runs:
                found[dataset][name] = runs
                cases[dataset] = len(of_dataset.cases)
                if draw_too:
                    (folder / f"{name}.svg").write_text(draw(name, plan.title, runs), encoding="utf-8")
        planned[name] = Planned(plan.title, own, cases)
    return results_page(INTRODUCTION, SETTINGS, planned, found)


def _variants(plan: Plan, own: str, results: Path) -> Iterator[tuple[str, Path, Plan]]:
    """The plan on each data set that it has results of."""
    yield own, results, plan
    for dataset in DATASETS:
        if (results / dataset / plan.name).is_dir():
            yield dataset, results / dataset, load(plan.name, dataset=dataset)


def main() -> int:
    """Writes the page, or compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "results.md")
    arguments = parser.parse_args()
    text = page(arguments.results, draw_too=not arguments.check)
    if arguments.check:
        return int(not arguments.page.exists() or arguments.page.read_text(encoding="utf-8") != text)
    arguments.page.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
