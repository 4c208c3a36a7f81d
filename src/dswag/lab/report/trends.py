"""Judges of claims about the number of workers, and about one method against another."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from dswag.lab.report.over_seeds import direction, with_error
from dswag.lab.report.reproduced import Result, by_value, spread
from dswag.lab.report.verdicts import Judge, Judgement, Standard, certainty, listed

ByWorkers = Mapping[int, Sequence[float]]


def rounds_needed(runs: Sequence[Result], standard: Standard) -> Judgement:
    """Whether more workers need more rounds for the same accuracy."""

    def needed(run: Result) -> float:
        reached = [(each["test_accuracy"] or 0.0) >= standard.accuracy for each in run["measured"]["rounds"]]
        return float(reached.index(True) + 1) if any(reached) else math.inf

    found = _by_workers(runs, needed)
    told = "; ".join(
        f"W = {clients}: {with_error(values, 1) if max(values) < math.inf else 'not within the rounds'}"
        for clients, values in found.items()
    )
    finite = {clients: [min(value, 1e3) for value in values] for clients, values in found.items()}
    numbers = f"rounds to a test accuracy of {standard.accuracy:.0%}: {told}"
    return _trend(finite, 1, standard.least("rounds"), numbers)


def along(
    name: str, kind: str, expected: int, value: Callable[[Result], float], *, workers: Sequence[int] | None = None
) -> Judge:
    """Whether a number rises (1) or falls (-1) from the fewest workers to the most; among some, where they are given.

    Args:
        name: of the number, in words.
        kind: of the least difference that counts.
        expected: 1 or -1.
        value: the number of a run.
        workers: numbers of workers that count; all if None.
    """

    def judge(runs: Sequence[Result], standard: Standard) -> Judgement:
        chosen = [run for run in runs if workers is None or run["config"]["clients"] in workers]
        found = _by_workers(chosen, value)
        return _trend(found, expected, standard.least(kind), f"{name}: {_told(found)}")

    return judge


def flat(runs: Sequence[Result], standard: Standard) -> Judgement:
    """Whether hardly any accuracy is lost up to the largest distance."""

    def lost(run: Result) -> float:
        line = run["measured"]["directions"]["every element"]["accuracy"]
        return float(line[0] - line[-1])

    found = _by_workers(runs, lost)
    largest = max(float(spread(values)[0]) for values in found.values())
    numbers = f"accuracy lost at {runs[0]['measured']['at'][-1]} standard deviations: {_told(found)}"
    return Judgement("holds" if largest < 0.02 else "does not hold", "", numbers, certainty(found.values()))


def against(baseline: str, name: str, kind: str, score: str) -> Judge:
    """Whether DSWAG has a lower score than another method, wherever there is more than one worker."""

    def score_of(method: str) -> Callable[[Result], float]:
        return lambda run: float(run["measured"][method][score])

    def judge(runs: Sequence[Result], standard: Standard) -> Judgement:
        both = [run for run in runs if {"dswag", baseline} <= set(run["measured"])]
        ours, theirs = _by_workers(both, score_of("dswag")), _by_workers(both, score_of(baseline))
        told = "; ".join(f"W = {w}: {with_error(ours[w])} and {with_error(theirs[w])}" for w in ours)
        numbers = f"{name} of dswag and {baseline}: {told}"
        gains = _by_workers(both, lambda run: score_of(baseline)(run) - score_of("dswag")(run))  # paired by run
        sides = {w: direction([0.0], gains[w], standard.least(kind)) for w in gains if w > 1}
        if not sides:
            return Judgement("has not run", " with more than one worker", numbers)
        return replace(_weighed(sides), numbers=numbers, certainty=certainty(ours[w] for w in sides))

    return judge


def _weighed(sides: Mapping[int, int]) -> Judgement:
    """From 1 (better), -1 (worse) or 0 for each number of workers."""
    better, worse = ([w for w, side in sides.items() if side == wanted] for wanted in (1, -1))
    elsewhere = "; no difference elsewhere" if len(better) + len(worse) < len(sides) else ""
    if better and worse:
        where = f": better for W = {listed(better)}, worse for W = {listed(worse)}"
        return Judgement("holds in part", where + elsewhere)
    if better:
        return Judgement("holds in part", f": for W = {listed(better)}{elsewhere}") if elsewhere else Judgement("holds")
    if worse:
        return Judgement("does not hold", f": worse for W = {listed(worse)}{elsewhere}")
    return Judgement("no difference")


def _trend(found: ByWorkers, expected: int, least: float, numbers: str) -> Judgement:
    if len(found) < 2:
        return Judgement("has not run", " with enough numbers of workers", numbers)
    fewest, most = min(found), max(found)
    side = direction(found[fewest], found[most], least)
    seeds = certainty((found[fewest], found[most]))
    if side == 0:
        return Judgement("no difference", f" between W = {fewest} and {most}", numbers, seeds)
    if side == expected:
        return Judgement("holds", "", numbers, seeds)
    return Judgement("does not hold", ": the other way round", numbers, seeds)


def _by_workers(runs: Sequence[Result], value: Callable[[Result], float]) -> dict[int, list[float]]:
    groups = by_value(runs, "clients")
    return {clients: [value(run) for run in group] for (clients,), group in sorted(groups.items())}


def _told(found: ByWorkers, digits: int = 4) -> str:
    return "; ".join(f"W = {clients}: {with_error(values, digits)}" for clients, values in found.items())
