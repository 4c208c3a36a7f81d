"""The HTML report: one self-contained page over one or many runs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from dswag.data.class_counts import ClassCounts
from dswag.evaluation.bootstrap import Interval, ReliabilityBand
from dswag.evaluation.by_client import ClientScores
from dswag.evaluation.inspection import Inspection
from dswag.evaluation.metrics import Scores
from dswag.evaluation.reliability import Reliability
from dswag.lab.report.answer import BASELINE, METHOD, answer, calibrated, named, side, standard_error
from dswag.lab.report.client_scores import client_scores_section, sets_section
from dswag.lab.report.clients import clients_section
from dswag.lab.report.examples import examples_section
from dswag.lab.report.loss_landscape import landscape_section
from dswag.lab.report.plots import reliability_diagram, training_curve
from dswag.lab.report.uncertainty import uncertainty_section
from dswag.runs.schema import ConformalSets, Examined, Landscape

TEMPLATES = Environment(
    loader=PackageLoader("dswag.lab.report", ""),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
"""Of pages that need no other file and no network."""


def render(runs: Sequence["RunReport"]) -> str:
    """One HTML page that needs no other file and no network: the answer, scores, figures, settings.

    Several runs get a comparison first, then a section each.

    Raises:
        ValueError: no run.
    """
    if not runs:
        raise ValueError("a report needs at least one run, got none")
    return TEMPLATES.get_template("page.html.j2").render(
        sections=[_section(run, number) for number, run in enumerate(runs)],
        comparison=_comparison(runs),
        columns=_COLUMNS,
    )


@dataclass(frozen=True)
class RunReport:
    """What the page says of one run.

    - settings: by name; a value that is itself a mapping is a group of its own.
    - scores, reliability: by method, in the order in which they are shown.
    - history: for each round of phase 1 its `round`, `loss`, `seconds` (of that round) and, where it was measured, its
      `test_accuracy` in [0, 1].
    - tables: further pairs of names and texts to show, by caption; those without pairs are left out.
    - notes: sentences that the reader must know to judge the numbers.
    - inspection: by method, what is shown of classes and examples; that of DSWAG is.
    - baseline: the method that the others are compared with.
    - nll_differences: by method, NLL less that of the baseline, with a 95 % interval over test examples.
    - bands: by method, its reliability curve with where it might be for other test examples.
    - uncertainty: of DSWAG's predictions, where they are right and wrong and for foreign inputs.
    - client_scores: by method, of each client's test examples.
    - sets: of classes, where clients held out examples.
    - next_steps: sentences on what to do after reading the page.
    - partition: how many training examples of each class each client has.
    - landscape: the training loss around the posterior's mean.

    Raises:
        ValueError: methods that were scored on different numbers of examples.
    """

    title: str
    settings: Mapping[str, object] = field(default_factory=dict)
    scores: Mapping[str, Scores] = field(default_factory=dict)
    reliability: Mapping[str, Reliability] = field(default_factory=dict)
    history: Sequence[Mapping[str, object]] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    tables: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    partition: ClassCounts | None = None
    landscape: Landscape | None = None
    inspection: Mapping[str, Inspection] = field(default_factory=dict)
    nll_differences: Mapping[str, Interval] = field(default_factory=dict)
    baseline: str = BASELINE
    bands: Mapping[str, ReliabilityBand] = field(default_factory=dict)
    uncertainty: Examined | None = None
    next_steps: Sequence[str] = ()
    client_scores: Mapping[str, Sequence[ClientScores]] = field(default_factory=dict)
    sets: ConformalSets | None = None

    def __post_init__(self) -> None:
        counts = {name: scores.num_examples for name, scores in self.scores.items()}
        if len(set(counts.values())) > 1:
            raise ValueError(f"the methods of a run must be scored on the same examples, got num_examples {counts}")


class _Column(NamedTuple):
    """A score as a column of a table."""

    attribute: str
    name: str
    better: Literal["higher", "lower"]

    def text(self, scores: Scores) -> str:
        """The score with the digits in which scores are printed and compared; an accuracy in percent."""
        value: float = getattr(scores, self.attribute)
        return f"{100 * value:.2f}" if self.attribute == "accuracy" else f"{value:.4f}"


_COLUMNS = (
    _Column("accuracy", "Accuracy (%)", "higher"),
    _Column("nll", "NLL", "lower"),
    _Column("ece_equal_mass", "ECE, equal mass", "lower"),
    _Column("ece_equal_width", "ECE, equal width", "lower"),
    _Column("brier", "Brier", "lower"),
)
_COMPARED = (_COLUMNS[1], _COLUMNS[2], _COLUMNS[0])


def _section(run: RunReport, number: int) -> dict[str, object]:
    """One run in the words and numbers that the template puts in place."""
    rows = {name: [column.text(scores) for column in _COLUMNS] for name, scores in run.scores.items()}
    best = [
        _best(column, (row[index] for row in rows.values())) if len(rows) > 1 else ""
        for index, column in enumerate(_COLUMNS)
    ]
    return {
        "title": run.title,
        "answer": answer(run.scores, run.nll_differences.get(METHOD), run.baseline),
        "next_steps": run.next_steps,
        "baseline": run.baseline,
        "notes": run.notes,
        "rows": {name: [(text, text == best[index]) for index, text in enumerate(row)] for name, row in rows.items()},
        "differences": {name: _interval(difference) for name, difference in run.nll_differences.items()},
        "num_examples": next((scores.num_examples for scores in run.scores.values()), 0),
        "standard_error": f"{max((100 * standard_error(scores) for scores in run.scores.values()), default=0):.2f}",
        "reliability": Markup(reliability_diagram(run.reliability, run.bands)) if run.reliability else "",
        "uncertainty": uncertainty_section(run.uncertainty, number) if run.uncertainty is not None else {},
        "training": Markup(training_curve(run.history)) if run.history else "",
        "rounds": len(run.history),
        "duration": _duration(run.history),
        "clients": clients_section(run.partition, number) if run.partition is not None else {},
        "client_scores": client_scores_section(run.client_scores, number) if run.client_scores else {},
        "sets": sets_section(run.sets, number) if run.sets is not None else {},
        "tables": {caption: pairs for caption, pairs in run.tables.items() if pairs},
        "landscape": landscape_section(run.landscape, number) if run.landscape is not None else {},
        "examples": examples_section(run.inspection[METHOD]) if METHOD in run.inspection else {},
        "settings": _groups(run.settings),
        "environment": run.environment,
    }


def _comparison(runs: Sequence[RunReport]) -> dict[str, object]:
    """All runs beside one another: a block a score with methods as columns, and the settings in which they differ."""
    methods = list(dict.fromkeys(name for run in runs for name in run.scores))
    blocks = []
    for column in _COMPARED:
        rows = []
        for run in runs:
            texts = [column.text(run.scores[name]) if name in run.scores else "" for name in methods]
            best = _best(column, filter(None, texts)) if len(run.scores) > 1 else ""
            rows.append((run.title, [(text, text != "" and text == best) for text in texts]))
        blocks.append((column, rows))
    flat = [{name: text for pairs in _groups(run.settings).values() for name, text in pairs.items()} for run in runs]
    names = dict.fromkeys(name for settings in flat for name in settings)
    differing = [name for name in names if len({settings.get(name) for settings in flat}) > 1]
    both = [(run.scores[METHOD], run.scores[run.baseline]) for run in runs if {METHOD, run.baseline} <= set(run.scores)]
    better = sum(side(ours.nll, theirs.nll) == "lower" for ours, theirs in both)
    worse = sum(calibrated(ours, theirs) == "higher" for ours, theirs in both)
    baselines = " or ".join(dict.fromkeys(named(run.baseline) for run in runs))
    said = (
        f"{METHOD} has a lower negative log-likelihood than {baselines} in {better} of the {len(both)} runs that have "
        f"both, and is worse calibrated in {worse}."
    )
    return {
        "answer": said if both else f"No run compares {METHOD} with {baselines}.",
        "methods": methods,
        "blocks": blocks,
        "titles": [run.title for run in runs],
        "differing": {name: [settings.get(name, "") for settings in flat] for name in differing},
    }


def _groups(settings: Mapping[str, object]) -> dict[str, dict[str, str]]:
    """Settings as text by group; those without a group come first, under the empty name."""
    groups: dict[str, dict[str, str]] = {"": {}}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            groups[name] = {_words(str(key)): setting_text(inner) for key, inner in value.items()}
        else:
            groups[""][_words(name)] = setting_text(value)
    return {name: pairs for name, pairs in groups.items() if pairs}


def _words(name: str) -> str:
    return name.replace("_", " ")


def setting_text(value: object) -> str:
    """A setting's value for people."""
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    if isinstance(value, list | tuple):
        return ", ".join(map(setting_text, value)) or "none"
    return str(value)


def _best(column: _Column, texts: Iterable[str]) -> str:
    """The best of scores as they are printed, so that all that read alike are marked alike."""
    return (max if column.better == "higher" else min)(texts, key=float)


def _interval(value: Interval) -> str:
    return f"{value.estimate:+.4f} ({value.low:+.4f} to {value.high:+.4f})"


def _duration(history: Sequence[Mapping[str, object]]) -> str:
    """The seconds of all rounds in words; empty where a round does not tell them."""
    seconds = [entry.get("seconds") for entry in history]
    numbers = [value for value in seconds if isinstance(value, int | float)]
    if not numbers or len(numbers) < len(seconds):
        return ""
    total = sum(numbers)
    return f"{total:.3g} s" if total < 100 else f"{total / 60:.1f} min" if total < 6000 else f"{total / 3600:.1f} h"
