"""The band of a trial's policy as PNG: a trial's artifact."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from train.validation.band_curves import BandCurves, close_up, coin_columns, highest_share, shown_coins

BAND, WEIGHT, BEST, PRICE = "#56b4e9", "#0072b2", "#c44e00", "#1b1b1b"  # Okabe and Ito: as in the report
MOST_COINS = 6
WIDTH_INCHES, COIN_INCHES, DOTS_PER_INCH = 12.4, 2.4, 96
HEIGHTS = (1.0, 1.8, 0.75)  # of price, band and the room beneath, of every coin


def band_figure(curves: BandCurves, title: str) -> Figure:
    """Price, and beneath it band and held weight, of every coin: all bars, and the busiest stretch from near by."""
    coins = shown_coins(curves, MOST_COINS)
    hidden = len(curves.tickers) - len(coins)
    title += f"\n{hidden} more coins, which moved less, are not drawn" if hidden else ""
    top = 0.32 + 0.16 * (title.count("\n") + 1)  # inches, with the first panel's own title
    total = COIN_INCHES * len(coins) + top
    figure = Figure(figsize=(WIDTH_INCHES, total), dpi=DOTS_PER_INCH)
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        3 * len(coins), 2, height_ratios=HEIGHTS * len(coins), width_ratios=(1.5, 1.0), hspace=0.06, wspace=0.1,
        left=0.05, right=0.985, bottom=0.1 / total, top=1.0 - top / total,
    )  # fmt: skip
    handles: dict[str, Any] = {}
    for place, coin in enumerate(coins):
        near = close_up(curves, coin)
        for column, rows in enumerate((slice(0, len(curves.time_s)), near)):
            above, below = (figure.add_subplot(grid[3 * place + part, column]) for part in (0, 1))
            _draw_coin(above, below, curves.rows(rows), coin, rows.start)
            below.set_ylim(-2.0 * highest_share(curves, coin), 102.0 * highest_share(curves, coin))
            handles |= dict(zip(*reversed(below.get_legend_handles_labels()), strict=True))
            name = f"bars {near.start} to {near.stop - 1}" if column else f"{curves.tickers[coin]}: price; share, %"
            above.set_title(name, fontsize=9, loc="left")
    figure.suptitle(title, fontsize=9, y=1.0 - 0.06 / total, va="top")
    figure.legend(handles.values(), handles, loc="lower center", ncols=len(handles), frameon=False, fontsize=9)
    return figure


def _draw_coin(above: Axes, below: Axes, curves: BandCurves, coin: int, first_row: int) -> None:
    columns = coin_columns(curves, coin)
    x = columns.row + first_row
    above.plot(x, columns.price, color=PRICE, linewidth=0.8)
    # The edges hold for a whole bar, so they are stairs; a line between two bars would show bands that never were.
    below.fill_between(x, 100 * columns.lo, 100 * columns.hi, step="mid", color=BAND, alpha=0.35, linewidth=0,
                       label="band: nothing is traded inside")  # fmt: skip
    for edge, label in ((columns.best_lo, "edges of the best band"), (columns.best_hi, None)):
        if edge is not None:
            below.plot(x, 100 * edge, color=BEST, linewidth=0.9, linestyle=(0, (4, 2)), drawstyle="steps-mid",
                       label=label)  # fmt: skip
    below.fill_between(x, 100 * columns.weight_low, 100 * columns.weight_high, step="mid", color=WEIGHT, alpha=0.35,
                       linewidth=0)  # fmt: skip
    below.plot(x, 100 * columns.weight, color=WEIGHT, linewidth=1.1, drawstyle="steps-mid", label="held weight, %")
    for axes in (above, below):
        for start in curves.starts[1:]:
            axes.axvline(first_row + start, color="#9a9a9a", linewidth=0.7, linestyle=":")
        axes.set_xlim(first_row, first_row + max(len(curves.time_s) - 1, 1))
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    above.set_xticklabels([])
