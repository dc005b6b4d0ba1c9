"""Daily page of a trader: a self-contained HTML file `reports/DATE.html` with the same texts as the terminal view.

Days are UTC, and a bar belongs to the day on which it closes. In a replay, the days are those of the recorded bars.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Template
from markupsafe import Markup
from matplotlib.figure import Figure

from market.files import write_whole
from paper_trading import words
from paper_trading.drift import Causes
from paper_trading.journal import FILE
from paper_trading.story import DAY_S, Curves, Order, Reader, Story, day_of
from train.report.charts import AGENT, DASHES, EQUAL, INK, inline_svg, name_ends, name_time, thinned
from train.report.page import environment
from train.watch.logtail import plain_text

REPORTS = "reports"
MOST_ORDERS = 300
NONE = "-"


@dataclass(frozen=True)
class Before:
    """State of the story at the start of the day."""

    n_decisions: int
    causes: Causes
    skipped: Counter[str]
    missed: Counter[str]

    @classmethod
    def of(cls, story: Story) -> Before:
        """Return a copy of the story's counters."""
        drift = story.drift
        return cls(len(story.curves.bar_s), drift.causes, Counter(story.skipped), Counter(drift.n_missed))


def write_day(folder: Path, day: date | None = None) -> Path:
    """Write the page of a day from an account's journal, and return its path.

    Args:
        folder: folder of the account.
        day: UTC day; None selects the day of the last bar.

    Raises:
        OSError: if the journal cannot be read or the page cannot be written.
    """
    if day is None:
        bar_s = Reader(folder / FILE).refresh().bar_s
        day = datetime.now(UTC).date() if bar_s is None else day_of(bar_s)
    reader = Reader(folder / FILE)
    start_s = datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()
    morning = reader.refresh(start_s)
    before = Before.of(morning)
    story = reader.refresh(start_s + DAY_S)
    if story is not morning:  # the account was restarted from scratch
        before = Before.of(Story())
    path = folder / REPORTS / f"{day}.html"
    path.parent.mkdir(exist_ok=True)
    write_whole(path, page(story, day, before, folder.name, reader.damage).encode())
    return path


def page(story: Story, day: date, before: Before, account: str, damage: str) -> str:
    """Return the page as HTML."""
    marks, orders = words.marks_of(story, None), story.orders_of(day)
    d = story.decision
    return _template().render(
        title=f"{account}, {day}",
        marks=marks,
        kind="synthetic" if len(marks) > 1 or story.start is None else marks[0].lower(),
        made=f"Written {datetime.now(UTC):%Y-%m-%d %H:%M} UTC from {FILE}; days are UTC.",
        facts=list(_facts(story, before)),
        verdict=list(_verdict(story, before, damage)),
        notes=list(_notes(story, day)),
        charts=list(_charts(story.curves, before)),
        orders=[_order_row(story, order) for order in orders[-MOST_ORDERS:]],
        n_hidden=max(len(orders) - MOST_ORDERS, 0),
        slippage=words.percent(story.start.slippage_rate, ".3%") if story.start else words.UNKNOWN,
        causes=list(_causes(story, before)) if d and d.sim_equity is not None else [],
        costs=[
            ("fees since the start", words.fees_text(story.drift, d.fees if d else None)),
            ("slippage since the start", words.slippage_text(story.drift)),
        ],
        records=words.records_of(story),
        limits=[
            (*row[:3], NONE if row[3] is None else words.percent(row[3], ".0%")) for row in words.limit_rows(story)
        ],
        missed=[
            (name, f"{words.missed_text(now - then)} on this day; {words.missed_text(now)} since the start")
            for name, now, then in (
                ("bars without orders", story.skipped, before.skipped),
                ("unfilled orders", story.drift.n_missed, before.missed),
            )
        ],
    )


@cache
def _template() -> Template:
    return environment("paper_trading", "train.report").get_template("day_page.html.j2")


# ---------------------------------------------------------------------------------------------------------------- words
def _facts(story: Story, before: Before) -> Iterator[tuple[str, str]]:
    start, d = story.start, story.decision
    yield "deployment", story.deployment or words.UNKNOWN
    if start is not None:
        yield "study", plain_text(start.study or words.UNKNOWN)
        yield "coins", plain_text(", ".join(start.tickers))
        yield "bars", f"{start.bar_seconds / 60:g} min"
        yield "code", plain_text(start.code_version or words.UNKNOWN)
    yield "state", f"{story.state or words.UNKNOWN}{f': {story.why}' if story.why else ''}"
    yield (
        "decisions",
        f"{len(story.curves.bar_s) - before.n_decisions:,} on this day, {len(story.curves.bar_s):,} in total",
    )
    yield "last bar", words.clock(story.bar_s)
    yield "equity, cash", f"{words.usd(d.equity)}, {words.usd(d.cash)}" if d else words.NO_DECISION


def _verdict(story: Story, before: Before, damage: str) -> Iterator[str]:
    if damage:
        yield f"The journal is damaged: {damage}. This page shows the events before the damage."
    c, n, d = story.curves, before.n_decisions, story.decision
    if d is None or len(c.bar_s) == n:
        yield "The trader made no decisions on this day."
    else:
        first = max(n - 1, 0)
        gains = [_gain(values[first], values[-1]) for values in (c.equity, c.sim_equity, c.benchmark)]
        trader, simulator, equal = (words.percent(gain) for gain in gains)
        yield (
            f"The account ended the day at {words.usd(d.equity)}, a return of {trader}. On the same bars, the "
            f"simulator returned {simulator} and equal weight returned {equal}."
        )
    if d is not None and story.ratio is not None:
        causes = {name: value for name, value in asdict(story.drift.causes).items() if abs(value) >= 0.005}
        largest = max(causes, key=lambda name: abs(causes[name]), default="")
        why = f" Largest cause: {words.CAUSES[largest]} ({words.usd(causes[largest], '+,.2f')})." if largest else ""
        apart = words.percent(story.ratio, "+.3%")
        yield f"Since the start, the trader's equity differs from the simulator's by {apart}.{why}"
    what, said = words.records_of(story)[-1]
    yield f"Skill ({what}): {said}."
    if story.start is not None and story.start.synthetic:
        yield "The market is synthetic, so these results do not apply to real coins."
    if story.start is not None and story.start.in_sample:
        yield "The policy was trained on some of these bars, so these results do not apply to unseen bars."


def _gain(first: float | None, last: float | None) -> float | None:
    return last / first - 1.0 if first and last is not None else None


def _notes(story: Story, day: date) -> Iterator[tuple[str, str, str]]:
    for name, notes in (
        ("state", story.states), ("deployment", story.deployments), ("foreign", story.foreign),
        ("drift", story.drifts), ("bars", story.bar_notes), ("end", [story.ended] if story.ended else []),
    ):  # fmt: skip
        yield from ((name, words.clock(note.at_s), note.text) for note in notes if day_of(note.at_s) == day)


def _causes(story: Story, before: Before) -> Iterator[tuple[str, str, str, str]]:
    drift, equity = story.drift, story.decision.equity if story.decision else 0.0
    today = words.drift_rows(drift.causes - before.causes, drift, equity)
    for (name, value, _), (_, total, share) in zip(today, words.drift_rows(drift.causes, drift, equity), strict=True):
        yield name, value.removesuffix(words.USD), total.removesuffix(words.USD), share  # the header has the unit
    all_day, total = (words.usd(c.total, "+,.2f") for c in (drift.causes - before.causes, drift.causes))
    share = words.share(drift.causes.total, equity)
    yield "trader minus simulator", all_day.removesuffix(words.USD), total.removesuffix(words.USD), share


def _order_row(story: Story, order: Order) -> dict[str, str]:
    fill, rates = order.fill, story.start.rates if story.start else None
    expected = rates.price(order.price, order.sign) if rates and order.price else None
    fee = fill.qty * fill.price * rates.fee(order.sign) if fill and rates else None
    return {
        "at": f"{datetime.fromtimestamp(order.bar_s, UTC):%H:%M}",
        "what": f"{order.side} {plain_text(order.ticker)} ({order.why})",
        "qty": words.coins(order.qty) if order.qty else NONE,
        "filled": words.coins(order.filled_qty) if order.filled_qty else NONE,
        "end": order.status.replace("_", " ") + (f": {order.reason}" if order.reason else ""),
        "close": _price(order.price or None),
        "mid": words.UNKNOWN if order.mid is None else _price(float(order.mid)),
        "expected": _price(expected),
        "paid": f"{_price(fill.price)} ({words.worse_bp(order)})" if fill else NONE,
        "fee_expected": NONE if fee is None else f"{fee:,.4f}",
        "fee_paid": NONE if fill is None else words.UNKNOWN if fill.fee is None else f"{fill.fee:,.4f}",
    }


def _price(value: float | None) -> str:
    return words.UNKNOWN if value is None else f"{value:,.6g}" if value < 1e5 else f"{value:,.2f}"


# --------------------------------------------------------------------------------------------------------------- charts
def _charts(curves: Curves, before: Before) -> Iterator[tuple[str, Markup]]:
    """Yield the chart of the day and, if it is longer, the chart since the start."""
    first = max(before.n_decisions - 1, 0)
    for name, start in (("this day", first), ("since the start", 0)):
        if len(curves.bar_s) - start >= 2 and (name == "this day" or first > 0):
            yield name, inline_svg(f"equity, {name}", 2.9, lambda figure, start=start: _draw(figure, curves, start))


def _draw(figure: Figure, curves: Curves, start: int) -> None:
    axes = figure.subplots()
    time = np.array(curves.bar_s[start:], dtype="datetime64[s]")
    ends = []
    lines: tuple[tuple[str, Sequence[float | None], str, dict[str, Any]], ...] = (
        ("equal w.", curves.benchmark, EQUAL, {"linewidth": 1.1, "linestyle": DASHES}),
        ("trader", curves.equity, AGENT, {"linewidth": 1.8}),
        ("sim.", curves.sim_equity, INK, {"linewidth": 1.1, "linestyle": ":"}),
    )
    for name, values, color, style in lines:
        curve = _relative(values[start:])
        if np.isfinite(curve).any():
            axes.plot(*thinned(time, curve), color=color, **style)
            ends.append((name, float(curve[-1]), color))
    axes.set_xlim(time[0], time[-1])
    name_time(axes, "equity (start = 1)")
    axes.set_ylim(axes.get_ylim())
    name_ends(axes, ends)


def _relative(values: Sequence[float | None]) -> np.ndarray:
    """Return the values (n,) divided by the first one."""
    curve = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return curve / curve[0]
