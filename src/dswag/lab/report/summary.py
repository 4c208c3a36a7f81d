"""The answer first: which claims hold, in a sentence and a table, and how the methods compare."""

from collections.abc import Callable, Mapping, Sequence

from dswag.lab.report.claims import OURS, PAPER, Claim, Results, Subject
from dswag.lab.report.over_seeds import direction
from dswag.lab.report.reproduced import Result, best_first, by_value, methods_of
from dswag.lab.report.result_tables import markdown_table
from dswag.lab.report.verdicts import STANDARDS, Judgement, Outcome, Standard, certainty, listed

_TOLD: Mapping[Outcome, tuple[str, str]] = {
    "holds": ("holds", "hold"),
    "holds in part": ("holds in part", "hold in part"),
    "does not hold": ("does not hold", "do not hold"),
    "no difference": ("shows no difference either way", "show no difference either way"),
    "has not run": ("has not been run", "have not been run"),
}


def summary(subjects: Sequence[Subject], results: Mapping[str, Results]) -> list[str]:
    """Sentences and tables, in Markdown."""
    sentences = [*(_counted(subject) for subject in subjects), *_ranked(results)]
    parts = ["\n".join(f"- {sentence}" for sentence in sentences)]
    parts.append("The paper's claims, and what came out here:")
    parts.append(_matrix(PAPER, subjects, lambda judgement: judgement.brief))
    parts.append("Questions about clients whose data differ, which the paper does not ask:")
    parts.append(_matrix(OURS, subjects, lambda judgement: judgement.verdict))
    return parts


def _counted(subject: Subject) -> str:
    """How many of the paper's claims came out in which way."""
    outcomes = [found.judgement.outcome for found in subject.findings if found.claim in PAPER]
    if not subject.has_run:
        return f"**{subject.name}**: nothing has been run."
    told = [
        f"{count} {one if count == 1 else more}"
        for outcome, (one, more) in _TOLD.items()
        if (count := outcomes.count(outcome))
    ]
    return f"**{subject.name}**: of {len(outcomes)} claims of the paper, {listed(told)}."


def _ranked(results: Mapping[str, Results]) -> list[str]:
    """Which methods of each table are better than DSWAG, and which worse, by NLL."""
    return [
        f"**{dataset}, {name}**, W = {clients}: {_against_dswag(group, STANDARDS[dataset])}"
        for dataset, of_figure in results.items()
        for name, runs in of_figure.items()
        if name.startswith("table-")
        for (clients,), group in by_value(runs, "clients").items()
        if "dswag" in methods_of(group)
    ]


def _against_dswag(runs: Sequence[Result], standard: Standard) -> str:
    order = best_first(runs)
    nll = {
        method: {run["config"]["seed"]: run["measured"][method]["nll"] for run in runs if method in run["measured"]}
        for method in order
    }
    better, worse = [], []
    for method, values in nll.items():
        gains = [values[seed] - nll["dswag"][seed] for seed in values if seed in nll["dswag"]]
        side = direction([0.0], gains, standard.least("NLL")) if gains else 0
        better += [f"`{method}`"] * (side < 0)
        worse += [f"`{method}`"] * (side > 0)
    told = f"better: {listed(better or ['none'])}; worse: {listed(worse or ['none'])}"
    place = f"by NLL, `dswag` is number {order.index('dswag') + 1} of {len(order)}"
    seeds = certainty([list(values.values()) for values in nll.values()])
    return f"{place}. By more than chance{f' ({seeds})' if seeds else ''}, {told}."


def _matrix(claims: Sequence[Claim], subjects: Sequence[Subject], told: Callable[[Judgement], str]) -> str:
    """A row a claim and a column a subject that any is made of; a dash where one is not made and nothing has run."""
    found = {subject.name: {each.claim: each.judgement for each in subject.findings} for subject in subjects}
    columns = {name: judged for name, judged in found.items() if any(claim in judged for claim in claims)}
    rows = [
        [claim.text, *(f"**{told(judged[claim])}**" if claim in judged else "–" for judged in columns.values())]
        for claim in claims
    ]
    return markdown_table(["", *columns], rows)
