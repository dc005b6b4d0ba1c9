"""Charts of a band policy: price, band edges and held weight of every coin."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

import numpy as np
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, FigureBase
from matplotlib.ticker import MaxNLocator

from market.names import counted
from train.report.charts import AGENT, COIN, EQUAL, STYLE, inline_svg, name_axes
from train.validation.band_curves import BandCurves, close_up, coin_columns, highest_share, shown_coins

BAND = "#56b4e9"
MOST_COINS = 6
HEIGHT_INCHES = 3.1
WIDTH_INCHES, DOTS_PER_INCH = 12.4, 96
DAY_S = 86_400


@dataclass(frozen=True)
class BandView:
    """Band charts on the report page."""

    title: str  # trial and split of the band
    curves: BandCurves

    @property
    def n_hidden(self) -> int:
        """Number of coins that are not drawn."""
        return max(len(self.curves.tickers) - MOST_COINS, 0)

    def charts(self) -> Iterator[tuple[str, str, Markup]]:
        """Yield (ticker, description, chart) twice per coin: for all bars, and for the most active period."""
        for coin in shown_coins(self.curves, MOST_COINS):
            ticker, near = self.curves.tickers[coin], close_up(self.curves, coin)
            whole = slice(0, len(self.curves.time_s))
            for rows, what in ((whole, f"all {whole.stop:,} bars"), (near, f"close-up: {near.stop - near.start} bars")):
                draw = partial(draw_coin, curves=self.curves, coin=coin, rows=rows, title="price")
                said = f"{ticker}, {what}: price, band and held weight"
                yield ticker, what, inline_svg(said, HEIGHT_INCHES, draw)


def band_figure(curves: BandCurves, title: str) -> Figure:
    """Return one plot with two panels per coin: all bars, and next to it the most active period."""
    coins = shown_coins(curves, MOST_COINS)
    hidden = len(curves.tickers) - len(coins)
    title += f"\n{counted(hidden, 'coin')} not shown, whose weight moved least" if hidden else ""
    with rc_context({**STYLE, "font.size": 8.0, "axes.titlesize": 9.0}):
        figure = Figure((WIDTH_INCHES, HEIGHT_INCHES * len(coins) + 0.6), dpi=DOTS_PER_INCH, layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subfigures(len(coins), 2, squeeze=False, width_ratios=(1.5, 1.0))
        for coin, (left, right) in zip(coins, panels, strict=True):
            near = close_up(curves, coin)
            draw_coin(left, curves, coin, slice(0, len(curves.time_s)), f"{curves.tickers[coin]}: price")
            draw_coin(right, curves, coin, near, f"bars {near.start} to {near.stop - 1}: price")
        figure.suptitle(title, fontsize=9)
        handles, labels = figure.axes[-1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(handles), fontsize=9)
    return figure


def draw_coin(figure: FigureBase, curves: BandCurves, coin: int, rows: slice, title: str) -> None:
    """Draw the price of a coin, and below it the band and the held weight in percent of equity."""
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1.0, 1.9))
    top, curves = highest_share(curves, coin), curves.rows(rows)
    c = coin_columns(curves, coin)
    above.plot(c.row, c.price, color=COIN, linewidth=0.9)
    # Edges hold for a whole bar, so they are drawn as steps; sloped lines would show bands that never applied.
    below.fill_between(c.row, 100 * c.lo, 100 * c.hi, step="post", color=BAND, alpha=0.4, linewidth=0,
                       label="band: nothing is traded inside")  # fmt: skip
    for edge, label in ((c.best_lo, "edges of the best band"), (c.best_hi, None)):
        if edge is not None:
            below.step(c.row, 100 * edge, where="post", color=EQUAL, linewidth=0.9, linestyle=(0, (4, 2)), label=label)
    if (c.weight_high > c.weight_low).any():
        below.fill_between(
            c.row, 100 * c.weight_low, 100 * c.weight_high, step="post", color=AGENT, alpha=0.3, linewidth=0
        )
    below.step(c.row, 100 * c.weight, where="post", color=AGENT, linewidth=1.1, label="held weight, %")
    for axes in (above, below):
        for start in curves.starts[1:]:
            axes.axvline(start, color="#9a9a9a", linewidth=0.7, linestyle=":")
    last = len(curves.time_s) - 1
    form = "%d %b %Y" if curves.time_s[-1] - curves.time_s[0] > 3 * DAY_S else "%d %b %H:%M"

    def date(row: float, _: object) -> str:
        """Return the date of a bar. Gaps between accounts take no space on the axis."""
        return datetime.fromtimestamp(int(curves.time_s[int(np.clip(row, 0, last))]), tz=UTC).strftime(form)

    below.set(xlim=(0, max(last, 1)), ylim=(-2.0 * top, 102.0 * top))
    name_axes(above, "", f"{title} (quote currency)")
    name_axes(below, "bar (UTC)", "share of equity, %")
    below.xaxis.set_major_locator(MaxNLocator(3, integer=True, prune="both"))
    below.xaxis.set_major_formatter(date)
