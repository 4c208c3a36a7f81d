"""Judges of clients that differ: from which skew on DSWAG hurts, and what helps."""

from collections.abc import Mapping, Sequence

from dswag.lab.report.over_seeds import direction
from dswag.lab.report.reproduced import Result, by_skew, by_value, partition_label, spread
from dswag.lab.report.verdicts import Judge, Judgement, Standard, certainty, listed

Gains = Mapping[tuple[int, int], Mapping[str, Sequence[float]]]
"""NLL less that of phase 1 of the same run, a value a seed: by workers and epochs alone, then by partition."""


def hurts(runs: Sequence[Result], standard: Standard) -> Judgement:
    """Whether draws of DSWAG are nowhere worse than the model that phase 1 left."""
    if _all_alike(runs):
        return _ALIKE
    plain = _gains(runs, "dswag")
    harmed = _harmed(plain, standard)
    told = []
    for setting, partitions in plain.items():
        here = {partition: _mean(partitions[partition]) for cell, partition in harmed if cell == setting}
        worst = max(here, key=here.__getitem__, default="")
        most = f", by up to {here[worst]:.4f} ({worst})" if here else ""
        told.append(f"{_named(setting)}: {_where([*here], [*partitions])}{most}")
    numbers = f"where the NLL is higher than that of phase 1 by more than chance: {'; '.join(told)}"
    seeds = certainty(values for partitions in plain.values() for values in partitions.values())
    everywhere = list(by_skew(runs))
    if not harmed:
        return Judgement("holds", f" up to {everywhere[-1]}", numbers, seeds)
    somewhere = [partition for partition in everywhere if any(partition == hurt for _, hurt in harmed)]
    return Judgement("does not hold", f" {_where(somewhere, everywhere)}", numbers, seeds)


def undone_by(method: str) -> Judge:
    """Whether another use of the same snapshots does no harm where DSWAG does.

    No harm is a mean that is not above what counts: that few seeds cannot show a harm is no sign that there is none.
    """

    def judge(runs: Sequence[Result], standard: Standard) -> Judgement:
        if _all_alike(runs):
            return _ALIKE
        plain, other = _gains(runs, "dswag"), _gains(runs, method)
        harmed = _harmed(plain, standard)
        if not harmed:
            return Judgement("no difference", ": there is no harm to undo")
        told = []
        for setting in dict.fromkeys(setting for setting, _ in harmed):
            worst = max((p for s, p in harmed if s == setting), key=lambda p: _mean(plain[setting][p]))
            pair = (_mean(gains[setting][worst]) for gains in (plain, other))
            told.append(f"{_named(setting)}, {worst}: {' and '.join(f'{value:+.4f}' for value in pair)}")
        numbers = f"NLL less that of phase 1, of dswag and {method}: {'; '.join(told)}"
        least, seeds = standard.least("NLL"), certainty(plain[s][p] for s, p in harmed)
        changes = [[b - a for a, b in zip(plain[s][p], other[s][p], strict=True)] for s, p in harmed]  # paired by run
        less = sum(direction([0.0], change, least) < 0 for change in changes)
        left = sum(_mean(other[s][p]) > least for s, p in harmed)
        if not left:
            return Judgement("holds", "", numbers, seeds)
        if left < len(harmed):
            detail = f": hurts in {left} of the {len(harmed)} settings in which dswag does"
        else:
            detail = f": hurts wherever dswag does{f', but less in {less} of {len(harmed)} settings' if less else ''}"
        return Judgement("holds in part" if left < len(harmed) or less else "does not hold", detail, numbers, seeds)

    return judge


def shorter_helps(runs: Sequence[Result], standard: Standard) -> Judgement:
    """Whether the harm is less where phase 2 is shorter, with as many workers and the same partition."""
    plain = _gains(runs, "dswag")
    lengths = sorted({epochs for _, epochs in plain})
    if _all_alike(runs):
        return _ALIKE
    if len(lengths) < 2:
        return Judgement("has not run", " with several lengths of phase 2")
    pairs = dict.fromkeys((clients, partition) for (clients, _), partition in _harmed(plain, standard))
    courses: dict[tuple[int, str], dict[int, Sequence[float]]] = {}
    for clients, partition in pairs:
        found = {n: plain[clients, n][partition] for n in lengths if partition in plain.get((clients, n), {})}
        if len(found) > 1:
            courses[clients, partition] = found
    if not pairs:
        return Judgement("no difference", ": there is no harm to lessen")
    if not courses:
        return Judgement("has not run", " with several lengths of phase 2 where it hurts")
    growths = [_growth(runs, *cell, min(course), max(course)) for cell, course in courses.items()]
    sides = [direction([0.0], growth, standard.least("NLL")) for growth in growths if growth]
    told = []
    for clients in dict.fromkeys(clients for clients, _ in courses):
        partition, course = max(
            ((partition, course) for (w, partition), course in courses.items() if w == clients),
            key=lambda found: max(map(_mean, found[1].values())),
        )
        means = [f"{_mean(gains):+.4f} after {_epochs(number)}" for number, gains in course.items()]
        told.append(f"W = {clients}, {partition}: {listed(means)}")
    numbers = f"NLL of dswag less that of phase 1: {'; '.join(told)}"
    seeds, better = certainty(gains for course in courses.values() for gains in course.values()), sides.count(1)
    if better == len(sides):
        return Judgement("holds", "", numbers, seeds)
    if better:
        return Judgement("holds in part", f": in {better} of {len(sides)} settings", numbers, seeds)
    return Judgement("does not hold" if -1 in sides else "no difference", "", numbers, seeds)


def _growth(runs: Sequence[Result], clients: int, partition: str, shortest: int, longest: int) -> list[float]:
    """How much more DSWAG harms after the longest phase 2 than after the shortest, by seed: phase 1 is the same."""
    harm: dict[int, dict[int, float]] = {shortest: {}, longest: {}}
    for run in runs:
        config = run["config"]
        if (config["clients"], partition_label(run)) == (clients, partition) and config["explore_epochs"] in harm:
            harm[config["explore_epochs"]][config["seed"]] = _gain(run, "dswag")
    return [more - harm[shortest][seed] for seed, more in harm[longest].items() if seed in harm[shortest]]


_ALIKE = Judgement("has not run", " where clients differ")


def _all_alike(runs: Sequence[Result]) -> bool:
    return all(run["config"]["partition"] == "iid" for run in runs)


def _gains(runs: Sequence[Result], method: str) -> Gains:
    """From the fewest workers and epochs to the most, and from the least skew to the most."""
    found = {}
    for setting, group in sorted(by_value(runs, "clients", "explore_epochs").items()):
        found[setting] = {
            partition: [_gain(run, method) for run in of_partition]
            for partition, of_partition in by_skew(group).items()
        }
    return found


def _gain(run: Result, method: str) -> float:
    nll: float = run["measured"][method]["nll"] - run["measured"]["phase-1"]["nll"]
    return nll


def _harmed(gains: Gains, standard: Standard) -> list[tuple[tuple[int, int], str]]:
    """The settings and partitions whose NLL is higher than that of phase 1 by more than chance."""
    return [
        (setting, partition)
        for setting, partitions in gains.items()
        for partition, values in partitions.items()
        if direction([0.0], values, standard.least("NLL")) > 0
    ]


def _where(some: Sequence[str], every: Sequence[str]) -> str:
    """Which partitions, of those in the order of their skew."""
    if not some:
        return "nowhere"
    if len(some) == len(every):
        return "everywhere" if len(every) > 1 else f"for {some[0]}"
    if len(some) > 1 and list(some) == list(every[-len(some) :]):
        return f"from {some[0]} on"
    return f"for {listed(some)}"


def _named(setting: tuple[int, int]) -> str:
    return f"W = {setting[0]}, {_epochs(setting[1])} alone"


def _epochs(number: int) -> str:
    return f"{number} epoch{'' if number == 1 else 's'}"


def _mean(values: Sequence[float]) -> float:
    return float(spread(values)[0])
