"""Matplotlib charts of a study, as inline SVG for the page and as PNG files.

Text in an SVG chart stays text. A chart loads no external files, and the same numbers produce the same bytes. The
colors are those of Okabe and Ito. Curves that differ in color also differ in dash pattern, width or label.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure, FigureBase
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.ticker import AutoLocator, LogLocator, MaxNLocator

from train.report.paths import PathView, drawdown
from train.report.trials import TrialView

AGENT, EQUAL, RANDOM, COIN, FAINT, INK = "#0072b2", "#c44e00", "#cc79a7", "#8a8a8a", "#6d6d6d", "#1b1b1b"
PRUNED = "#e69f00"
DASHES = (0, (5, 2))  # line style of equal weight
STYLE: dict[Any, Any] = {
    "font.size": 9.5,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#ececec",
    "figure.subplot.hspace": 0.25,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "date.converter": "concise",
    "text.parse_math": False,  # names may contain dollar signs
    "svg.fonttype": "none",
}
WIDTH_INCHES = 5.0  # the width of a phone at 72 dots per inch, so that text stays legible there
MOST_POINTS = 400  # largest number of points drawn per line
MANY_DOTS = 400  # this many dots or more are drawn small and without tooltips, to keep the page small
DECADE = 10.0


# -------------------------------------------------------------------------------------------------------------- drawing
def inline_svg(said: str, height_inches: float, draw: Callable[[Figure], object]) -> Markup:
    """Return a chart as inline SVG for an HTML page.

    Args:
        said: text description for screen readers.
        height_inches: height of the chart, which is `WIDTH_INCHES` wide; the page scales both.
        draw: function that draws the chart into a figure.
    """
    file = io.StringIO()
    with rc_context({**STYLE, "font.size": 10.5, "svg.hashsalt": said}):  # makes element ids unique to this chart
        figure = Figure((WIDTH_INCHES, height_inches), frameon=False)
        figure.subplots_adjust(left=0.12, right=0.88, bottom=0.5 / height_inches, top=1.0 - 0.25 / height_inches)
        draw(figure)
        canvas = FigureCanvasSVG(figure)
        canvas.print_svg(file, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    box, _, body = re.split(r'<svg[^>]*(viewBox="[^"]*")[^>]*>(.*?</defs>)', file.getvalue(), flags=re.DOTALL)[1:]
    body = re.sub(r'(<g) id="[^"]*"|\s*\n\s*', r"\1", body.partition("</svg>")[0])
    body = re.sub(r'(d|x|y)="[-\d.MLCQz ]*"', lambda found: re.sub(r"(\.\d)\d+", r"\1", found[0]), body)
    body = re.sub(r'<a xlink:href="([^"]*)"[^>]*>(.*?)</a>', r"<g><title>\1</title>\2</g>", body)
    body = body.replace("xlink:href", "href")
    return Markup('<svg {} role="img" aria-label="{}">{}</svg>').format(Markup(box), said, Markup(body))


def name_axes(axes: Axes, x: str, y: str) -> None:
    """Name both axes, each with its unit. The name of the y axis is above the axis, which keeps a chart narrow."""
    axes.set_xlabel(x)
    axes.set_ylabel(y, rotation=0.0, ha="left", va="bottom")
    axes.yaxis.set_label_coords(0.0, 1.02)


def name_time(axes: Axes, y: str, most_dates: int = 6) -> None:
    """Name the axes of a chart over time. Six dates fit side by side in a chart as narrow as `WIDTH_INCHES`."""
    locator = AutoDateLocator(minticks=3, maxticks=most_dates)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    name_axes(axes, "time (UTC)", y)


def dots(axes: Axes, x: np.ndarray, y: np.ndarray, color: str, size: float, titles: Sequence[str] = ()) -> None:
    """Draw points. In SVG, each point has its title as a tooltip.

    Points without titles are drawn as one path with round line caps. That takes a fifth of the space that markers take.
    """
    if titles:
        axes.scatter(x, y, size**2, color=color, alpha=0.7, linewidths=0, urls=titles, zorder=3)
        return
    places = np.repeat(np.column_stack([x, y]).astype(np.float64), 2, axis=0)
    places[1::2, 0] += 1e-6
    path = Path(places, np.tile([Path.MOVETO, Path.LINETO], len(x)))
    path.should_simplify = False
    patch = PathPatch(path, fill=False, edgecolor=color, alpha=0.7, linewidth=size, capstyle="round", zorder=3)
    axes.add_patch(patch)
    axes.autoscale_view()


def thinned(x: np.ndarray, y: np.ndarray, most: int = MOST_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Return at most about `most` points of a curve, including its ends and the extremes of every section."""
    if len(x) <= most:
        return x, y
    edges = np.linspace(0, len(x), most // 2 + 1).astype(np.int64)
    filled = np.where(np.isfinite(y), y, np.nanmin(y) if np.isfinite(y).any() else 0.0)
    rows = {0, len(x) - 1}
    for a, b in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        rows |= {a + int(filled[a:b].argmin()), a + int(filled[a:b].argmax())}
    kept = np.array(sorted(rows))
    return x[kept], y[kept]


def name_ends(axes: Axes, ends: Sequence[tuple[str, float, str]], gap: float = 0.065) -> None:
    """Write labels at the right edge next to the last values, moved apart if they would overlap.

    Args:
        axes: axes with their final limits.
        ends: (name, last value, color) of each curve.
        gap: smallest distance between two labels, as a fraction of the height. Labels that do not fit at this distance
            are closer and smaller.
    """
    least = gap
    gap = min(gap, 1.0 / max(len(ends) - 1, 1))
    places = (axes.transScale + axes.transLimits).transform([(0.0, value) for _, value, _ in ends])[:, 1]
    order, steps = np.argsort(places, kind="stable"), gap * np.arange(len(ends))
    wanted = np.clip(np.nan_to_num(places[order]), 0.0, 1.0) - steps
    apart = (np.maximum.accumulate(wanted) + np.minimum.accumulate(wanted[::-1])[::-1]) / 2.0
    for i, place in zip(order.tolist(), (np.clip(apart, 0.0, 1.0 - steps[-1]) + steps).tolist(), strict=True):
        name, _, color = ends[i]
        axes.annotate(
            name, (1.01, place), xycoords="axes fraction", color=color, fontsize=9.5 * gap / least, va="center"
        )


# --------------------------------------------------------------------------------------------------------------- charts
def draw_path(figure: FigureBase, p: PathView, scale: str) -> None:
    """Draw all equity curves on a `linear` or `log` scale, and below them the drawdowns in percent."""
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2.4, 1.0))
    time = p.time_s.astype("datetime64[s]")
    if p.random is not None:
        rows = np.unique(np.linspace(0, len(time) - 1, min(len(time), MOST_POINTS // 2)).astype(np.int64))
        low, middle, high = (p.random.quantiles[i] for i in (0, 2, -1))
        above.fill_between(time[rows], low[rows], high[rows], color=RANDOM, alpha=0.2, linewidth=0)
        above.plot(*thinned(time, middle), color=RANDOM, linewidth=1.0)
    for curve in p.coins.values():
        above.plot(*thinned(time, curve), color=COIN, linewidth=0.7)
    above.axhline(1.0, color=INK, linewidth=0.8, linestyle=":")
    for axes, curves in ((above, (p.equal_weight, p.agent)), (below, (drawdown(p.equal_weight), drawdown(p.agent)))):
        axes.plot(*thinned(time, curves[0]), color=EQUAL, linewidth=1.2, linestyle=DASHES)
        axes.plot(*thinned(time, curves[1]), color=AGENT, linewidth=1.6)
        for start in p.starts_s.astype("datetime64[s]"):
            axes.axvline(start, color="#c9c9c9", linewidth=0.8, linestyle=":", zorder=0)
    if scale == "log":
        above.set_yscale("log", nonpositive="mask")
        low, high = above.get_ylim()
        above.yaxis.set_major_locator(AutoLocator() if high < DECADE * low else LogLocator(subs=(1.0, 2.0, 5.0)))
        above.yaxis.set_major_formatter("{x:g}")
        above.minorticks_off()
    above.set(ylim=above.get_ylim(), xlim=(time[0], time[-1]))
    below.set_ylim(None, 0.0)
    name_axes(above, "", "equity (start = 1)")
    name_time(below, "drawdown, %")
    ends = [(name, float(curve[-1]), FAINT) for name, curve in p.coins.items()]
    name_ends(
        above, [*ends, ("cash", 1.0, INK), ("equal w.", p.equal_weight[-1], EQUAL), ("agent", p.agent[-1], AGENT)]
    )


def draw_splits(axes: Axes, trials: Sequence[TrialView], best: int | None) -> None:
    """Draw the excess Sharpe ratio of all trials on every split, with the middle half and the best trial marked."""
    scored = [t for t in trials if t.is_scored]
    indices = sorted({i for t in scored for i in t.splits})
    middle = [np.quantile([t.splits[i] for t in scored if i in t.splits], (0.25, 0.5, 0.75)) for i in indices]
    for i, (low, median, high) in zip(indices, middle, strict=True):
        axes.fill_between([i - 0.3, i + 0.3], low, high, color="#e4e4e4", linewidth=0)
        axes.plot([i - 0.3, i + 0.3], [median, median], color=INK, linewidth=1.6)
    axes.axhline(0.0, color=INK, linewidth=0.8)
    for is_best, color, size, words in ((False, FAINT, 3.0, "trial"), (True, AGENT, 8.0, "best trial")):
        shown = [(i, t) for t in scored if (t.number == best) == is_best for i in sorted(t.splits)]
        aside = np.array([0.0 if is_best else ((t.number * 0.618) % 1 - 0.5) * 0.4 for _, t in shown])
        titles = [f"{words} {t.number}, split {i}: {t.splits[i]:+.2f}" for i, t in shown]
        x, y = np.array([i for i, _ in shown]) + aside, np.array([t.splits[i] for i, t in shown])
        dots(axes, x, y, color, *_size_and_titles(size, titles))
    axes.set_xlim(indices[0] - 0.5, indices[-1] + 0.5)
    large = "" if best is None else f" (large dots: trial {best})"
    name_axes(axes, "split", f"annual excess Sharpe ratio{large}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def draw_values(axes: Axes, trials: Sequence[TrialView]) -> None:
    """Draw the value of every trial and the best so far, with trials without a value at the bottom."""
    done = [t for t in trials if t.state == "complete" and t.value is not None]
    numbers, values = np.array([t.number for t in done]), np.array([t.value for t in done])
    last = max(t.number for t in trials)
    best = np.maximum.accumulate(values)
    axes.step([*numbers, last + 0.5], [*best, best[-1]], where="post", color=AGENT, linewidth=1.6, label="best so far")
    dots(axes, numbers, values, FAINT, *_size_and_titles(5.0, _named(done)))
    for state, color, marker, place in (("pruned", PRUNED, "v", -0.04), ("failed", "black", "s", -0.08)):
        at = [t.number for t in trials if t.state == state]
        floor = values.min() + place * (np.ptp(values) or 1.0) * 2.0
        if at:
            label = f"{len(at)} {state} (no value)"
            axes.plot(at, np.full(len(at), floor), marker, color=color, markersize=4, label=label)
    axes.set_xlim(-0.5, last + 0.5)
    name_axes(axes, "trial", "value: mean annual excess Sharpe - 0.1 std")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def draw_cost(axes: Axes, trials: Sequence[TrialView], best: int | None, key: str) -> None:
    """Draw value against trading cost; `key` is `turnover` or `fees`."""
    unit, scale = {"turnover": ("times equity", 1.0), "fees": ("% of equity", 100.0)}[key]
    for is_best, color, size in ((False, FAINT, 5.0), (True, AGENT, 8.0)):
        shown = [t for t in trials if (t.number == best) == is_best]
        x, y = np.array([getattr(t, key) * scale for t in shown]), np.array([t.value for t in shown])
        dots(axes, x, y, color, *_size_and_titles(size, _named(shown)))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    name_axes(axes, f"{key}, {unit} (mean over splits)", "value: mean annual excess Sharpe - 0.1 std")


def _named(trials: Sequence[TrialView]) -> list[str]:
    return [f"trial {t.number}: {t.value:+.3f}" for t in trials]


def _size_and_titles(size: float, titles: Sequence[str]) -> tuple[float, Sequence[str]]:
    return (size, titles) if len(titles) < MANY_DOTS else (size / 2.0, ())
