"""Writes the tables of docs/phase-2.md from results/phase2.jsonl, which tools/measure_phase2.py measured.

A table between `<!-- sweep NAME -->` and `<!-- end -->` has a row for each setting of a sweep, and no column whose
values would all be equal. One after `<!-- methods NAME -->` has a row for each method, at that sweep's defaults.

    python tools/phase2_tables.py
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from dswag.config import PAPER
from dswag.lab.experiments.recipe import Recipe

ROOT = Path(__file__).parents[1]
RESULTS, DOCUMENT = ROOT / "results" / "phase2.jsonl", ROOT / "docs" / "phase-2.md"

STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 10: 2.262}
"""By number of seeds, the 97.5 % quantile of Student's distribution with one degree of freedom less."""

Record = Mapping[str, Any]
Row = Sequence[Record]
"""The records of one setting, one for each seed, in the order of the seeds."""

METHODS = ("phase-1 model", "an explorer", "mean model", "DSWAG", "ensemble")
"""The NLL of the others stands beside that of DSWAG where it depends on the setting."""


def main() -> None:
    """Brings the document up to date."""
    DOCUMENT.write_text(updated(DOCUMENT.read_text(encoding="utf-8"), read(RESULTS)), encoding="utf-8")


def read(path: Path) -> list[Record]:
    """The records of a file of results."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def updated(document: str, records: Sequence[Record]) -> str:
    """The document with its tables made anew.

    Raises:
        ValueError: a table of a sweep that was not measured.
    """

    def replacement(found: re.Match[str]) -> str:
        kind, sweep = found.groups()
        own = [record for record in records if record["sweep"] == sweep]
        if not own:
            raise ValueError(f"there are no results of sweep {sweep}: run tools/measure_phase2.py --sweeps {sweep}")
        made = table(own) if kind == "sweep" else methods_table(own)
        return f"<!-- {kind} {sweep} -->\n\n{made}\n\n<!-- end -->"

    return re.sub(r"<!-- (sweep|methods) ([\w-]+) -->.*?<!-- end -->", replacement, document, flags=re.DOTALL)


def table(records: Sequence[Record]) -> str:
    """One sweep's table."""
    rows, reference, varied = arranged(records)
    return markdown([cells(row, reference, varied) for row in rows])


def methods_table(records: Sequence[Record]) -> str:
    """The methods' scores at a sweep's defaults."""
    _, reference, _ = arranged(records)
    before = nll(reference, "phase-1 model")
    return markdown(
        [
            {
                "": method,
                **scores_of(reference, method),
                "NLL less phase 1's": "" if method == "phase-1 model" else change(nll(reference, method), before),
            }
            for method in METHODS
        ]
    )


def arranged(records: Sequence[Record]) -> tuple[list[Row], Row, list[str]]:
    """The rows of a sweep by their settings, the one with the defaults, and the settings in which rows differ."""
    seeds = sorted({record["seed"] for record in records})
    by_setting: dict[str, dict[int, Record]] = {}
    for record in records:
        by_setting.setdefault(json.dumps(record["settings"], sort_keys=True), {})[record["seed"]] = record
    rows: list[Row] = [[own[seed] for seed in seeds] for own in by_setting.values() if len(own) == len(seeds)]
    names = dict.fromkeys(name for row in rows for name in row[0]["settings"])
    varied = [name for name in names if len({value_of(row[0], name) for row in rows}) > 1]
    rows.sort(key=lambda row: [value_of(row[0], name) for name in varied])
    (reference,) = (row for row in rows if all(is_default(row[0], name) for name in varied))
    return rows, reference, varied


def markdown(lines: Sequence[Mapping[str, str]]) -> str:
    """A table of lines with the same titles, without the columns whose cells are all equal."""
    titles = [title for title in lines[0] if len({line[title] for line in lines}) > 1]
    shown = [titles, ["---"] * len(titles), *([line[title] for title in titles] for line in lines)]
    return "\n".join("| " + " | ".join(line) + " |" for line in shown)


def scores_of(row: Row, method: str) -> dict[str, str]:
    """A method's scores, mean and standard deviation over seeds."""
    found = [record["scores"][method] for record in row]
    return {
        "accuracy, %": spread([100 * scores["accuracy"] for scores in found], 2),
        "NLL": spread([scores["nll"] for scores in found], 4),
        "ECE": spread([scores["ece"] for scores in found], 4),
    }


def cells(row: Row, reference: Row, varied: Sequence[str]) -> dict[str, str]:
    """All that a row can show, by the columns' titles."""
    shown = {
        **{f"`{name}`": setting(row[0], name) for name in varied},
        **scores_of(row, "DSWAG"),
        "NLL less the default's": "" if row is reference else change(nll(row, "DSWAG"), nll(reference, "DSWAG")),
        **{f"NLL of {method}": f"{fmean(nll(row, method)):.4f}" for method in METHODS if method != "DSWAG"},
        "client epochs": str(row[0]["client_epochs"]),
        "MB up": f"{row[0]['megabytes_up']:.1f}",
    }
    if "samples" in varied:
        shown["seconds"] = f"{fmean(record['seconds'] for record in row):.2f}"
    return shown


def value_of(record: Record, name: str) -> Any:
    """A setting's value, also where it is the default."""
    default = {"columns": "last", "kind": "swag", "explorers": record["settings"].get("clients", Recipe.clients)}
    return record["settings"].get(name, default.get(name, PAPER.get(name, Recipe().flat().get(name))))


def is_default(record: Record, name: str) -> bool:
    """Whether a setting has its default value."""
    settings = {key: value for key, value in record["settings"].items() if key != name}
    return bool(value_of(record, name) == value_of({"settings": settings}, name))


def setting(record: Record, name: str) -> str:
    """A setting's value as it is shown; the default in bold."""
    value = value_of(record, name)
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return f"**{text}**" if is_default(record, name) else text


def nll(row: Row, method: str) -> list[float]:
    """The NLL of each seed."""
    return [record["scores"][method]["nll"] for record in row]


def spread(values: Sequence[float], digits: int) -> str:
    """Mean and standard deviation over seeds."""
    return f"{fmean(values):.{digits}f} ± {stdev(values):.{digits}f}"


def change(values: Sequence[float], reference: Sequence[float]) -> str:
    """The mean difference over seeds and its 95 % interval, paired; bold where the interval leaves out 0."""
    mean, half_width = paired(values, reference)
    text = f"{round(mean, 4) + 0.0:+.4f} ± {half_width:.4f}".replace("-", "−")
    return f"**{text}**" if abs(mean) > half_width else text


def paired(values: Sequence[float], reference: Sequence[float]) -> tuple[float, float]:
    """Mean of the differences, and half the width of its 95 % interval by Student's distribution."""
    differences = [value - other for value, other in zip(values, reference, strict=True)]
    return fmean(differences), STUDENT[len(differences)] * stdev(differences) / math.sqrt(len(differences))


if __name__ == "__main__":
    main()
