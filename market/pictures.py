"""Plots of a dataset as PNG bytes: its quality report, and its prices and features.

The bytes are identical for the same dataset.
"""

from __future__ import annotations

import io
import textwrap
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from market.bars.quality import has_report
from market.dataset import NO_COIN, Dataset
from market.describe import SAMPLED_ROWS, feature_groups
from market.names import counted

DOTS_PER_INCH = 110
WIDTH_INCHES = 11.0
LABEL_POINTS = 9  # font size of the names of the axes
USED, UNUSED, FILLED, MISSING, OUTSIDE = "#3f77b4", "#bcd0e6", "#f5b021", "#c0271a", "#f1f1f1"
SEGMENTS = ("#4d4d4d", "#6d6d6d")  # alternating, so that boundaries are visible
# Okabe and Ito's colors without yellow, which is faint on white. More coins than colors get the next line style.
COIN_COLORS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#4d4d4d")
COIN_LINES: tuple[Any, ...] = ("-", (0, (5.0, 1.5)), (0, (1.0, 1.0)), (0, (6.0, 1.5, 1.0, 1.5)))
ZERO_VOLUME, JUMP, SHADE = "#101010", "#7b1fa2", "#dddddd"
LEAST_WEIGHT = 0.8  # minimum weight of a color that occurs in a bin, so that single bars are visible
DRAWN_BARS = 3_000  # bars drawn per price curve
LEAST_LABEL_SHARE = 0.05  # minimum fraction of the width at which a segment is labeled
LISTED_WARNINGS = 3
LOG_FROM = 3.0  # ratio of highest to lowest rebased price above which the scale is logarithmic
RAW_FROM = 1_000.0  # values this large are raw dollars or coins
PERCENTILES = (0, 5, 25, 50, 75, 95, 100)


def quality_picture(dataset: Dataset) -> bytes | None:
    """Draw one row per coin over the source's period: used, filled, missing and dropped bars, with segments on top.

    Returns:
        PNG bytes, or None if the dataset has no quality report.
    """
    quality = dataset.quality
    if not has_report(quality, dataset.tickers):
        return None
    n_coins, warnings = len(dataset.tickers), quality["warnings"]
    figure, axes = _strip(n_coins, dataset, warnings)
    edges = _bin_edges(dataset)
    left, right = date2num(edges[[0, -1]])
    colours = np.stack([_row_colours(dataset, ticker, edges) for ticker in dataset.tickers])  # (A, bins, 3)
    # The last bin may be shorter, so each bin is drawn with its own edges.
    axes.pcolormesh(date2num(edges), np.arange(n_coins + 1) - 0.5, colours, shading="flat", rasterized=True)
    axes.hlines(np.arange(-1, n_coins) + 0.5, left, right, color="white", linewidth=3.0)
    for row, ticker in enumerate(dataset.tickers):
        _draw_marks(axes, quality["tickers"][ticker]["timeline"], date2num(edges), row)
    _draw_segment_bar(axes, dataset, right - left)
    axes.set(xlim=(left, right), ylim=(n_coins - 0.5, -1.6))
    axes.set_yticks(range(-1, n_coins), ["segments", *dataset.tickers], fontsize=9)
    axes.set_xlabel("open of the bar (UTC)", fontsize=LABEL_POINTS)
    axes.set_ylabel("coin", fontsize=LABEL_POINTS)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    _dates(axes)
    handles = _quality_legend()
    figure.legend(handles=handles, loc="lower center", ncols=len(handles), frameon=False, fontsize=8)
    return _png(figure)


def _strip(n_coins: int, dataset: Dataset, warnings: list[str]) -> tuple[Figure, Axes]:
    """Create a figure whose height fits its rows, title, dates and legend."""
    title = _title_lines(dataset, warnings)
    above, below = 0.15 + 0.17 * len(title), 0.85
    height = above + 0.3 * (n_coins + 1) + below
    figure = _figure(height, layout=None)
    left = 0.5 + 0.085 * max(map(len, ("segments", *dataset.tickers)))
    box = (left / WIDTH_INCHES, below / height, 1.0 - (left + 0.35) / WIDTH_INCHES, 1.0 - (above + below) / height)
    _title(figure, dataset, title, y=1.0 - 0.05 / height)
    return figure, figure.add_axes(box)


def _bin_edges(dataset: Dataset) -> np.ndarray:
    """Return the edges of the report's timeline, (bins + 1,) datetime64[s]."""
    quality = dataset.quality
    rows = np.append(np.arange(0, quality["source_bars"], quality["timeline_bin_bars"]), quality["source_bars"])
    return (quality["source_first_open_s"] + rows * quality["source_bar_seconds"]).astype("datetime64[s]")


def _row_colours(dataset: Dataset, ticker: str, edges: np.ndarray) -> np.ndarray:
    """Return the colors of one coin's row, (bins, 3)."""
    report = dataset.quality["tickers"][ticker]
    middle = edges[:-1] + (edges[1:] - edges[:-1]) // 2
    is_used = np.zeros(len(middle), dtype=bool)
    for begin, end in _segment_times(dataset):
        is_used |= (middle >= begin) & (middle <= end)
    colours = np.where(is_used[:, None], to_rgb(USED), to_rgb(UNUSED))
    for kind, colour in (("filled", FILLED), ("missing", MISSING)):
        share = _shares(report["timeline"].get(kind), len(middle))
        weight = np.where(share > 0, LEAST_WEIGHT + (1.0 - LEAST_WEIGHT) * share, 0.0)[:, None]
        colours = (1.0 - weight) * colours + weight * np.array(to_rgb(colour))
    first, last = (np.datetime64(report[name].replace(" ", "T")) for name in ("first_open", "last_open"))
    is_outside = (edges[1:] <= first) | (edges[:-1] > last)
    return np.where(is_outside[:, None], to_rgb(OUTSIDE), colours)


def _shares(timeline: str | None, n_bins: int) -> np.ndarray:
    """Convert a timeline's characters to fractions, (bins,) in [0, 1]."""
    return np.array([0 if mark == "." else int(mark) for mark in timeline or "." * n_bins]) / 9.0


def _segment_times(dataset: Dataset) -> list[tuple[np.datetime64, np.datetime64]]:
    """Return the open of the first bar and the close of the last bar of each segment."""
    time, step = dataset.time, dataset.bar_seconds
    return [
        ((time[first] - step).astype("datetime64[s]"), time[last - 1].astype("datetime64[s]"))
        for first, last in dataset.segments
    ]


def _draw_marks(axes: Axes, timeline: dict[str, str], edges: np.ndarray, row: int) -> None:
    """Draw bars without volume as dots and jumps as triangles."""
    middle = (edges[1:] + edges[:-1]) / 2.0
    for kind, marker, height, size, colour in (
        ("zero_volume", "o", 0.22, 2.5, ZERO_VOLUME),
        ("jumps", "v", -0.2, 4.5, JUMP),
    ):
        places = middle[_shares(timeline.get(kind), len(middle)) > 0]
        axes.plot(
            places, np.full(len(places), row + height), marker, color=colour, markersize=size,
            markeredgecolor="white", markeredgewidth=0.4, clip_on=False,
        )  # fmt: skip


def _draw_segment_bar(axes: Axes, dataset: Dataset, width: float) -> None:
    """Draw the segments as bars above the coins, labeled with their length if space allows."""
    for i, (begin, end) in enumerate(_segment_times(dataset)):
        left, right = date2num([begin, end])
        axes.barh(-1.0, right - left, left=left, height=0.62, color=SEGMENTS[i % 2])
        if right - left > LEAST_LABEL_SHARE * width:
            first, last = dataset.segments[i]
            axes.text((left + right) / 2.0, -1.0, f"{last - first}", ha="center", va="center", color="w", fontsize=7)


def _quality_legend() -> list[Patch | Line2D]:
    names = {
        "segment (bars)": SEGMENTS[0],
        "used": USED,
        "present, not used": UNUSED,
        "filled": FILLED,
        "missing": MISSING,
        "before first or after last bar": OUTSIDE,
    }
    patches: list[Patch | Line2D] = [Patch(color=colour, label=name) for name, colour in names.items()]
    style = {"linestyle": "", "markeredgecolor": "white", "markeredgewidth": 0.4}
    dot = Line2D([], [], marker="o", color=ZERO_VOLUME, markersize=4, label="no volume", **style)
    return [*patches, dot, Line2D([], [], marker="v", color=JUMP, markersize=6, label="move > 5 %", **style)]


def dataset_picture(dataset: Dataset) -> bytes:
    """Draw the prices of all coins relative to the first, and the distribution of each feature, as PNG bytes."""
    groups = feature_groups(dataset)
    row_inches = min(max(0.055 * len(dataset.tickers), 0.24), 0.6)
    heights = (4.0, 0.7 + row_inches * len(groups))
    figure = _figure(sum(heights) + 0.9)
    prices, features = figure.subplots(2, 1, height_ratios=heights)
    colours = _coin_colours(len(dataset.tickers))
    _draw_prices(prices, dataset, colours)
    _draw_features(features, dataset, groups, colours)
    _title(figure, dataset, _title_lines(dataset, dataset.quality.get("warnings", [])))
    return _png(figure)


def _coin_colours(n_coins: int) -> list[str]:
    return [COIN_COLORS[i % len(COIN_COLORS)] for i in range(n_coins)]


def _coin_lines(n_coins: int) -> list[Any]:
    """Return the line style of each coin, which distinguishes coins of the same color."""
    return [COIN_LINES[i // len(COIN_COLORS) % len(COIN_LINES)] for i in range(n_coins)]


def _draw_prices(axes: Axes, dataset: Dataset, colours: list[str]) -> None:
    """Draw prices relative to the first one. Lines break between segments, where the background is shaded."""
    stride, lines = max(len(dataset.time) // DRAWN_BARS, 1), _coin_lines(len(dataset.tickers))
    for first, last in dataset.segments:
        rows = np.unique(np.append(np.arange(first, last, stride), last - 1))
        for a, (colour, line) in enumerate(zip(colours, lines, strict=True)):
            rebased = dataset.price[rows, a] / dataset.price[0, a]
            time = date2num(dataset.time[rows].astype("datetime64[s]"))
            axes.plot(time, rebased, color=colour, linestyle=line, linewidth=1.1)
    times = _segment_times(dataset)
    for (_, end), (begin, _) in pairwise(times):
        axes.axvspan(*date2num([end, begin]), color=SHADE, linewidth=0)
    handles: list[Patch | Line2D] = [
        Line2D([], [], color=colour, linestyle=line, label=ticker)
        for ticker, colour, line in zip(dataset.tickers, colours, lines, strict=True)
    ]
    if len(times) > 1:
        handles.append(Patch(color=SHADE, label="no segment"))
    columns = 1 if len(handles) <= 14 else 2
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8, ncols=columns,
                handlelength=3.0)  # fmt: skip
    rebased = dataset.price / dataset.price[0]
    if rebased.max() > LOG_FROM * rebased.min():
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(lambda value, _: f"{value:.4g}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.4g}")
    axes.tick_params(axis="y", which="both", labelsize=7)
    segments = counted(len(times), "segment")
    axes.set_title(f"Prices ({segments})", loc="left", fontsize=9)
    axes.set_xlabel("close of the bar (UTC)", fontsize=LABEL_POINTS)
    axes.set_ylabel("price relative to the first close (1 = first close)", fontsize=LABEL_POINTS)
    axes.margins(x=0.01)
    _dates(axes)
    _tidy(axes)


def _draw_features(axes: Axes, dataset: Dataset, groups: dict[str, list[int]], colours: list[str]) -> None:
    """Draw one row per feature with one bar per coin. The axes title explains the marks."""
    sample = dataset.tech[:: max(len(dataset.tech) // SAMPLED_ROWS, 1)]
    levels = np.percentile(sample, PERCENTILES, axis=0)  # (7, F)
    levels[0], levels[-1] = dataset.tech.min(axis=0), dataset.tech.max(axis=0)
    are_raw = bool(np.abs(levels).max() > RAW_FROM)
    if are_raw:  # dollars and coins do not fit one axis
        levels = levels / np.maximum(np.abs(levels).max(axis=0), np.finfo(np.float64).tiny)
    for row, columns in enumerate(groups.values()):
        step = 0.8 / len(columns)
        for i, column in enumerate(columns):
            asset = dataset.feature_coins[column]
            colour = "#777777" if asset == NO_COIN else colours[asset]
            _draw_spread(axes, levels[:, column], row - 0.4 + step * (i + 0.5), step, colour)
    axes.set_yticks(range(len(groups)), list(groups), fontsize=8)
    axes.set_ylim(len(groups) - 0.45, -0.55)
    for row in range(len(groups) - 1):
        axes.axhline(row + 0.5, color=SHADE, linewidth=0.6)
    axes.tick_params(axis="x", labelsize=8)
    text = (
        "Features: line = range, bar = 5 to 95 %, thick = 25 to 75 %, dot = median, cross = constant; "
        "one bar per coin, in the order of the legend"
    )
    unit = "no unit"
    if are_raw:
        text += "\nRaw units: each column is scaled by its largest absolute value"
        unit = "1 = the largest absolute value of the column"
    axes.set_title(text, loc="left", fontsize=9)
    axes.set_xlabel(f"value of the feature ({unit})", fontsize=LABEL_POINTS)
    axes.set_ylabel("feature", fontsize=LABEL_POINTS)
    _tidy(axes)


def _draw_spread(axes: Axes, levels: np.ndarray, height: float, step: float, colour: str) -> None:
    """Draw one column. `levels` are its PERCENTILES and `step` is its height in rows."""
    lowest, low, quarter, median, upper, high, highest = levels.tolist()
    if lowest == highest:
        axes.plot(lowest, height, "x", color=MISSING, markersize=5)
        return
    axes.plot([lowest, highest], [height, height], color=colour, linewidth=0.5, alpha=0.7)
    axes.barh(height, high - low, left=low, height=0.45 * step, color=colour, alpha=0.55, linewidth=0)
    axes.barh(height, upper - quarter, left=quarter, height=0.8 * step, color=colour, linewidth=0)
    axes.plot(median, height, "o", color="white", markeredgecolor="black", markeredgewidth=0.5, markersize=2.2)


def _figure(height_inches: float, layout: Literal["constrained"] | None = "constrained") -> Figure:
    figure = Figure(figsize=(WIDTH_INCHES, height_inches), dpi=DOTS_PER_INCH, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def _title_lines(dataset: Dataset, warnings: list[str]) -> list[str]:
    """Return the dataset's label and its first warnings."""
    lines = textwrap.wrap(dataset.label, 130)[:3]
    lines += [textwrap.shorten(f"WARNING {warning}", 130) for warning in warnings[:LISTED_WARNINGS]]
    n_more = len(warnings) - LISTED_WARNINGS
    return [*lines, f"and {n_more} more warnings in the report"] if n_more > 0 else lines


def _title(figure: Figure, dataset: Dataset, lines: list[str], y: float | None = None) -> None:
    """Set the title, in red if the data are synthetic or have warnings."""
    is_red = dataset.synthetic or len(lines) > 1
    place = {} if y is None else {"y": y, "va": "top"}  # a given position reserves no space
    figure.suptitle("\n".join(lines), fontsize=9, color=MISSING if is_red else "black", **place)


def _dates(axes: Axes) -> None:
    locator = AutoDateLocator(minticks=4, maxticks=12)
    formatter = ConciseDateFormatter(locator, show_offset=False)
    formatter.formats[2] = formatter.zero_formats[3] = "%d %b"
    axes.xaxis_date()
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(formatter)
    axes.tick_params(axis="x", labelsize=8)


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def _png(figure: Figure) -> bytes:
    """Return the figure as PNG bytes without time or version, so that equal plots are identical files."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
