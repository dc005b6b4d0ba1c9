"""Charts of a report as plain SVG: no script, no library, nothing to load.

Why not plotly: its JavaScript alone is 4.8 MB a page and does nothing on paper; these charts take some tens of kB, are
there before the page has ended loading, and print. What is lost is zooming; a dot answers a pointer with its numbers.

The drawing area is stretched to whatever room there is (`preserveAspectRatio="none"`, lines of constant width), while
axis labels are HTML beside it, so text has the same size on a phone as on a desk. A dot is a line of length 0 with
round ends, which stretching leaves round. All coordinates are checked numbers and all text is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape

import numpy as np

UNITS = 10_000  # of the drawing area, both ways
MOST_POINTS = 600  # drawn of a line
LABEL_PX = 13  # least distance of two labels beside the chart
DAY_S = 86_400
ROOM_CHARACTERS = 30  # of labels below a chart on a phone; with more, every other one is left out there
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Axis:
    """A range with its labelled places; `low < high`, both positive on a logarithmic axis."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    is_log: bool = False

    def units(self, values: np.ndarray) -> np.ndarray:
        """Positions of values from 0 to UNITS, clipped a little outside; nan stays nan."""
        v = np.asarray(values, dtype=np.float64)
        low, high = self.low, self.high
        if self.is_log:
            with np.errstate(divide="ignore", invalid="ignore"):
                v, low, high = np.log(v), math.log(low), math.log(high)
        return np.clip((v - low) / (high - low), -0.5, 1.5) * UNITS


@dataclass(frozen=True)
class Line:
    """A curve. `kind` is a class of the page's style; a `label` stands beside its end."""

    kind: str
    x: np.ndarray
    y: np.ndarray
    label: str = ""
    is_stepped: bool = False  # each value holds until the next


@dataclass(frozen=True)
class Band:
    """The area between two curves."""

    kind: str
    x: np.ndarray
    low: np.ndarray
    high: np.ndarray
    is_stepped: bool = False  # each value holds until the next; then all points are drawn


@dataclass(frozen=True)
class Dots:
    """Points, each with an optional text for a pointer."""

    kind: str
    x: np.ndarray
    y: np.ndarray
    titles: Sequence[str] = ()


Mark = Line | Band | Dots


# ---------------------------------------------------------------------------------------------------------------- axes
def number_axis(values: Sequence[np.ndarray], *, include: Sequence[float] = (), is_log: bool = False) -> Axis:
    """An axis that shows all finite values (positive ones on a logarithmic axis)."""
    everything = np.concatenate([*(np.ravel(v) for v in values), np.asarray(include, dtype=np.float64)])
    shown = everything[np.isfinite(everything) & ((everything > 0.0) | (not is_log))]
    low, high = (float(shown.min()), float(shown.max())) if shown.size else (1.0, 2.0)
    if is_log:
        low, high = (low / 1.02, high * 1.02)
        return Axis(low, high, _log_ticks(low, high), is_log=True)
    margin = (high - low) * 0.04 or abs(high) * 0.1 or 1.0
    step = _round_step((high - low + 2 * margin) / 5)
    return Axis(low - margin, high + margin, _ticks(low - margin, high + margin, step))


def count_axis(first: float, last: float) -> Axis:
    """Whole numbers, with room for a dot around them."""
    step = max(round(_round_step((last - first + 1) / 6)), 1)
    places = np.arange(math.ceil(first / step) * step, last + 0.5, step)
    room = max(0.5, (last - first) * 0.015)
    return Axis(first - room, last + room, tuple((float(v), f"{v:.0f}") for v in places))


def time_axis(first_s: float, last_s: float) -> Axis:
    """UTC seconds, labelled by date."""
    last_s = max(last_s, first_s + 1)
    places = np.linspace(first_s, last_s, 6)[:-1] + (last_s - first_s) / 10
    form = "%d %b %Y" if last_s - first_s > 3 * DAY_S else "%d %b %H:%M"
    return Axis(first_s, last_s, tuple((float(t), datetime.fromtimestamp(t, tz=UTC).strftime(form)) for t in places))


def _round_step(least: float) -> float:
    power = 10.0 ** math.floor(math.log10(max(least, 1e-300)))
    return next((power * m for m in (1, 2, 2.5, 5) if power * m >= least * 0.999), power * 10)


def _ticks(low: float, high: float, step: float) -> tuple[tuple[float, str], ...]:
    power = math.floor(math.log10(step) + 1e-9)
    decimals = max(-power + (abs(step / 10.0**power - 2.5) < 0.01), 0)
    form = f",.{decimals}f" if decimals < 6 and max(abs(low), abs(high)) < 1e6 else ".3g"
    places = np.arange(math.ceil(low / step), math.floor(high / step) + 1) * step
    return tuple((float(v), f"{v + 0.0:{form}}".replace("-", MINUS)) for v in places)


def _log_ticks(low: float, high: float) -> tuple[tuple[float, str], ...]:
    if high / low < 4:  # hardly curved: round numbers serve better than powers
        return _ticks(low, high, _round_step((high - low) / 5))
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 1.5, 2, 3, 5, 7) if high / low < 30 else (1, 2, 5) if len(decades) < 5 else (1,)
    return tuple((v, f"{v:g}") for d in decades for f in factors if low <= (v := f * 10.0**d) <= high)


# ---------------------------------------------------------------------------------------------------------------- chart
def chart(
    marks: Sequence[Mark], x: Axis, y: Axis, *, height_px: int, said: str, y_title: str = "", lines_at: Sequence = ()
) -> str:
    """One chart as HTML.

    Args:
        marks: drawn in this order.
        x: the horizontal axis.
        y: the vertical one.
        height_px: of the drawing area.
        said: what it shows, for who cannot see it.
        y_title: above the axis.
        lines_at: places on x of faint vertical lines.
    """
    inner = "".join(f'<path class="seam" d="M{u:.0f} 0V{UNITS}"/>' for u in x.units(np.asarray(lines_at, float)))
    inner += "".join(f'<path class="grid" d="M0 {UNITS - u:.0f}H{UNITS}"/>' for u in _tick_units(y))
    inner += "".join(_drawn(mark, x, y) for mark in marks)
    labels = _end_labels([m for m in marks if isinstance(m, Line) and m.label], y, height_px)
    title = f'<div class="ytitle">{escape(y_title)}</div>' if y_title else ""
    return (
        f'<div class="chart{" wide" if not labels else ""}">{title}<div class="area" style="height:{height_px}px">'
        f'<svg viewBox="0 0 {UNITS} {UNITS}" preserveAspectRatio="none" role="img" aria-label="{escape(said)}">'
        f"{inner}</svg>{_axis_labels(x, y)}{labels}</div></div>"
    )


def _tick_units(axis: Axis) -> list[float]:
    return axis.units(np.array([value for value, _ in axis.ticks])).tolist()


def _axis_labels(x: Axis, y: Axis) -> str:
    is_crowded = sum(len(text) for _, text in x.ticks) > ROOM_CHARACTERS
    across = "".join(
        f'<span class="x{" odd" if is_crowded and i % 2 else ""}" style="left:{u / UNITS:.2%}">{escape(text)}</span>'
        for i, (u, (_, text)) in enumerate(zip(_tick_units(x), x.ticks, strict=True))
    )
    up = "".join(
        f'<span class="y" style="bottom:{u / UNITS:.2%}">{escape(text)}</span>'
        for u, (_, text) in zip(_tick_units(y), y.ticks, strict=True)
    )
    return across + up


def _end_labels(lines: Sequence[Line], y: Axis, height_px: int) -> str:
    """Names beside the last points, moved apart where they would cover each other."""
    wanted = []
    for line in lines:
        last = line.y[np.isfinite(line.y)]
        if last.size:
            wanted.append((float(y.units(last[-1:])[0]) / UNITS * height_px, line))
    wanted.sort(key=lambda pair: pair[0])
    places: list[float] = []
    for px, _ in wanted:
        places.append(max(px, places[-1] + LABEL_PX) if places else max(px, 0.0))
    overflow = places[-1] - height_px if places else 0.0
    for i in reversed(range(len(places))):  # push down what stuck out above
        ceiling = height_px if i == len(places) - 1 else places[i + 1] - LABEL_PX
        places[i] = min(places[i], ceiling) if overflow > 0 else places[i]
    return "".join(
        f'<span class="end {line.kind}" style="bottom:{px:.0f}px">{escape(line.label)}</span>'
        for px, (_, line) in zip(places, wanted, strict=True)
    )


def _drawn(mark: Mark, x: Axis, y: Axis) -> str:
    if isinstance(mark, Dots):
        return _dots(mark, x, y)
    if isinstance(mark, Band):
        rows = np.arange(len(mark.x)) if mark.is_stepped else _thinned_rows(len(mark.x))
        low, high = (_points(*_stairs(mark, mark.x[rows], edge[rows]), x, y) for edge in (mark.low, mark.high))
        return f'<path class="{mark.kind}" d="M{"L".join([*low, *reversed(high)])}Z"/>' if low and high else ""
    xs, ys = (mark.x, mark.y) if mark.is_stepped else thinned(mark.x, mark.y)
    points = _points(*_stairs(mark, xs, ys), x, y)
    return f'<path class="{mark.kind}" d="M{"L".join(points)}"/>' if points else ""


def _stairs(mark: Line | Band, xs: np.ndarray, ys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The points of a mark, twice as many where it is stepped."""
    return (np.repeat(xs, 2)[1:], np.repeat(ys, 2)[:-1]) if mark.is_stepped else (xs, ys)


def _dots(mark: Dots, x: Axis, y: Axis) -> str:
    places = zip(x.units(mark.x).tolist(), y.units(mark.y).tolist(), strict=True)
    known = [(i, u, v) for i, (u, v) in enumerate(places) if math.isfinite(u) and math.isfinite(v)]
    if not mark.titles:
        return f'<path class="{mark.kind}" d="{"".join(f"M{u:.0f} {UNITS - v:.0f}h0" for _, u, v in known)}"/>'
    return "".join(
        f'<path class="{mark.kind}" d="M{u:.0f} {UNITS - v:.0f}h0"><title>{escape(mark.titles[i])}</title></path>'
        for i, u, v in known
    )


def _points(xs: np.ndarray, ys: np.ndarray, x: Axis, y: Axis) -> list[str]:
    u, v = x.units(xs), UNITS - y.units(ys)
    known = np.isfinite(u) & np.isfinite(v)
    return [f"{a:.0f} {b:.0f}" for a, b in zip(u[known], v[known], strict=True)]


def thinned(x: np.ndarray, y: np.ndarray, most: int = MOST_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """At most about `most` points of a curve that keep its ends and, in every run of points, its extremes."""
    if len(x) <= most:
        return x, y
    edges = np.linspace(0, len(x), most // 2 + 1).astype(np.int64)
    filled = np.where(np.isfinite(y), y, np.nanmin(y) if np.isfinite(y).any() else 0.0)
    rows = {0, len(x) - 1}
    for a, b in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        rows |= {a + int(filled[a:b].argmin()), a + int(filled[a:b].argmax())}
    kept = np.array(sorted(rows))
    return x[kept], y[kept]


def _thinned_rows(n: int) -> np.ndarray:
    return np.unique(np.linspace(0, n - 1, min(n, MOST_POINTS // 2)).astype(np.int64))
