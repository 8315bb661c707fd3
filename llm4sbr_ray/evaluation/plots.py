"""Plots as SVG markup that takes its colours and its font from the page, so that it follows dark mode."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Stand-ins that matplotlib draws with; `_markup` puts the page's CSS variables in their place.
INK = "#010203"
GRID = "#010204"
SERIES = tuple(f"#0102{n:02x}" for n in range(16, 22))
DASHES = ("-", "--", ":", "-.")
# Never colour alone; one more than there are colours, so that both together differ for many models.
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

Points = Sequence[tuple[float | str, float]]


@dataclass
class Line:
    """One line of a plot; lines of one `series` share colour and marker, the first of them is named."""

    series: int
    label: str
    x: Sequence[float]
    y: Sequence[float]
    dashed: int = 0  # which dash pattern; 0 is solid


def line_plot(lines: Sequence[Line], x_label: str, y_label: str, name: str, ticks: Sequence[str] | None = None) -> str:
    """A line plot.

    Parameters
    ----------
    lines
        What to draw.
    x_label, y_label
        Axis titles.
    name
        Unique on the page: the prefix of all ids in the markup.
    ticks
        Names of x = 0, 1, ...; None for a numeric axis.

    Returns
    -------
    str
        An <svg> element.
    """
    with _drawing(name):
        figure, axes = _empty(x_label, y_label)
        named: set[tuple[int, int]] = set()
        for line in lines:
            first = (line.series, line.dashed) not in named
            named.add((line.series, line.dashed))
            axes.plot(
                line.x,
                line.y,
                color=SERIES[line.series % len(SERIES)],
                linestyle=DASHES[line.dashed],
                marker=MARKERS[line.series % len(MARKERS)],
                markersize=4,
                linewidth=1.6,
                label=line.label if first else None,
            )
        if ticks is None:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        else:
            axes.set_xticks(range(len(ticks)), ticks, fontsize=9)
        return _finish(figure, name)


def point_plot(points: Points, best: int | None, x_label: str, y_label: str, name: str, log: bool = False) -> str:
    """A scatter plot that marks one point.

    Parameters
    ----------
    points
        Pairs (x, y); x may be texts, which then stand along the axis as they come.
    best
        Which point to mark.
    x_label, y_label, name
        As in `line_plot`.
    log
        Whether x is logarithmic.

    Returns
    -------
    str
        An <svg> element.
    """
    with _drawing(name):
        figure, axes = _empty(x_label, y_label)
        xs, ys = [x for x, _ in points], [y for _, y in points]
        axes.plot(xs, ys, "o", color=SERIES[0], markersize=5, alpha=0.55, label="trials")
        if best is not None:
            axes.plot([xs[best]], [ys[best]], "D", color=SERIES[1], markersize=8, label="the best")
        if log:
            axes.set_xscale("log")
        return _finish(figure, name)


def _drawing(name: str) -> AbstractContextManager[None]:
    settings: dict[str, Any] = {"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 11}
    return matplotlib.rc_context(settings)  # type: ignore[no-any-return]


def _empty(x_label: str, y_label: str) -> tuple[Figure, Any]:
    """A figure and its axes in the style of the page."""
    figure = Figure(figsize=(4.5, 3.4), layout="constrained", facecolor="none")
    axes = figure.add_subplot(facecolor="none")
    axes.set_xlabel(x_label, color=INK)
    axes.set_ylabel(y_label, color=INK)
    axes.tick_params(colors=INK)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(GRID)
    return figure, axes


def _finish(figure: Figure, name: str) -> str:
    figure.legend(loc="outside upper left", frameon=False, fontsize=9, labelcolor=INK, ncols=2)
    buffer = io.StringIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _markup(buffer.getvalue(), name)


def _markup(document: str, name: str) -> str:
    svg = document[document.index("<svg") :]
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)  # ids of several plots on one page stay apart
    svg = svg.replace(INK, "var(--ink)").replace(GRID, "var(--line)")
    for n, colour in enumerate(SERIES):
        svg = svg.replace(colour, f"var(--s{n})")
    return svg
