"""docs/results.md, from the files of results alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dswag.lab.report.claims import Results, model_name, subjects
from dswag.lab.report.notes import note
from dswag.lab.report.reproduced import Result
from dswag.lab.report.result_tables import markdown_table, short_table
from dswag.lab.report.summary import summary
from dswag.lab.report.verdicts import LEAST, listed


@dataclass(frozen=True)
class Planned:
    """What a figure or table shows, and on how many runs."""

    title: str
    dataset: str
    """Its own: the pictures of others lie in a folder of their name."""
    cases: Mapping[str, int]
    """On each data set that it has run on."""


def results_page(
    introduction: str, settings: str, planned: Mapping[str, Planned], results: Mapping[str, Results]
) -> str:
    """The page in Markdown.

    Args:
        introduction: what the page is.
        settings: how everything was run, and what the methods are.
        planned: each figure, by its name.
        results: of each figure that has any, by data set, also for data sets without.
    """
    judged = tuple(subjects(results))
    parts = [introduction.strip(), "## In short", *summary(judged, results)]
    parts += ["## How claims are judged", _HOW_JUDGED.strip()]
    parts += ["## How it was run", settings.strip(), _what_has_run(planned, results)]
    for name, plan in planned.items():
        parts.append(f"## {name} – {plan.title}")
        ran = {dataset: of_figure[name] for dataset, of_figure in results.items() if of_figure.get(name)}
        for dataset, runs in ran.items():
            parts += _section(name, plan, dataset, runs)
        parts.append(note(name, ran))
    return "\n\n".join(part for part in parts if part) + "\n"


def claim_rows(results: Mapping[str, Results]) -> list[tuple[str, ...]]:
    """Every claim with what it was judged on, of each subject that has results."""
    return [
        (
            subject.name,
            found.claim.text,
            found.claim.place,
            found.figure,
            found.judgement.verdict,
            found.judgement.numbers,
        )
        for subject in subjects(results)
        if subject.has_run
        for found in subject.findings
    ]


def _section(name: str, plan: Planned, dataset: str, runs: Sequence[Result]) -> list[str]:
    """The pictures of a figure on a data set, its short table, and where all numbers are."""
    stem = f"../results/{'' if dataset == plan.dataset else f'{dataset}/'}{name}"
    parts = [f"**{dataset}**{_trained_otherwise(runs)}, [all numbers]({stem}.csv)"]
    parts.append(f"![{plan.title}, {dataset}]({stem}.svg)")
    if name.startswith("table-") and has_bands(runs):
        parts.append(f"![Reliability of some methods, {dataset}]({stem}-reliability.svg)")
    return [*parts, short_table(runs)] if name.startswith("table-") else parts


def has_bands(runs: Sequence[Result]) -> bool:
    """Whether methods were measured with reliability curves beside their scores."""
    return any("band" in scores for run in runs for scores in run["measured"].values() if isinstance(scores, dict))


def _trained_otherwise(runs: Sequence[Result]) -> str:
    """Which models did not train in single precision on CPUs, in words."""
    found: dict[str, list[str]] = {}
    for run in runs:
        precision, gpu = run["config"].get("precision", "float32"), run.get("environment", {}).get("gpu", "")
        how = " ".join([f"in {precision}"] * (precision != "float32") + [f"on {gpu}"] * bool(gpu))
        if how:
            models = found.setdefault(how, [])
            models += [model_name(run["config"]["model"])] * (model_name(run["config"]["model"]) not in models)
    told = "; ".join(f"{listed(models)} trained {how}" for how, models in found.items())
    return f" ({told})" if told else ""


def _what_has_run(planned: Mapping[str, Planned], results: Mapping[str, Results]) -> str:
    rows = [
        [name, *(_progress(results[dataset].get(name, ()), plan.cases.get(dataset, 0)) for dataset in results)]
        for name, plan in planned.items()
    ]
    return f"{markdown_table(['', *results], rows)}\n\n{_HOURS}"


def _progress(runs: Sequence[Result], cases: int) -> str:
    """How many of the cases have run, of which seeds, and how long that took."""
    if not runs:
        return "–"
    seeds = sorted({run["config"]["seed"] for run in runs})
    hours = sum(run["seconds"] for run in runs) / 3600
    return f"{len(runs)} of {cases} runs, seed{'s' * (len(seeds) > 1)} {listed(seeds)}, {hours:.1f} h"


_HOURS = """Hours are those of the machines that the runs were on: two cores, shared with other work, unless a GPU is
named. A run that several figures share counts in each of them."""

_HOW_JUDGED = f"""
[claims.csv](../results/claims.csv) has the numbers behind every verdict, as mean ± standard deviation over seeds; a
number without ± is of a single seed. A trend compares the most workers with the fewest. A difference counts if its 95 %
t interval over seeds excludes 0 (paired if both sides come from the same runs), and if it is also larger than about two
standard errors of 10,000 test examples, since all seeds share the test set: {LEAST["NLL"]} for accuracy and NLL,
{LEAST["calibration"]} for the calibration error. On mnist5k, with its 1,000 test examples, it has to be √10 times as
large. With a single seed, only the second condition applies.
"""
