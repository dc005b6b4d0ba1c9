"""The band of a policy as charts of the report: price, edges and held weight of every coin."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from train.report.charts import DAY_S, Axis, Band, Line, chart, number_axis
from train.report.figures import escape
from train.validation.band_curves import BandCurves, CoinColumns, close_up, coin_columns, highest_share, shown_coins

MOST_COINS = 6
PRICE_PX, BAND_PX = 70, 150
LEGEND = (
    ("band", "band: nothing is traded while the weight is inside"),
    ("held", "held weight, % of the account; its range where many bars share a point"),
)
BEST = ("edge", "edges of the best band for the planted signal (close-ups only)")


@dataclass(frozen=True)
class BandView:
    """What the page shows of a band policy."""

    title: str  # whose band, and on which bars
    curves: BandCurves


def band_charts(view: BandView) -> str:
    """Legend and two figures for each coin: all bars, and the stretch in which its weight was moved most."""
    curves, coins = view.curves, shown_coins(view.curves, MOST_COINS)
    keys = (*LEGEND, BEST) if curves.best_lo is not None else LEGEND
    legend = "".join(f'<li class="{kind}"><i></i>{escape(text)}</li>' for kind, text in keys)
    figures = "".join(_coin(curves, coin) for coin in coins)
    hidden = len(curves.tickers) - len(coins)
    more = f'<p class="small">{hidden} more coins, whose weight moved less, are not drawn.</p>' if hidden else ""
    return f'<ul class="legend">{legend}</ul><div class="paths">{figures}</div>{more}'


def _coin(curves: BandCurves, coin: int) -> str:
    near = close_up(curves, coin)
    percent = _percent_axis(highest_share(curves, coin))
    whole = _figure(curves, coin, percent, f"all {len(curves.time_s):,} bars")
    return whole + _figure(curves.rows(near), coin, percent, f"close-up: {near.stop - near.start} bars")


def _percent_axis(highest: float) -> Axis:
    """From 0 to a share of the account, in percent."""
    step = 25 if highest > 0.5 else 10 if highest > 0.25 else 5
    ticks = tuple((float(v), f"{v}") for v in range(0, round(100 * highest) + 1, step))
    return Axis(-2.0 * highest, 102.0 * highest, ticks)


def _figure(curves: BandCurves, coin: int, percent: Axis, what: str) -> str:
    ticker = curves.tickers[coin]
    c, starts = coin_columns(curves, coin), curves.starts[1:].tolist()
    row, x = c.row.astype(np.float64), _bars_axis(curves.time_s)
    above = chart([Line("coin", row, c.price)], x, number_axis([c.price]), height_px=PRICE_PX, lines_at=starts,
                  said=f"{ticker}, {what}: price", y_title="price")  # fmt: skip
    below = chart(_marks(c, row), x, percent, height_px=BAND_PX, lines_at=starts,
                  said=f"{ticker}, {what}: band and held weight", y_title="share of the account, %")  # fmt: skip
    return f"<figure><figcaption><b>{escape(ticker)}</b> {escape(what)}</figcaption>{above}{below}</figure>"


def _bars_axis(time_s: np.ndarray) -> Axis:
    """Bars one after the other, labelled by date: bars between accounts take no room."""
    last = max(len(time_s) - 1, 1)
    places = np.unique(np.linspace(last / 10, last * 0.9, 5).astype(np.int64))
    is_long = time_s[-1] - time_s[0] > 3 * DAY_S
    form = "%d %b %Y" if is_long else "%d %b %H:%M"
    dates = [datetime.fromtimestamp(int(time_s[place]), tz=UTC).strftime(form) for place in places]
    return Axis(0.0, float(last), tuple(zip(places.astype(np.float64).tolist(), dates, strict=True)))


def _marks(c: CoinColumns, row: np.ndarray) -> list[Any]:
    marks: list[Any] = [Band("band", row, 100 * c.lo, 100 * c.hi, is_stepped=True)]
    marks += [Line("edge", row, 100 * edge, is_stepped=True) for edge in (c.best_lo, c.best_hi) if edge is not None]
    if (c.weight_high > c.weight_low).any():
        marks.append(Band("range", row, 100 * c.weight_low, 100 * c.weight_high, is_stepped=True))
    return [*marks, Line("held", row, 100 * c.weight, is_stepped=True)]
