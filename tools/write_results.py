"""Writes docs/results.md from the files in results/, so that it says what was measured and nothing else.

    python tools/write_results.py [--check]

With --check nothing is written; the exit code is 1 where the page is not what the files give.
"""

import argparse
from pathlib import Path

from dswag.experiments.plan import NAMES, load
from dswag.experiments.reproduction import present
from dswag.report.results_page import results_page

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "results.md"

INTRODUCTION = """# Results

The paper's figures, run again with this library, and tables that it has not. `tools/write_results.py` writes this page
from the files in [results](../results), one for each run, with its settings, versions, machine and duration; no number
here is written by hand. `dswag reproduce all` runs what is missing, `dswag reproduce --list` says how long that takes,
and `dswag reproduce NAME --quick` does the same on a small data set in a minute.

The paper prints no numbers, no learning rates and no seeds: what can be compared are trends. The settings are in
`src/dswag/experiments/*.toml`; 100 rounds with a stop at 100 % training accuracy and 20 epochs of phase 2 are the
paper's. With one worker a snapshot is taken after each of the 20 epochs, since a single snapshot has no spread: W = 1
is SWAG. With more, each worker gives one snapshot. `mnist5k` is the 4,000 training and 1,000 test digits inside the
package: the same runs there (`--dataset mnist5k`) take a tenth of the time, so that there is more than one seed.

Methods: `phase-1` is θ_T; `dswag`, `dswag-diagonal` and `dswag-mean` are draws from the posterior, from its diagonal
and its mean alone; `swag-global` and `swag-local` are the two readings of "SWAG after distributed training", moments of
the averaged models of further rounds and of one worker that goes on alone; `ensemble` averages what the workers'
snapshots predict; `noise-matched` is equal noise on all weights with DSWAG's total variance. `dswag-calibrated` has two
scales and a temperature fitted where the data are ([heterogeneous.md](heterogeneous.md)). The others are the methods of
`dswag compare`."""


DATASETS = {"mnist": "", "mnist5k": "mnist5k"}
"""Data sets with their folders in results/."""


def page() -> str:
    """What the page should be."""
    plans = {name: load(name) for name in NAMES}
    results = {}
    for dataset, folder in DATASETS.items():
        found = {
            name: present(load(name, dataset=folder or None), ROOT / "results" / folder)
            for name in NAMES
            if not (folder and name == "table-cifar10")
        }
        results[dataset] = {name: runs for name, runs in found.items() if runs}
    planned = {name: (plan.title, len(plan.cases)) for name, plan in plans.items()}
    return results_page(INTRODUCTION, planned, results)


def main() -> int:
    """Writes the page, or compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    text = page()
    if parser.parse_args().check:
        return int(not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text)
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
