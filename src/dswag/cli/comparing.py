"""The command `compare`: many methods on one problem, over several seeds."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict

from dswag.cli import console
from dswag.cli.commands import RUNS
from dswag.cli.options import Compare
from dswag.cli.outputs import to_json, write
from dswag.config import ConfigError
from dswag.lab.baselines import METHODS
from dswag.lab.comparison import (
    MEASURES,
    ComparisonError,
    ComparisonFolder,
    Failure,
    Outcome,
    Spread,
    chosen,
    compare_methods,
    summary,
)
from dswag.lab.experiments import foreign
from dswag.lab.experiments.recipe import Recipe

SHOWN = (("accuracy", "nll", "ece", "brier", "auroc"), ("epochs", "steps", "seconds", "bytes", "memory"))
"""On a terminal, quality and cost apart; the page has all."""

QUALITY = ("accuracy", "nll", "ece", "brier", "auroc", "fpr95")
PLOTTED = ("nll", "ece", "auroc")


def compare(options: Compare) -> None:
    """Runs what the folder does not hold yet, and shows means and standard deviations over the seeds."""
    recipe = options.recipe()
    methods = chosen(options.methods, recipe)
    if options.seeds < 1:
        raise ConfigError(f"a comparison needs at least one seed, got {options.seeds}")
    path = options.output or RUNS / f"compare-{recipe.data.dataset}-{recipe.data.model}"
    folder = ComparisonFolder.open(path, recipe, overwrite=options.overwrite)
    seeds = range(recipe.seed, recipe.seed + options.seeds)
    outcomes: list[Outcome] = []
    failures: list[Failure] = []
    console.say(f"comparing in {path}")
    with console.display() as display:
        display.begin("method", len(methods) * len(seeds))
        for outcome in compare_methods(recipe, methods, seeds, folder, workers=options.workers):
            if isinstance(outcome, Failure):
                failures.append(outcome)
            else:
                outcomes.append(outcome)
            display.advance(_described(outcome))
    if not outcomes:
        raise ComparisonError(f"no method came to an outcome: {_described(failures[0])}")
    found = summary(outcomes)
    notes = _notes(recipe, seeds, found, failures)
    data = {
        "settings": recipe.flat(),
        "seeds": list(seeds),
        "methods": {
            method: {name: asdict(spread) for name, spread in spreads.items()} for method, spreads in found.items()
        },
        "failures": [asdict(failure) for failure in failures],
    }
    write(path / "comparison.json", to_json(data) + "\n")
    page = path / "comparison.html"
    said = _answer(outcomes, found)
    write(page, _page(recipe, found, notes, said))
    if options.json:
        console.emit(to_json({"comparison": str(page), **data}))
    else:
        _show(found, notes)
        console.emit(said)
        console.emit(f"report: {page}")


def _described(outcome: Outcome | Failure) -> str:
    if isinstance(outcome, Failure):
        return f"{outcome.method}, seed {outcome.seed}, failed: {outcome.cause}"
    return (
        f"{outcome.method}, seed {outcome.seed}, accuracy {outcome.scores.accuracy:.4f}, NLL {outcome.scores.nll:.4f}"
    )


def _answer(outcomes: Sequence[Outcome], found: Mapping[str, Mapping[str, Spread]]) -> str:
    """Which method has the lowest NLL, and how DSWAG compares with a single set of weights on the same budget."""
    from dswag.lab.report.over_seeds import paired_difference  # brings NumPy alone, but from a room of pictures

    told = {method: MEASURES["nll"].text(spreads["nll"]) for method, spreads in found.items()}
    order = sorted(found, key=lambda method: found[method]["nll"].mean)
    said = f"The lowest negative log-likelihood is that of {order[0]}, {told[order[0]]}"
    if "dswag" in found and order[0] != "dswag":
        said += f"; dswag is number {order.index('dswag') + 1} of {len(order)}, with {told['dswag']}"
    if not {"dswag", "fedavg"} <= set(found):
        return said + "."
    nll = {
        name: {each.seed: each.scores.nll for each in outcomes if each.method == name} for name in ("dswag", "fedavg")
    }
    mean, half = paired_difference(nll["dswag"], nll["fedavg"])
    if half is None:
        certainty = "with one seed, nobody knows whether that is chance"
    elif abs(mean) <= half:
        certainty = f"the 95 % interval, {mean - half:+.4f} to {mean + half:+.4f}, includes 0: it may be chance"
    else:
        certainty = f"95 % interval {mean - half:+.4f} to {mean + half:+.4f}"
    against = f"Against fedavg, which spends the same budget on one set of weights, dswag's is {mean:+.4f}"
    return f"{said}. {against} ({certainty})."


def _page(recipe: Recipe, found: Mapping[str, Mapping[str, Spread]], notes: Sequence[str], answer: str) -> str:
    from dswag.lab.report.comparison import (  # brings matplotlib, which nothing else needs
        Cell,
        Column,
        render_comparison,
    )

    return render_comparison(
        f"{_counted(len(found), 'method')}: {recipe.data.model} on {recipe.data.dataset}, {recipe.clients} clients",
        [
            Column(measure.title, measure.better, name in PLOTTED, cost=name not in QUALITY)
            for name, measure in MEASURES.items()
        ],
        {
            _marked(method): [
                Cell(
                    measure.text(spreads[name]),
                    spreads[name].mean,
                    spreads[name].std,
                    contends=name != "bytes" or not METHODS[method].pools_data,
                )
                for name, measure in MEASURES.items()
            ]
            for method, spreads in found.items()
        },
        answer=answer,
        described={_marked(method): METHODS[method].description for method in found},
        notes=notes,
        settings=recipe.flat(),
    )


def _show(found: Mapping[str, Mapping[str, Spread]], notes: Sequence[str]) -> None:
    """Writes the tables to standard output."""
    for names in SHOWN:
        console.show(
            {
                _marked(method): {MEASURES[name].title: MEASURES[name].text(spreads[name]) for name in names}
                for method, spreads in found.items()
            }
        )
    for note in notes:
        console.emit(note)


def _marked(method: str) -> str:
    return f"{method} *" if METHODS[method].pools_data else method


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _notes(recipe: Recipe, seeds: Sequence[int], methods: Iterable[str], failures: Sequence[Failure]) -> list[str]:
    inside, outside = recipe.data.dataset, foreign.name(recipe.data.dataset)
    numbers = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    notes = [
        f"Over {_counted(len(seeds), 'seed')} ({numbers}); NLL in nats; ECE over 20 bins of equal mass.",
        f"AUROC and FPR95: how well the entropy of the predictions tells {inside} from {outside}.",
        "Epochs count gradients, in passes over all training examples; steps are those that must be done one after "
        "another if every client has a machine of its own. Seconds and bytes are those of training, including parts "
        "that methods share. Peak MB is by how much this process grew; memory that it already held is not counted.",
    ]
    if any(METHODS[method].pools_data for method in methods):
        notes.append("* needs all examples in one place; the cost of bringing them there is not counted.")
    return [*notes, *(f"{_described(failure)}." for failure in failures)]
