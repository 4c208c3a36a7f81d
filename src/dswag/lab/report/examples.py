"""What the page says of classes, and the examples that it shows as pictures."""

from dswag.evaluation.inspection import ClassScores, Inspection, Telling


def examples_section(inspection: Inspection) -> dict[str, object]:
    """A row a class, and two galleries: the most uncertain examples and the most confidently wrong."""
    return {
        "rows": {each.name: _cells(each) for each in inspection.classes},
        "galleries": {
            "Least certain": [_shown(example) for example in inspection.most_uncertain if example.picture],
            "Most confidently wrong": [_shown(example) for example in inspection.most_wrong if example.picture],
        },
    }


def _cells(scores: ClassScores) -> list[str]:
    shares = ("–" if share is None else f"{100 * share:.2f}" for share in (scores.recall, scores.precision))
    nll = "–" if scores.nll is None else f"{scores.nll:.4f}"
    return [f"{scores.num_examples:,}", *shares, nll, scores.mistaken_for or "–"]


def _shown(example: Telling) -> dict[str, str]:
    """The picture, what stands below it, and words for those who do not see it."""
    verdict = "correctly" if example.target == example.predicted else "wrongly"
    said = f"{example.target}, {verdict} predicted as {example.predicted} with probability {example.confidence:.2f}"
    return {
        "picture": example.picture,
        "caption": f"{example.target} → {example.predicted}",
        "probability": f"{example.confidence:.2f}",
        "words": f"Test image {example.index}: {said}",
    }
