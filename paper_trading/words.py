"""Texts that the terminal view and the daily page share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from datetime import UTC, datetime
from decimal import Decimal
from math import isinf

from paper_trading.drift import Causes, DriftFold, TrackRecord, track_record
from paper_trading.story import OPEN, Order, Story
from paper_trading.trader_status import ALIVE, DEAD, PROGRAM, SILENT, Status
from train.study.progress import duration_text
from train.watch.logtail import plain_text

UNKNOWN = "unknown"
NO_FILL = f"{UNKNOWN}: no fill yet"
NO_DECISION = f"{UNKNOWN}: no decision yet"
INSIDE, BELOW, ABOVE, AT_TARGET = "inside the band", "below the band", "above the band", "at target"
LEAST_MOVE = 0.0005  # weight; a smaller distance from the target rounds to 0.0 %
CAUSES = {
    "fee": "fees: paid fee vs. simulator's rate",
    "spread": "spread: fill price vs. mid, beyond slippage",
    "delay": "delay: mid at sending vs. bar's close",
    "spread_and_delay": "spread and delay of fills without a mid",
    "rounding": "rounding to the venue's lot size",
    "missed": "unfilled and unsent orders",
    "path": "remainder: different positions and sizes",
}
LIMITS = {
    "max_order_weight": "largest buy of the bar",
    "max_bar_turnover": "turnover of the bar",
    "max_day_turnover": "turnover of the day (UTC)",
    "max_position_weight": "largest position",
    "max_drawdown": "drawdown",
    "max_rejects": "consecutive rejections",
    "max_price_move": "largest price move of the bar",
    "max_drift": "difference from the simulator",
}
COUNTED = ("max_rejects",)  # limits that are counts, not fractions


# --------------------------------------------------------------------------------------------------------------- values
USD = " USD"


def usd(value: float | None, form: str = ",.2f") -> str:
    """Format an amount as `10,012.30 USD`."""
    return UNKNOWN if value is None else _without_minus_zero(f"{value:{form}}{USD}")


def _without_minus_zero(text: str) -> str:
    """Remove the sign of a number that is rounded to 0."""
    return text if any(digit in text for digit in "123456789") else text.lstrip("+-")


def percent(value: float | None, form: str = "+.2%") -> str:
    """Format a fraction as `+0.12%`."""
    return UNKNOWN if value is None else _without_minus_zero(f"{value:{form}}")


def share(part: float, equity: float) -> str:
    """Format an amount as a share of equity, `-0.129%`, or as unknown without equity."""
    return percent(part / equity, "+.3%") if equity > 0.0 else UNKNOWN


def coins(quantity: Decimal) -> str:
    """Format a quantity as `0.0135`, with the precision of venues."""
    return f"{quantity:.9f}".rstrip("0").rstrip(".")


def clock(seconds: float | None) -> str:
    """Format UTC seconds as `2026-11-30 18:05 UTC`."""
    return UNKNOWN if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"


def marks(mode: str, synthetic: bool | None, in_sample: bool | None, proven: bool | None) -> list[str]:
    """Return the marks that are displayed first, such as PAPER or SYNTHETIC."""
    found = [mode]
    if synthetic:
        found.append("SYNTHETIC")
    if in_sample:
        found.append("IN-SAMPLE")
    if proven is False:
        found.append("UNPROVEN")
    return found


def marks_of(story: Story, status: Status | None) -> list[str]:
    """Return the marks of the journal's last start, or else of the heartbeat."""
    said = story.start or status
    if said is None:
        return ["UNKNOWN"]
    found = marks(plain_text(said.mode), said.synthetic, said.in_sample, said.proven)
    return found + (["DRAWN FAULTS"] if story.start is not None and story.start.faults else [])


# ---------------------------------------------------------------------------------------------------------------- state
def life_text(status: Status | None, now: datetime, story: Story) -> tuple[str, str]:
    """Return the trader's status, such as `ALIVE` (or "" if unknown), and its description."""
    if status is None:
        return "", f"{UNKNOWN} whether a trader is running: no status file"
    life = status.life(now, story.ended is not None)
    ago = duration_text(max((now - status.utc).total_seconds(), 0.0))
    if life == ALIVE:
        return life, f"alive: pid {status.pid}, heartbeat {ago} ago"
    if life == SILENT:
        return life, f"SILENT: pid {status.pid} is running, but its last heartbeat was {ago} ago"
    if life == DEAD:
        return (
            life,
            f"DEAD: pid {status.pid} has died, last heartbeat {ago} ago. Restart it with the same flags: {PROGRAM}",
        )
    return life, f"ended {ago} ago: {story.ended.text if story.ended else UNKNOWN}"


def reason(story: Story, i: int) -> str:
    """Compare the weight of a coin with its band or target at the last decision."""
    d = story.decision
    if d is None:
        return NO_DECISION
    weight = d.weights[i]
    lo, hi = d.lo[i] if d.lo else None, d.hi[i] if d.hi else None
    if lo is not None and hi is not None:
        return BELOW if weight < lo else ABOVE if weight > hi else INSIDE
    target = d.target[i] if d.target else None
    if target is None:
        return "no target weight"
    return AT_TARGET if abs(target - weight) < LEAST_MOVE else f"{percent(target - weight, '+.1%')} to target"


def worse_bp(order: Order) -> str:
    """Format the slippage of a fill from the bar's close as `+4.9 bp`; positive values are costs."""
    if not order.price or order.fill_price is None:
        return UNKNOWN
    return f"{order.sign * (float(order.fill_price) / order.price - 1.0) * 1e4:+.1f} bp"


def order_text(order: Order) -> str:
    """Format an order as `18:05 buy 0.1 BTC: filled at 60,000.1, +1.7 bp (policy)`."""
    size = f"{coins(order.qty)} " if order.qty else ""
    head = f"{datetime.fromtimestamp(order.bar_s, UTC):%H:%M} {order.side} {size}{plain_text(order.ticker)}"
    said = "sent, no response yet" if order.status == OPEN else order.status.replace("_", " ")
    if order.filled_qty > 0 and order.fill_price is not None:
        part = "" if order.filled_qty >= order.qty else f" {coins(order.filled_qty)}"
        said += f"{part} at {float(order.fill_price):,.6g}, {worse_bp(order)}"
    return f"{head}: {said}" + (f", {order.reason}" if order.reason else "") + f" ({order.why})"


# --------------------------------------------------------------------------------------------------------- money, drift
def fees_text(drift: DriftFold, fees: float | None) -> str:
    """Describe the paid fees and the expected fees of the same fills."""
    if not drift.n_fills:
        return NO_FILL
    if not drift.n_without_fee:
        return f"{usd(fees)} paid, {usd(drift.expected_fees)} expected ({drift.n_fills} fills)"
    known = f"{drift.n_fills - drift.n_without_fee} of {drift.n_fills} fills"
    return f"{usd(fees)} paid. Fees known for {known}: {usd(drift.fees)} paid, {usd(drift.expected_fees)} expected"


def slippage_text(drift: DriftFold) -> str:
    """Describe the average slippage of the fills from the bar's close, and the simulator's slippage."""
    if not drift.n_fills:
        return NO_FILL
    actual, expected = (value / drift.notional * 1e4 for value in (drift.slippage, drift.expected_slippage))
    return f"{actual:+.1f} bp from the close on average, {expected:.1f} bp expected ({drift.n_fills} fills)"


def drift_rows(causes: Causes, drift: DriftFold, equity: float) -> list[tuple[str, str, str]]:
    """Return rows of cause, USD and share of equity as texts. Causes without data are unknown."""
    rows = []
    for f in fields(causes):
        value = getattr(causes, f.name)
        is_split = f.name in ("spread", "delay")
        if f.name == "spread_and_delay" and not drift.n_without_mid:
            continue
        if is_split and drift.n_without_mid == drift.n_fills:
            why = f"{UNKNOWN}: no mid" if drift.n_fills else NO_FILL
            rows.append((CAUSES[f.name], why, ""))
            continue
        rows.append((CAUSES[f.name], usd(value, "+,.2f"), share(value, equity)))
    return rows


def missed_text(counts: dict[str, int]) -> str:
    """Format counts as `5 (3 rejected; 2 partial)`."""
    total = sum(counts.values())
    known = sorted(((name.replace("_", " "), n) for name, n in counts.items() if n), key=lambda item: -item[1])
    parts = "; ".join(f"{n} {name}" for name, n in known)
    return f"{total} ({parts})" if total else "none"


def limit_rows(story: Story) -> list[tuple[str, str, str, float | None]]:
    """Return rows of limit, used value, bound and used fraction, which is None if unknown or without a bound."""
    limits, rows = story.start.limits if story.start else {}, []
    for name, used in story.uses().items():
        bound = limits.get(name)
        share = used / bound if used is not None and bound else None
        rows.append((LIMITS[name], _limit(name, used), "none" if bound is None else _limit(name, bound), share))
    return rows


def _limit(name: str, value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.0f}" if name in COUNTED else percent(value, ".1%")


# --------------------------------------------------------------------------------------------------------- track record
def records_of(story: Story) -> list[tuple[str, str]]:
    """Return the names and descriptions of the track records relative to 0 and to equal weight."""
    c, bar_seconds = story.curves, story.start.bar_seconds if story.start else 0
    rows = [("return above 0", record_text(track_record(c.equity), bar_seconds))]
    benchmark = [value for value in c.benchmark if value is not None]
    if len(benchmark) == len(c.equity):
        rows.append(("return above equal weight", record_text(track_record(c.equity, benchmark), bar_seconds)))
    return rows


def record_text(record: TrackRecord, bar_seconds: int) -> str:
    """Format a record as `confidence 62% after 599 bars; 95% needs 12,000 more bars (41.7 d) at this ratio`."""
    if record.confidence is None or record.more_bars is None:
        return f"{UNKNOWN}: {record.why_unknown}"
    sure = "above 99%" if record.confidence > 0.99 else percent(record.confidence, ".0%")  # never "100%"
    head = f"confidence {sure} after {record.n_returns:,} bars"
    if isinf(record.more_bars):
        return f"{head}; 95% is unreachable at this ratio"
    if not record.more_bars:
        return f"{head}; enough bars for 95% if returns are independent"
    days = record.more_bars * bar_seconds / 86_400
    return f"{head}; 95% needs {record.more_bars:,.0f} more bars ({days:,.1f} d) at this ratio"


def tail(texts: Sequence[str], most: int) -> list[str]:
    """Return the last texts, newest first, and the number of earlier ones."""
    shown = list(texts[-most:][::-1])
    return shown + ([f"and {len(texts) - most} earlier"] if len(texts) > most else [])
