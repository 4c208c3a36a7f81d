"""What the paper claims, and what our results say of each claim: rows of docs/results.md."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dswag.report.reproduced import Result, by_value, partition_label, spread

Results = Mapping[str, Sequence[Result]]
"""The results of each figure, by its name."""

NOT_RUN = "has not run"

LEAST = {"rounds": 1.0, "accuracy": 0.003, "NLL": 0.003, "calibration": 0.002}
"""The least difference that counts, about two standard errors over 10,000 test examples: seeds share the test set."""


@dataclass(frozen=True)
class Standard:
    """What differences and accuracies on a data set are held against."""

    test_examples: int
    accuracy: float
    """One that training reaches with any number of workers."""

    def least(self, kind: str) -> float:
        """The least difference that counts."""
        return LEAST[kind] * (1.0 if kind == "rounds" else math.sqrt(10_000 / self.test_examples))


STANDARDS = {"mnist": Standard(10_000, 0.98), "mnist5k": Standard(1000, 0.88)}

Judge = Callable[[Sequence[Result], Standard], tuple[str, str]]
"""From the runs of the MLP to numbers in words, and a verdict."""


@dataclass(frozen=True)
class Finding:
    """What results say of a claim."""

    claim: str
    place: str
    """Where the paper makes it."""
    figure: str
    """Of ours."""
    numbers: str
    verdict: str


def findings(results: Results, standard: Standard) -> list[Finding]:
    """One for each claim, also where nothing has run yet."""
    rows = []
    for claim, place, figure, judge in CLAIMS:
        runs = [run for run in results.get(figure, ()) if run["config"]["model"] == "mlp"]
        numbers, verdict = judge(runs, standard) if runs else ("", NOT_RUN)
        rows.append(Finding(claim, place, figure, numbers, verdict))
    return rows


def with_error(values: Sequence[float], digits: int = 4) -> str:
    """Mean ± standard deviation over seeds; without the latter where there is one seed."""
    mean, deviation = (float(value) for value in spread(values))
    return f"{mean:.{digits}f}" + (f" ± {deviation:.{digits}f}" if len(values) > 1 else "")


def direction(first: Sequence[float], second: Sequence[float], least: float) -> int:
    """1 where the second values are higher, -1 where lower, 0 where they differ by less than chance may do.

    Chance is two standard errors of the difference over seeds, or `least` where that is more or a side has one seed.
    """
    (mean, deviation), (other, other_deviation) = (tuple(map(float, spread(each))) for each in (first, second))
    error = math.sqrt(deviation**2 / len(first) + other_deviation**2 / len(second))
    return 0 if abs(other - mean) <= max(2 * error, least) else int(math.copysign(1, other - mean))


def _by_workers(runs: Sequence[Result], value: Callable[[Result], float]) -> dict[int, list[float]]:
    groups = by_value(runs, "clients")
    return {clients: [value(run) for run in group] for (clients,), group in sorted(groups.items())}


def _told(by_workers: Mapping[int, Sequence[float]], digits: int = 4) -> str:
    return "; ".join(f"W = {clients}: {with_error(values, digits)}" for clients, values in by_workers.items())


def _trend(by_workers: Mapping[int, Sequence[float]], expected: int, least: float) -> str:
    """Whether the values rise (1) or fall (-1) from the fewest workers to the most."""
    if len(by_workers) < 2:
        return "too few numbers of workers have run"
    clients = list(by_workers)
    fewest, most = by_workers[clients[0]], by_workers[clients[-1]]
    found = direction(fewest, most, least)
    seeds = min(len(fewest), len(most))
    certainty = "" if seeds > 1 else " (one seed)"
    if found == 0:
        return f"no difference between W = {clients[0]} and {clients[-1]}{certainty}"
    return ("holds" if found == expected else "does not hold: the other way round") + certainty


def _rounds_needed(runs: Sequence[Result], standard: Standard) -> tuple[str, str]:
    def needed(run: Result) -> float:
        reached = [r["test_accuracy"] >= standard.accuracy for r in run["measured"]["rounds"]]
        return float(reached.index(True) + 1) if any(reached) else math.inf

    found = _by_workers(runs, needed)
    told = "; ".join(
        f"W = {clients}: {with_error(values, 1) if max(values) < math.inf else 'not within the rounds'}"
        for clients, values in found.items()
    )
    finite = {clients: [min(value, 1e3) for value in values] for clients, values in found.items()}
    return f"rounds to a test accuracy of {standard.accuracy:.0%}: {told}", _trend(finite, 1, standard.least("rounds"))


def _final_accuracy(runs: Sequence[Result], standard: Standard) -> tuple[str, str]:
    found = _by_workers(runs, lambda run: run["measured"]["rounds"][-1]["test_accuracy"])
    return f"test accuracy where phase 1 ends: {_told(found)}", _trend(found, -1, standard.least("accuracy"))


def _calibration(runs: Sequence[Result], standard: Standard) -> tuple[str, str]:
    found = _by_workers(runs, lambda run: run["measured"]["dswag"]["ece_equal_mass"])
    return f"ECE of DSWAG: {_told(found)}", _trend(found, -1, standard.least("calibration"))


def _confidence(runs: Sequence[Result], standard: Standard) -> tuple[str, str]:
    def gap(run: Result) -> float:
        curve = run["measured"]["dswag"]["band"]["curve"]
        total = sum(curve["count"])
        return float(
            sum(n * (c - a) for n, c, a in zip(curve["count"], curve["confidence"], curve["accuracy"], strict=True))
            / total
        )

    found = _by_workers(runs, gap)
    return f"mean confidence − accuracy of DSWAG: {_told(found)}", _trend(found, 1, standard.least("calibration"))


def _flatness(runs: Sequence[Result], standard: Standard) -> tuple[str, str]:
    def lost(run: Result) -> float:
        line = run["measured"]["directions"]["every element"]["accuracy"]
        return float(line[0] - line[-1])

    found = _by_workers(runs, lost)
    largest = max(float(spread(values)[0]) for values in found.values())
    verdict = "holds" if largest < 0.02 else "does not hold"
    return f"accuracy lost at 100 standard deviations: {_told(found)}", verdict


def _flatness_trend(runs: Sequence[Result], standard: Standard) -> tuple[str, str]:
    def at(run: Result) -> float:
        line = run["measured"]["directions"]["every element"]["accuracy"]
        return float(line[run["measured"]["at"].index(50)])

    found = _by_workers(runs, at)
    return f"accuracy at 50 standard deviations: {_told(found)}", _trend(found, -1, standard.least("accuracy"))


def _likelihood(runs: Sequence[Result], standard: Standard) -> tuple[str, str]:
    found = _by_workers(runs, lambda run: run["measured"]["dswag"]["nll"])
    return f"test NLL of DSWAG: {_told(found)}", _trend(found, 1, standard.least("NLL"))


def _against(baseline: str, score: str) -> Judge:
    name, kind = {"nll": ("NLL", "NLL"), "ece_equal_mass": ("ECE", "calibration")}[score]

    def judge(runs: Sequence[Result], standard: Standard) -> tuple[str, str]:
        def scores_of(method: str) -> dict[int, list[float]]:
            return _by_workers(runs, lambda run: run["measured"][method][score])

        found = {method: scores_of(method) for method in ("dswag", baseline)}
        sides = {
            clients: direction(values, found[baseline][clients], standard.least(kind))
            for clients, values in found["dswag"].items()
            if clients > 1
        }
        better = [clients for clients, side in sides.items() if side > 0]
        worse = [clients for clients, side in sides.items() if side < 0]
        verdict = f"better for W in {better}, worse for W in {worse}" if better and worse else ""
        verdict = verdict or ("holds" if better else "does not hold" if worse else "no difference")
        if verdict == "holds" and len(better) < len(sides):
            verdict = f"holds for W in {better}, no difference elsewhere"
        if min(len(values) for values in found["dswag"].values()) == 1:
            verdict += " (one seed in part)"
        return f"{name}, DSWAG: {_told(found['dswag'])}. {baseline}: {_told(found[baseline])}", verdict

    return judge


def _skewed(runs: Sequence[Result], standard: Standard) -> tuple[str, str]:
    """NLL less that of θ_T, over all numbers of workers and lengths of phase 2, for each partition."""
    labeled = [{**run, "case": {**run["case"], "skew": partition_label(run)}} for run in runs]
    told, hurt = [], []
    for (skew,), group in by_value(labeled, "skew").items():
        gains = {
            method: [run["measured"][method]["nll"] - run["measured"]["phase-1"]["nll"] for run in group]
            for method in ("dswag", "dswag-calibrated")
        }
        if direction([0.0], gains["dswag"], standard.least("NLL")) > 0:
            hurt.append(skew)
        means = {method: float(spread(values)[0]) for method, values in gains.items()}
        told.append(f"{skew}: {means['dswag']:+.4f}, calibrated {means['dswag-calibrated']:+.4f}")
    verdict = f"does not hold for {', '.join(hurt)}" if hurt else "holds"
    return f"NLL less that of phase 1. {'; '.join(told)}", verdict


CLAIMS: Sequence[tuple[str, str, str, Judge]] = (
    ("With more workers, more rounds are needed for the same accuracy", "Section 6.3", "fig5-left", _rounds_needed),
    ("With more workers, training ends at a worse solution", "Figure 5, left", "fig5-left", _final_accuracy),
    ("More workers calibrate slightly better", "Figure 5, right", "fig5-right", _calibration),
    ("DSWAG is more confident than SWAG with one worker", "Section 6.3", "fig5-right", _confidence),
    ("Accuracy is flat up to 100 standard deviations from the mean", "Section 6.4", "fig6", _flatness),
    ("With more workers, the optimum is less flat", "Section 6.4", "fig6", _flatness_trend),
    ("On MNIST the NLL grows with the number of workers", "Figure 7, left", "fig7", _likelihood),
    (
        "DSWAG is better calibrated than SWAG after distributed training (moments of the averaged models)",
        "Section 7",
        "fig7",
        _against("swag-global", "ece_equal_mass"),
    ),
    ("The same, by NLL", "Section 7", "fig7", _against("swag-global", "nll")),
    (
        "DSWAG is better calibrated than SWAG after distributed training (one worker goes on alone)",
        "Section 7",
        "fig7",
        _against("swag-local", "ece_equal_mass"),
    ),
    ("The same, by NLL", "Section 7", "fig7", _against("swag-local", "nll")),
    ("DSWAG does not hurt, also where clients differ", "IID data only", "fig8", _skewed),
)
"""(claim, place, our figure, what judges it from the runs of the MLP)."""
