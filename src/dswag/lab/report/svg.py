"""What all figures share: colors, settings of Matplotlib, and how a figure becomes SVG text."""

import hashlib
import html
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib
from matplotlib.figure import Figure

PALETTE = ("#2f7fd1", "#d2641a", "#2a9461", "#b05fc0", "#a5841f", "#d4508a", "#7f868f", "#9a6040")
"""Colors of lines, with a contrast of at least 3 to a white and to a near-black page."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK = "#010203"  # drawn with, then replaced by currentColor: lines and words take the color of the page's text
_COLORS = ":root{color:#1f2328}@media(prefers-color-scheme:dark){:root{color:#e6edf3}}"
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"


@contextmanager
def style(content: str) -> Iterator[None]:
    """Settings of our own whatever the user's are; identifiers inside the SVG follow from `content` alone."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "svg.fonttype": "none",
                "svg.hashsalt": hashlib.sha256(content.encode()).hexdigest(),
                "text.parse_math": False,
                "figure.constrained_layout.use": True,
                "figure.constrained_layout.h_pad": 0.08,
                "figure.constrained_layout.w_pad": 0.08,
                "figure.facecolor": "none",
                "axes.facecolor": "none",
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.grid": True,
                "axes.axisbelow": True,
                "grid.alpha": 0.15,
                "legend.frameon": False,
                "font.size": 9.5,
                **dict.fromkeys(("grid.color", "axes.edgecolor", "axes.labelcolor", "text.color"), INK),
                **dict.fromkeys(("xtick.color", "ytick.color"), INK),
            }
        )
        yield


def to_svg(figure: Figure, description: str) -> str:
    """The figure as an SVG element with a description for those who do not see it, the same bytes every time."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].rstrip()
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", svg, count=1, flags=re.DOTALL)  # would style the page
    svg = re.sub(r' id="[\w.]+_\d+"', "", svg)  # names of groups, which repeat from figure to figure
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", _FONT, svg).replace(f": {INK}", ": currentColor")
    attributes = f'role="img" aria-label="{html.escape(description)}" stroke-linejoin="round"'
    return svg.replace("<svg ", f"<svg {attributes} ", 1) + "\n"


def standing_alone(svg: str) -> str:
    """The SVG as a file that is shown inside a page: words and axes are light where the page is dark."""
    ends = svg.index(">", svg.index("<svg")) + 1
    return f"{svg[:ends]}<style>{_COLORS}</style>{svg[ends:]}"
