"""What a report says of run folders."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from dswag.cli.exchanges import communication, left_out
from dswag.federation.client_sampling import cohort_size
from dswag.lab.experiments.recipe import Recipe, settings
from dswag.runs import RunFolder
from dswag.runs.schema import Metrics


def page(folders: Sequence[RunFolder]) -> str:
    """The report over the runs, as HTML."""
    from dswag.lab.report.page import RunReport, render  # brings matplotlib, which nothing else needs

    def section(folder: RunFolder) -> RunReport:
        recipe, outcome = folder.config(Recipe), folder.metrics()
        grouped: dict[str, dict[str, object]] = {}
        values, data = recipe.flat(), recipe.data
        for setting in settings():
            grouped.setdefault(setting.group, {})[setting.name] = values[setting.name]
        return RunReport(
            title=f"{folder.path.resolve().name}: {data.model} on {data.dataset}, {recipe.clients} clients",
            settings=grouped,
            scores={} if outcome is None else outcome.scores,
            reliability={} if outcome is None else outcome.reliability,
            history=[asdict(record) for record in folder.history()],
            environment={} if outcome is None else outcome.environment,
            tables={
                "Bytes of training": communication(folder.history(), folder.exploration()),
                "Clients left out": left_out(folder.history(), folder.exploration()),
            },
            notes=_notes(folder, recipe),
            partition=folder.partition(),
            landscape=folder.landscape(),
            inspection={} if outcome is None else outcome.inspection,
            **({} if outcome is None else _compared(outcome, recipe)),
        )

    return render([section(folder) for folder in folders])


def _compared(outcome: Metrics, recipe: Recipe) -> dict[str, Any]:
    """What the page says of DSWAG beside the baseline, and what to do next."""
    from dswag.lab.report.answer import METHOD, next_steps

    difference = outcome.nll_differences.get(METHOD)
    skewed, tuned = recipe.split.kind in ("dirichlet", "shards"), recipe.calibration.calibrate
    return {
        "nll_differences": outcome.nll_differences,
        "baseline": outcome.baseline,
        "bands": outcome.bands,
        "uncertainty": outcome.uncertainty,
        "client_scores": outcome.clients,
        "sets": outcome.sets,
        "next_steps": next_steps(outcome.scores, difference, outcome.baseline, skewed=skewed, tuned=tuned),
    }


def _notes(folder: RunFolder, recipe: Recipe) -> list[str]:
    """What a reader must know of a run that is not as its settings say."""
    notes = []
    rounds = len(folder.history())
    if rounds < recipe.train.rounds:
        notes.append(f"Phase 1 ended after {rounds} of {recipe.train.rounds} rounds.")
    if folder.has_posterior():
        count = folder.posterior().count
        expected = cohort_size(recipe.explore.explorers, recipe.clients) * recipe.snapshots_per_explorer
        if count < expected:
            notes.append(f"Explorers were left out: the posterior is made from {count} of {expected} snapshots.")
    else:
        notes.append("The run was stopped before it had a posterior.")
    missing = sum(len(record.missing) for record in folder.history())
    if missing:
        asked = sum(len(record.clients) for record in folder.history())
        notes.append(f"Phase 1 went on without {missing} of {asked} answers; the clients left out are listed below.")
    outcome = folder.metrics()
    if outcome is not None and (outcome.samples, outcome.scale) != (recipe.predict.samples, recipe.predict.scale):
        notes.append(f"The scores are of {outcome.samples} samples with scale {outcome.scale:g}, set after training.")
    return notes
