"""What the paper claims, what we ask beyond it, and what our results say of each: rows of docs/results.md."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from dswag.lab.report import skew
from dswag.lab.report.reproduced import Result
from dswag.lab.report.trends import against, along, flat, rounds_needed
from dswag.lab.report.verdicts import STANDARDS, Judge, Judgement

Results = Mapping[str, Sequence[Result]]
"""The results of each figure, by its name."""


@dataclass(frozen=True)
class Claim:
    """A sentence that results can be held against."""

    text: str
    place: str
    """Where the paper makes it; empty for what it does not ask."""
    figures: tuple[str, ...]
    """Of ours; the first that has run is judged."""
    judge: Judge
    dataset: str = "mnist"
    """On which it is made."""


@dataclass(frozen=True)
class Finding:
    """What results say of a claim."""

    claim: Claim
    figure: str
    """That was judged, or would be."""
    judgement: Judgement


@dataclass(frozen=True)
class Subject:
    """A model on a data set, and what its results say."""

    dataset: str
    model: str
    findings: Sequence[Finding]
    """Of every claim made on this data set with this model, and of the others that have run."""

    @property
    def name(self) -> str:
        """Such as "mnist, with the MLP"."""
        return f"{self.dataset}, with {model_name(self.model)}"

    @property
    def has_run(self) -> bool:
        """Whether there are results of any claim."""
        return any(found.judgement.outcome != "has not run" for found in self.findings)


def model_name(model: str) -> str:
    """In a sentence."""
    return {"mlp": "the MLP", "cnn": "the CNN", "vgg16": "VGG16"}.get(model, model)


def subjects(results: Mapping[str, Results]) -> Iterator[Subject]:
    """Every data set with the model that the paper's claims are about, also where nothing has run, and with others."""
    for dataset, of_figure in results.items():
        main = "vgg16" if dataset.startswith("cifar10") else "mlp"
        there = {run["config"]["model"] for runs in of_figure.values() for run in runs}
        for model in (main, *sorted(there - {main})):
            made = tuple(_findings(of_figure, dataset, model, main=model == main))
            if made:
                yield Subject(dataset, model, made)


def _findings(results: Results, dataset: str, model: str, *, main: bool) -> Iterator[Finding]:
    for claim in (*PAPER, *OURS):
        found = _judged(claim, results, dataset, model)
        if found.judgement.outcome != "has not run" or (main and claim.dataset == dataset.partition("-")[0]):
            yield found


def _judged(claim: Claim, results: Results, dataset: str, model: str) -> Finding:
    """From the first of its figures that has run far enough."""
    found = Finding(claim, claim.figures[0], Judgement("has not run"))
    for figure in claim.figures:
        runs = [run for run in results.get(figure, ()) if run["config"]["model"] == model]
        if runs:
            found = Finding(claim, figure, claim.judge(runs, STANDARDS[dataset]))
        if found.judgement.outcome != "has not run":
            break
    return found


def _ece(run: Result) -> float:
    return float(run["measured"]["dswag"]["ece_equal_mass"])


def _nll(run: Result) -> float:
    return float(run["measured"]["dswag"]["nll"])


def _final_accuracy(run: Result) -> float:
    return float(run["measured"]["rounds"][-1]["test_accuracy"])


def _overconfidence(run: Result) -> float:
    """Mean confidence − accuracy over the test examples."""
    curve = run["measured"]["dswag"]["band"]["curve"]
    gaps = zip(curve["count"], curve["confidence"], curve["accuracy"], strict=True)
    return float(sum(n * (confidence - accuracy) for n, confidence, accuracy in gaps) / sum(curve["count"]))


def _accuracy_at_50(run: Result) -> float:
    line = run["measured"]["directions"]["every element"]["accuracy"]
    return float(line[run["measured"]["at"].index(50)])


_GLOBAL, _LOCAL = "SWAG on the averaged models of further rounds", "SWAG on one worker that continues alone"

PAPER: Sequence[Claim] = (
    Claim(
        "With more workers, more rounds are needed for the same accuracy",
        "Section 6.3",
        ("fig5-left",),
        rounds_needed,
    ),
    Claim(
        "With more workers, training ends at a worse solution",
        "Figure 5, left",
        ("fig5-left",),
        along("test accuracy where phase 1 ends", "accuracy", -1, _final_accuracy),
    ),
    Claim(
        "More workers calibrate slightly better",
        "Figure 5, right",
        ("fig5-right",),
        along("ECE of dswag", "calibration", -1, _ece),
    ),
    Claim(
        "Two workers calibrate slightly better than one",
        "Figure 5, right (CIFAR-10)",
        ("fig5-right", "fig7", "table-cifar10"),
        along("ECE of dswag", "calibration", -1, _ece, workers=(1, 2)),
        dataset="cifar10",
    ),
    Claim(
        "With more workers, DSWAG is more confident than SWAG with one",
        "Section 6.3",
        ("fig5-right",),
        along("mean confidence − accuracy of dswag", "calibration", 1, _overconfidence),
    ),
    Claim(
        "Accuracy is flat up to 100 standard deviations from the mean",
        "Section 6.4",
        ("fig6",),
        flat,
    ),
    Claim(
        "With more workers, the optimum is less flat",
        "Section 6.4",
        ("fig6",),
        along("accuracy at 50 standard deviations", "accuracy", -1, _accuracy_at_50),
    ),
    Claim(
        "The NLL grows with the number of workers",
        "Figure 7, left (MNIST)",
        ("fig7",),
        along("test NLL of dswag", "NLL", 1, _nll),
    ),
    Claim(
        "The NLL falls slightly from one worker to two",
        "Figure 7, right (CIFAR-10)",
        ("fig7", "table-cifar10"),
        along("test NLL of dswag", "NLL", -1, _nll, workers=(1, 2)),
        dataset="cifar10",
    ),
    *(
        Claim(f"DSWAG {better} than {baseline}", "Section 7", ("fig7",), against(method, name, kind, score))
        for method, baseline in (("swag-global", _GLOBAL), ("swag-local", _LOCAL))
        for better, name, kind, score in (
            ("is better calibrated", "ECE", "calibration", "ece_equal_mass"),
            ("has a lower NLL", "NLL", "NLL", "nll"),
        )
    ),
)
"""The paper's, in its order."""

OURS: Sequence[Claim] = (
    Claim("Plain DSWAG does not hurt, even if clients differ", "", ("fig8",), skew.hurts),
    Claim("Where it hurts, a shorter phase 2 hurts less", "", ("fig8",), skew.shorter_helps),
    *(
        Claim(f"Where it hurts, {other} does not", "", ("fig8",), skew.undone_by(method))
        for method, other in (
            ("dswag-calibrated", "DSWAG with calibrated scales"),
            ("dswag-mean", "the mean of the same snapshots"),
            ("ensemble", "the ensemble of the same snapshots"),
        )
    ),
)
"""Of clients whose data differ: the paper's experiments have equal ones."""
