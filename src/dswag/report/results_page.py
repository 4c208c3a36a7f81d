"""docs/results.md, from the files of results alone."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dswag.report.claims import STANDARDS, Results, findings, with_error
from dswag.report.reproduced import Result, by_value, partition_label, methods_of

Score = tuple[str, Callable[[Mapping[str, Any]], float | None]]


def results_page(introduction: str, planned: Mapping[str, tuple[str, int]], results: Mapping[str, Results]) -> str:
    """The page in Markdown.

    Args:
        introduction: what stands before the numbers.
        planned: title and number of cases of each figure, by its name.
        results: of each figure that has any, by data set; the figures' own first.
    """
    parts = [introduction.strip(), _what_has_run(planned, results), *_claims(results)]
    for name, (title, _) in planned.items():
        parts.append(f"## {name}\n\n{title}.")
        ran = [(number, dataset) for number, dataset in enumerate(results) if results[dataset].get(name)]
        for number, dataset in ran:
            picture = f"../results/{f'{dataset}/' if number else ''}{name}.svg"
            parts.append(f"**{dataset}**\n\n![{title}]({picture})")
            parts += [make(results[dataset][name]) for make in _TABLES.get(name, ())]
        if not ran:
            parts.append(NOT_RUN.get(name, "Has not run."))
    return "\n\n".join(parts) + "\n"


NOT_RUN = {
    "table-cifar10": "Has not run: it needs a GPU, and none was at hand. The recipe is ready\n"
    "(`src/dswag/experiments/table-cifar10.toml`): a round and an epoch of it were tried on the CPU with 64 images,\n"
    "and the tests run all that it asks for with a small model."
}
"""What is said of figures without results, where more is to be said than that."""


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose cells hold no line breaks."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '¦') for cell in line)} |" for line in lines)


def _what_has_run(planned: Mapping[str, tuple[str, int]], results: Mapping[str, Results]) -> str:
    rows = []
    for name, (title, cases) in planned.items():
        row = [name, title]
        for of_figure in results.values():
            runs = of_figure.get(name, ())
            seeds = ", ".join(map(str, sorted({run["config"]["seed"] for run in runs})))
            hours = sum(run["seconds"] for run in runs) / 3600
            row.append(f"{len(runs)} of {cases}, seeds {seeds}, {hours:.1f} h" if runs else "–")
        rows.append(row)
    note = "Hours are those of a machine of two cores, shared with other work; runs that figures share count in each."
    return f"## What has run\n\n{markdown_table(['figure', 'what', *results], rows)}\n\n{note}"


def _claims(results: Mapping[str, Results]) -> list[str]:
    parts = ["## The paper's claims", _HOW_JUDGED.strip()]
    for dataset, of_figure in results.items():
        rows = [
            [found.claim, found.place, found.figure, f"**{found.verdict}**", found.numbers]
            for found in findings(of_figure, STANDARDS[dataset])
        ]
        parts.append(f"On {dataset}, with the MLP:")
        parts.append(markdown_table(["claim", "in the paper", "here", "", "numbers"], rows))
    parts.append(_CIFAR10)
    return parts


_CIFAR10 = """That on CIFAR-10 the NLL falls from one worker to two (Figure 7, right), and that calibration gets better
(Figure 5, right), **has not run**."""

_HOW_JUDGED = """
Numbers are mean ± standard deviation over seeds, without the latter where one seed has run. A trend is that from the
fewest workers to the most. A difference counts where it is more than two standard errors over seeds, and more than
about two that the 10,000 test examples of mnist give: 0.003 of accuracy or NLL, 0.002 of a calibration error. (mnist5k
has 1,000 of them, and needs differences √10 times as large.)
"""


def _score_table(keys: Sequence[str], scores: Sequence[Score]) -> Callable[[Sequence[Result]], str]:
    """A row a method and setting, a column a score."""

    def make(runs: Sequence[Result]) -> str:
        rows = []
        labeled = [{**run, "case": {**run["case"], "partition": partition_label(run)}} for run in runs]
        for values, group in by_value(labeled, *keys).items():
            for method in methods_of(group):
                measured = [run["measured"][method] for run in group if method in run["measured"]]
                cells = [[score(each) for each in measured] for _, score in scores]
                told = [with_error([v for v in cell if v is not None]) if None not in cell else "–" for cell in cells]
                rows.append([*map(str, values), method, *told])
        return markdown_table([*keys, "method", *(name for name, _ in scores)], rows)

    return make


def _differences(keys: Sequence[str]) -> Callable[[Sequence[Result]], str]:
    """Paired differences in NLL to the reference, with the bootstrap interval over the test set; of the lowest seed."""

    def make(runs: Sequence[Result]) -> str:
        rows, reference = [], ""
        for values, group in by_value(runs, *keys).items():
            lowest = min(run["config"]["seed"] for run in group)
            for run in (run for run in group if run["config"]["seed"] == lowest):
                for method, measured in run["measured"].items():
                    if "nll_difference" in measured:
                        found = measured["nll_difference"]
                        reference = found["to"]
                        told = f"{found['estimate']:+.4f} [{found['low']:+.4f}, {found['high']:+.4f}]"
                        rows.append([*map(str, values), method, told])
        return markdown_table([*keys, "method", f"NLL less that of {reference} [95 %]"], rows)

    return make


def _distances(runs: Sequence[Result]) -> str:
    shown = [0, 1, 10, 50, 100]
    rows = []
    for (clients,), group in by_value(runs, "clients").items():
        at = group[0]["measured"]["at"]
        for kind in group[0]["measured"]["directions"]:
            lines = [run["measured"]["directions"][kind]["accuracy"] for run in group]
            rows.append([str(clients), kind, *(with_error([line[at.index(x)] for line in lines]) for x in shown)])
    table = markdown_table(["clients", "direction", *(f"accuracy at {x}" for x in shown)], rows)
    ratios = [100 * run["measured"]["lengths"]["every element"] / run["measured"]["mean_norm"] for run in runs]
    return f"{table}\n\n{_WHY_NOT_FLAT.format(min(ratios), max(ratios))}"


_WHY_NOT_FLAT = """The printed curve stays flat up to 100; ours cannot: 100 standard deviations on every element are
{:.1f} to {:.1f} times as long as the mean itself, so that the weights at that point are mostly not the model's. A curve
that is flat there needs standard deviations some ten to a hundred times smaller, which a phase 2 with smaller learning
rates gives; the paper does not print its rates. The direction matters as well: the same step with random signs, which
has the same length, does less harm at 10 and 50 than one to the same side on every element."""


def _eigenvalues(runs: Sequence[Result]) -> str:
    rows = []
    for run in runs:
        values, total = run["measured"]["eigenvalues"], run["measured"]["total_variance"]
        rows.append([str(run["config"]["clients"]), *(f"{value / total:.3f}" for value in values)])
    header = ["clients", *(f"eigenvalue {i + 1}" for i in range(len(rows[0]) - 1))]
    return markdown_table(header, rows) + "\n\nEigenvalues are shares of the trace of the covariance."


def _plain(name: str) -> Callable[[Mapping[str, Any]], float | None]:
    return lambda measured: measured[name]


def _outside(name: str) -> Callable[[Mapping[str, Any]], float | None]:
    return lambda measured: measured["outside"]["entropy"][name] if "outside" in measured else None


def _shifted(measured: Mapping[str, Any]) -> float | None:
    """Mean NLL over all corruptions and strengths."""
    if "shift" not in measured:
        return None
    values = [each["nll"] for strengths in measured["shift"].values() for each in strengths]
    return float(sum(values) / len(values))


_BASIC: tuple[Score, ...] = (
    ("accuracy", _plain("accuracy")),
    ("NLL", _plain("nll")),
    ("ECE", _plain("ece_equal_mass")),
)
_FULL: tuple[Score, ...] = (
    *_BASIC,
    ("calibrated NLL", _plain("calibrated_nll")),
    ("ECE, equal width", _plain("ece_equal_width")),
    ("Brier", _plain("brier")),
    ("AUROC outside", _outside("auroc")),
    ("FPR95 outside", _outside("fpr95")),
    ("NLL, corrupted", _shifted),
)

_TABLES: Mapping[str, Sequence[Callable[[Sequence[Result]], str]]] = {
    "fig4": (_eigenvalues,),
    "fig6": (_distances,),
    "fig7": (_score_table(["clients"], _BASIC), _differences(["clients"])),
    "fig8": (_score_table(["partition", "clients", "explore_epochs"], _BASIC),),
    "table-mnist": (_score_table([], _FULL), _differences([])),
    "table-cifar10": (_score_table(["clients"], _FULL), _differences(["clients"])),
}
