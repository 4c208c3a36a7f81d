"""Figures as SVG text: the reliability diagram and the course of phase 1 (Figure 5)."""

import hashlib
import html
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dswag.evaluation.calibration import Reliability

PALETTE = ("#2f7fd1", "#d2641a", "#2a9461", "#b05fc0", "#a5841f", "#d4508a")
"""Colors of lines, with a contrast of at least 3 to a white and to a near-black page."""

_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_INK = "#010203"  # drawn with, then replaced by currentColor: lines and words take the color of the page's text
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
_NEAREST_TO_ONE = 1e-4


def reliability_diagram(curves: Mapping[str, Reliability]) -> str:
    """SVG of confidence - accuracy against confidence, one line per named curve.

    The horizontal axis is log(1 - confidence), as in Maddox et al. 2019, which gives every step from 0.9 to 0.99 to
    0.999 the same width. Bins above 0.9999 are drawn at 0.9999, whose tick then says "at least".

    Raises:
        ValueError: no curve.
    """
    if not curves:
        raise ValueError("a reliability diagram needs at least one curve, got none")
    with _style(f"reliability {dict(curves)}"):
        figure = Figure(figsize=(4.8, 3.7))
        axes = figure.subplots()
        axes.axhline(0, color=_INK, linewidth=1, zorder=1)
        lines = [
            axes.plot(
                _spread(curve.confidence),
                curve.gap,
                color=PALETTE[index % len(PALETTE)],
                marker=_MARKERS[index % len(_MARKERS)],
                markersize=4,
                zorder=2,
            )[0]
            for index, curve in enumerate(curves.values())
        ]
        axes.set_xlabel("confidence")
        axes.set_ylabel("confidence − accuracy\n(above 0: overconfident)")
        _confidence_ticks(axes, most=max(max(curve.confidence) for curve in curves.values()))
        figure.legend(lines, list(curves), loc="outside lower center", ncols=2)
        described = " ".join(_described(name, curve) for name, curve in curves.items())
        return _svg(figure, f"Reliability diagram: confidence minus accuracy against confidence. {described}")


def training_curve(history: Sequence[Mapping[str, object]]) -> str:
    """SVG of loss, and of test accuracy in the rounds that have one, against the global round.

    Each round is a mapping with `round`, `loss` and, where it was measured, `test_accuracy` in [0, 1].

    Raises:
        ValueError: no round, or a round without a number where one is needed.
    """
    if not history:
        raise ValueError("a training curve needs at least one round, got none")
    measured = [entry for entry in history if entry.get("test_accuracy") is not None]
    panels = [("loss", "training loss", history), ("test_accuracy", "test accuracy", measured)][: 2 if measured else 1]
    with _style(f"training {history}"):
        figure = Figure(figsize=(4.8, 3.7))
        column = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
        sentences = []
        for axes, (key, name, entries) in zip(column, panels, strict=True):
            rounds = [_number(entry, "round") for entry in entries]
            values = [_number(entry, key) for entry in entries]
            axes.plot(rounds, values, color=PALETTE[0], marker="o" if len(rounds) <= 40 else "", markersize=3.5)
            axes.set_ylabel(name)
            sentences.append(f"{name} {values[0]:.4g} in round {rounds[0]:g}, {values[-1]:.4g} in round {rounds[-1]:g}")
        column[-1].set_xlabel("global round")
        column[-1].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        figure.align_ylabels(column)
        return _svg(figure, f"Phase 1 against the global round: {'; '.join(sentences)}.")


@contextmanager
def _style(content: str) -> Iterator[None]:
    """Settings of our own whatever the user's are; identifiers inside the SVG follow from `content` alone."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "svg.fonttype": "none",
                "svg.hashsalt": hashlib.sha256(content.encode()).hexdigest(),
                "text.parse_math": False,
                "figure.constrained_layout.use": True,
                "figure.facecolor": "none",
                "axes.facecolor": "none",
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.grid": True,
                "axes.axisbelow": True,
                "grid.alpha": 0.15,
                "legend.frameon": False,
                "font.size": 9.5,
                **dict.fromkeys(("grid.color", "axes.edgecolor", "axes.labelcolor", "text.color"), _INK),
                **dict.fromkeys(("xtick.color", "ytick.color"), _INK),
            }
        )
        yield


def _spread(confidence: Sequence[float]) -> Float[np.ndarray, "bins"]:
    """Number of nines: -log10(1 - confidence), up to `_NEAREST_TO_ONE`."""
    return np.asarray(-np.log10(np.clip(1 - np.asarray(confidence), _NEAREST_TO_ONE, 1)))


def _confidence_ticks(axes: Axes, most: float) -> None:
    left, right = axes.get_xlim()
    within_two_nines = (0.0, 0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
    ticks = within_two_nines if right < 2.2 else (0.0, 0.5, 0.9, 0.99, 0.999, 1 - _NEAREST_TO_ONE)
    axes.set_xticks(_spread(ticks), [f"{'≥ ' * (tick == ticks[-1] and most > tick)}{tick:g}" for tick in ticks])
    axes.set_xlim(max(left, -0.05), right)


def _described(name: str, curve: Reliability) -> str:
    gap, confidence = max(zip(curve.gap, curve.confidence, strict=True), key=lambda bin_: abs(bin_[0]))
    return f"{name}: {len(curve.gap)} {curve.binning} bins, largest gap {gap:+.3f} at confidence {confidence:.3f}."


def _number(entry: Mapping[str, object], key: str) -> float:
    value = entry.get(key)
    if not isinstance(value, int | float):
        raise ValueError(f"every round of a history must have a number as {key!r}, got {value!r} in {dict(entry)}")
    return float(value)


def _svg(figure: Figure, description: str) -> str:
    """The figure as an SVG element with a description for those who do not see it, the same bytes every time."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].rstrip()
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", svg, count=1, flags=re.DOTALL)  # would style the page
    svg = re.sub(r' id="[\w.]+_\d+"', "", svg)  # names of groups, which repeat from figure to figure
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", _FONT, svg).replace(f": {_INK}", ": currentColor")
    attributes = f'role="img" aria-label="{html.escape(description)}" stroke-linejoin="round"'
    return svg.replace("<svg ", f"<svg {attributes} ", 1) + "\n"
