"""Writes docs/results.md with its tables and pictures from the files in results/, and the table of docs/when.md.

    python tools/write_results.py [--check] [--results DIR --page FILE]

With --check nothing is written; the exit code is 1 where a page or table is not what the files give.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dswag.lab.experiments.plan import NAMES, Plan, load
from dswag.lab.experiments.reproduction import present
from dswag.lab.report.choices import choices_table
from dswag.lab.report.figures import draw, draw_reliability
from dswag.lab.report.result_tables import claims_table, comma_separated
from dswag.lab.report.results_page import Planned, claim_rows, has_bands, results_page

ROOT = Path(__file__).resolve().parents[1]
WHEN, BEGIN, END = ROOT / "docs" / "when.md", "<!-- table: tools/write_results.py -->", "<!-- end of table -->"

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

VARIANTS = ("mnist", "mnist5k", "cifar10-short", "cifar10-long", "cifar10")
"""Data sets, with the budget where there are several, in the order in which they are shown. Those that are not a
figure's own have a folder in results/."""


NAMED = ("mnist", "cifar10-short")
"""Those that the page names even where nothing has been run."""


def files(results: Path) -> tuple[str, dict[Path, str]]:
    """The page, and the tables and pictures beside the results, by where they belong."""
    planned: dict[str, Planned] = {}
    found: dict[str, dict[str, list[dict[str, Any]]]] = {variant: {} for variant in VARIANTS}
    beside: dict[Path, str] = {}
    for name in NAMES:
        plan = load(name)
        own = plan.cases[0].recipe.data.dataset
        cases = {}
        for variant, folder, of_variant in _variants(plan, own, results):
            runs = present(of_variant, folder)
            if not runs:
                continue
            found[variant][name] = runs
            cases[variant] = len(of_variant.cases)
            beside[folder / f"{name}.csv"] = comma_separated(name, runs)
            beside[folder / f"{name}.svg"] = draw(name, plan.title, runs)
            if has_bands(runs) and name.startswith("table-"):
                beside[folder / f"{name}-reliability.svg"] = draw_reliability(name, plan.title, runs)
        planned[name] = Planned(plan.title, own, cases)
    found = {variant: runs for variant, runs in found.items() if runs or variant in NAMED}
    beside[results / "claims.csv"] = claims_table(claim_rows(found))
    return results_page(INTRODUCTION, SETTINGS, planned, found), beside


def _variants(plan: Plan, own: str, results: Path) -> Iterator[tuple[str, Path, Plan]]:
    """The plan in each variant that it has results of."""
    yield own, results, plan
    for variant in VARIANTS:
        dataset, _, budget = variant.partition("-")
        if (results / variant / plan.name).is_dir():
            of_variant = load(plan.name, budget=budget) if budget else load(plan.name, dataset=dataset)
            yield variant, results / variant, of_variant


def _with_choices(text: str, results: Path) -> str:
    """The page with its table made anew, between the two marks."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{choices_table(present(load('table-mnist'), results))}\n\n{END}{after}"


def main() -> int:
    """Writes the page, or compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "results.md")
    arguments = parser.parse_args()
    text, beside = files(arguments.results)
    written = {arguments.page: text, **beside}
    if arguments.results == ROOT / "results":
        written[WHEN] = _with_choices(WHEN.read_text(encoding="utf-8"), arguments.results)
    if arguments.check:  # pictures differ with the version of the library that draws them
        compared = {path: content for path, content in written.items() if path.suffix != ".svg"}
        return int(any(not path.exists() or path.read_text(encoding="utf-8") != c for path, c in compared.items()))
    for path, content in written.items():
        path.write_text(content, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
