"""The command `reproduce`: the paper's figures and tables, from recipes that travel with the package."""

from collections.abc import Sequence
from pathlib import Path

from dswag.cli import console
from dswag.cli.options import Reproduce
from dswag.cli.outputs import to_json, write
from dswag.config import ConfigError
from dswag.data.sources import DataNotFoundError
from dswag.lab.experiments import plan as plans
from dswag.lab.experiments.plan import NAMES, Plan
from dswag.lab.experiments.recipe import has_device
from dswag.lab.experiments.reproduction import present, remaining, reproduce, seconds_left

RESULTS, QUICK_RESULTS = Path("results"), Path("runs/quick")


def reproduce_figures(options: Reproduce) -> None:
    """Runs what has no result yet, draws each figure from what there is, and says what is left."""
    names = NAMES if options.list or "all" in options.names else options.names
    if not names:
        raise ConfigError(f"reproduce needs a name: one of {', '.join(NAMES)}, or all; --list says what is done")
    chosen = [plans.load(name, quick=options.quick, dataset=options.dataset, budget=options.budget) for name in names]
    variant = options.dataset or ""
    if options.budget is not None:
        variant = f"{chosen[0].cases[0].recipe.data.dataset}-{options.budget}"
    results = options.output or (QUICK_RESULTS if options.quick else RESULTS / variant)
    if not options.list:
        _run_all(chosen, results, options)
    if options.json:
        console.emit(to_json({plan.name: _state(plan, results) for plan in chosen}))
        return
    for plan in chosen:
        state = _state(plan, results)
        left = f", about {_duration(state['seconds_left'])} left" if state["done"] < state["cases"] else ""
        console.emit(f"{plan.name:14} {state['done']:3} of {state['cases']:3}{left}  {plan.title}")
        if not options.list and (figure := _figure(plan, results)).exists():
            console.emit(f"figure: {figure}")


def _run_all(chosen: Sequence[Plan], results: Path, options: Reproduce) -> None:
    """Runs the plans one after the other; of "all" those that this machine can."""
    hindered = {plan.name: _hindrance(plan, results, options) for plan in chosen}
    faults = [f"{name} cannot run here: {hindrance}" for name, hindrance in hindered.items() if hindrance]
    if faults and "all" not in options.names:
        raise ConfigError("\n".join(faults))
    for fault in faults:
        console.say(f"left out: {fault}")
    for plan in chosen:
        if hindered[plan.name]:
            continue
        try:
            _run(plan, results, options)
        except DataNotFoundError as error:
            if "all" not in options.names:
                raise
            console.say(f"left out: {plan.name} has no data: {error}")


def _hindrance(plan: Plan, results: Path, options: Reproduce) -> str | None:
    """Why what is left of a plan cannot run on this machine; None if it can."""
    needed = {case.recipe.data.device for case in remaining(plan, results, only=options.only)}
    missing = sorted(device for device in needed if not has_device(device))
    if not missing:
        return None
    return f"it needs device {' and '.join(missing)}; run it where that is, or try a small form of it with --quick"


def _run(plan: Plan, results: Path, options: Reproduce) -> None:
    from dswag.lab.report.figures import draw  # brings matplotlib, which nothing else needs

    left = remaining(plan, results, only=options.only)
    with console.display() as display:
        display.begin(plan.name, len(left))
        for case in reproduce(plan, results, options.work, only=options.only, advance=display.tell):
            write(_figure(plan, results), draw(plan.name, plan.title, present(plan, results)))
            display.advance(f"{case.name}, about {_duration(seconds_left(plan, results))} left")


def _figure(plan: Plan, results: Path) -> Path:
    return results / f"{plan.name}.svg"


def _state(plan: Plan, results: Path) -> dict[str, float]:
    return {
        "cases": len(plan.cases),
        "done": len(plan.cases) - len(remaining(plan, results)),
        "seconds_left": round(seconds_left(plan, results)),
    }


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
