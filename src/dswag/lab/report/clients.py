"""What the page says of the examples that each client has."""

import numpy as np
from markupsafe import Markup

from dswag.data.class_counts import ClassCounts
from dswag.lab.report.plots import MOST_ROWS, examples_of_clients


def clients_section(table: ClassCounts, number: int) -> dict[str, object]:
    """The picture, the spread over clients, and all counts up to `MOST_ROWS` clients.

    Args:
        table: what the run saved.
        number: of the run on the page.
    """
    counts = np.array(table.counts)
    sizes = counts.sum(1)
    measures = {
        "Examples": ("{:,.0f}", sizes),
        "Classes": ("{:.0f}", (counts > 0).sum(1)),
        "Share of its most frequent class": ("{:.1f} %", 100 * counts.max(1) / sizes),
    }
    return {
        "figure": Markup(examples_of_clients(table, number)),
        "num_clients": len(counts),
        "num_examples": int(counts.sum()),
        "spread": {
            name: [text.format(value) for value in (values.min(), np.median(values), values.max())]
            for name, (text, values) in measures.items()
        },
        "class_names": table.class_names,
        "rows": [(*row, sum(row)) for row in table.counts] if len(counts) <= MOST_ROWS else [],
    }
