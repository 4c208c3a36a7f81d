"""What the page says of classes, and the examples that it shows as pictures."""

from collections.abc import Sequence

from dswag.evaluation.inspection import ClassScores, Inspection, Telling


def examples_section(inspection: Inspection) -> dict[str, object]:
    """A row a class, and two galleries: the most uncertain examples and the most confidently wrong."""
    return {
        "rows": {each.name: _cells(each) for each in inspection.classes},
        "galleries": {
            "Least certain": gallery(inspection.most_uncertain),
            "Most confidently wrong": gallery(inspection.most_wrong),
        },
    }


def gallery(examples: Sequence[Telling]) -> list[dict[str, str]]:
    """Those that have a picture, with their words."""
    return [_shown(example) for example in examples if example.picture]


def _cells(scores: ClassScores) -> list[str]:
    shares = ("–" if share is None else f"{100 * share:.2f}" for share in (scores.recall, scores.precision))
    nll = "–" if scores.nll is None else f"{scores.nll:.4f}"
    return [f"{scores.num_examples:,}", *shares, nll, scores.mistaken_for or "–"]


def _shown(example: Telling) -> dict[str, str]:
    """The picture, what stands below it, and words for those who do not see it."""
    verdict = "correctly" if example.target == example.predicted else "wrongly"
    said = f"predicted as {example.predicted} with probability {example.confidence:.2f}"
    foreign = not example.target
    return {
        "picture": example.picture,
        "caption": f"→ {example.predicted}" if foreign else f"{example.target} → {example.predicted}",
        "probability": f"{example.confidence:.2f}",
        "words": f"Foreign image {example.index}, {said}"
        if foreign
        else f"Test image {example.index}: {example.target}, {verdict} {said}",
    }
