"""Reproducing a figure: every case that has no result yet is trained, measured and written."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

from dswag.config import PAPER, differences
from dswag.core.atomic_files import prepare_folder, remove_leftovers, saving, write_text
from dswag.lab.experiments.measurements import MEASURES, OF_PHASE_1
from dswag.lab.experiments.plan import Case, Plan
from dswag.lab.experiments.recipe import Recipe, build
from dswag.lab.experiments.scoring import environment
from dswag.lab.experiments.trained import synchronized, train


def reproduce(
    plan: Plan,
    results: Path,
    work: Path,
    *,
    only: tuple[str, ...] = (),
    advance: Callable[[str], None] = lambda _: None,
) -> Iterator[Case]:
    """Does what is left of a plan, seed after seed, and yields each case once its result is written.

    Args:
        plan: the cases and what is measured.
        results: the folder of all results; a case's is results/figure/case.json.
        work: where trained weights are kept, so that figures share them.
        only: parts that the names of cases must have, such as "seed-0".
        advance: called with words as training goes on.

    Raises:
        ClientError: a client failed.
        DataNotFoundError: from `dswag.data.datasets.load`.
        SaveError: a folder that cannot be written to, before any work; or a disk that is full.
    """
    cases = remaining(plan, results, only=only)
    if cases:
        prepare_folder(results / plan.name, "choose another --output")
        prepare_folder(work, "choose another --work")
    for case in cases:
        experiment = build(case.recipe)
        with saving(work, "make room there, then start again: it goes on from what is saved"):
            trained = (synchronized if plan.measure in OF_PHASE_1 else train)(experiment, work, advance)
        started = perf_counter()
        measured = MEASURES[plan.measure](trained, **case.options)
        result = {
            "figure": plan.name,
            "case": case.settings,
            "measured": measured,
            "options": case.options,
            "config": _config(case.recipe),
            "environment": environment(),
            "seconds": trained.seconds + perf_counter() - started,
        }
        path = _path(plan, case, results)
        with saving(path, f"make room there, then start again: what was trained is kept in {work}"):
            remove_leftovers(path)
            write_text(path, json.dumps(result, indent=1, allow_nan=False) + "\n")
        yield case


def remaining(plan: Plan, results: Path, *, only: tuple[str, ...] = ()) -> list[Case]:
    """The cases that have no result with today's settings, those of the lowest seed first."""
    cases = sorted(plan.cases, key=lambda case: case.recipe.seed)
    chosen = [case for case in cases if set(only) <= set(case.parts)]
    return [case for case in chosen if not _is_current(plan, case, results)]


def present(plan: Plan, results: Path) -> list[dict[str, Any]]:
    """The results that there are, in the order of the cases."""
    paths = [_path(plan, case, results) for case in plan.cases if _is_current(plan, case, results)]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def seconds_left(plan: Plan, results: Path) -> float:
    """What the remaining cases will take, as long as those did that are done, or as the plan says."""
    done = [result["seconds"] for result in present(plan, results)]
    each = sum(done) / len(done) if done else plan.seconds
    return each * len(remaining(plan, results))


def _path(plan: Plan, case: Case, results: Path) -> Path:
    return results / plan.name / f"{case.name}.json"


def _is_current(plan: Plan, case: Case, results: Path) -> bool:
    """Whether its file is of these settings, and not older than what last changed its numbers.

    A setting that the file does not name was at its default when it was written, or as in the paper if there was none.
    """
    path = _path(plan, case, results)
    if not path.exists():
        return False
    result = json.loads(path.read_text(encoding="utf-8"))
    if int(result["environment"].get("results_version", 1)) < plan.results_version:
        return False
    changed = differences(_config(case.recipe), {**PAPER, **result["config"]}, kind=Recipe)
    return not changed and bool(result["options"] == _as_read(case.options))


def _config(recipe: Recipe) -> dict[str, Any]:
    """The settings that decide a result: all but where the data lie."""
    return {name: value for name, value in recipe.flat().items() if name != "data_dir"}


def _as_read(value: Mapping[str, Any]) -> Any:
    """As it is after a way through JSON."""
    return json.loads(json.dumps({name: each for name, each in value.items() if name != "data_dir"}))
