"""Quality report of a dataset's source bars, as plain JSON values for printing, the manifest and pictures.

The metrics of a coin cover its own span, from its first to its last bar, at the source's timeframe before resampling. A
bar that is missing from the source is counted as missing, even if `fill_gaps` filled it. Prices, volumes and moves are
those of existing bars in sequence. So a move over a gap belongs to the first bar after it, and a gap does not interrupt
a run of flat bars. A source bar that only repeats the last close without volume exists, and is counted as repeated and
as filled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from market.bars.candles import PRICES, BarGrid, segments_of
from market.times import utc_text

FILL_RULE = "last close, zero volume"
LISTED_GAPS = 5
TIMELINE_BINS = 600  # largest number of characters of a timeline
TIMELINE_KINDS = ("missing", "filled", "zero_volume", "jumps")
JUMP = 0.05  # |log return|
LARGE_JUMP = 0.10
STRANGE_MOVE = 0.7  # |log return| that halves or doubles a price: a split, a different coin, or a wrong unit
MANY_MISSING = 0.10
MANY_FILLED = 0.02
FEW_USED = 0.5


def gap_report(grid: BarGrid, max_fill_bars: int) -> dict[str, Any]:
    """Return the report of all coins. `grid` is the result of `fill_gaps` at the source's timeframe."""
    bin_bars = max(-(-len(grid.time) // TIMELINE_BINS), 1)
    tickers = {ticker: _ticker_report(grid, a, bin_bars) for a, ticker in enumerate(grid.tickers)}
    return {
        "source_bar_seconds": grid.bar_seconds,
        "source_first_open_s": int(grid.time[0]),
        "source_bars": len(grid.time),
        "max_fill_bars": max_fill_bars,
        "fill_rule": FILL_RULE,
        "tickers": tickers,
        "timeline_bin_bars": bin_bars,
        "warnings": [warning for a in range(len(grid.tickers)) for warning in _warnings(grid, a)],
    }


def has_report(quality: Mapping[str, Any], tickers: Sequence[str]) -> bool:
    """Return True if `quality` is a report of `gap_report` on these coins. Manually made datasets have none."""
    reports = quality.get("tickers")
    return "timeline_bin_bars" in quality and isinstance(reports, dict) and set(tickers) <= set(reports)


def account_of_bars(grid: BarGrid, kept: Sequence[tuple[int, int]], warmup_bars: int) -> dict[str, Any]:
    """Count used and dropped bars of the dataset's timeframe. `used_bars` and all `dropped_bars` add up to `grid_bars`.

    Args:
        grid: all bars, resampled.
        kept: runs from `segments_of(grid)` that are long enough, including warm-up.
        warmup_bars: number of rows dropped at the start of each run.
    """
    lengths = [last - first for first, last in kept]
    whole = [last - first for first, last in segments_of(grid)]
    there = ~grid.missing
    began = np.maximum.accumulate(there, axis=0)
    goes_on = np.maximum.accumulate(there[::-1], axis=0)[::-1]
    outside = int((~(began & goes_on)).any(axis=1).sum())
    warmup = warmup_bars * len(kept)
    return {
        "grid_bars": len(grid.time),
        "used_bars": sum(lengths) - warmup,
        "dropped_bars": {
            "outside": outside,
            "gaps": len(grid.time) - sum(whole) - outside,
            "too_short": sum(whole) - sum(lengths),
            "warmup": warmup,
        },
    }


def warn_of_few(report: dict[str, Any]) -> dict[str, Any]:
    """Return the report. If most bars cannot be used, its first warning names the worst coin."""
    used, there = report["used_bars"], report["grid_bars"]
    if used >= FEW_USED * there:
        return report
    names = ("outside_bars", "missing_bars", "repeated_bars")
    lacking = {coin: sum(found.get(name, 0) for name in names) for coin, found in report["tickers"].items()}
    worst = max(lacking, key=lambda name: lacking[name])
    cause = f"; {worst} lacks the most bars, {lacking[worst]} of {report['source_bars']}" if lacking[worst] else ""
    return report | {"warnings": [f"only {used} of {there} bars can be used{cause}", *report["warnings"]]}


def _ticker_report(grid: BarGrid, asset: int, bin_bars: int) -> dict[str, Any]:
    present = _present(grid, asset)
    rows = np.flatnonzero(present)
    first, last = int(rows[0]), int(rows[-1]) + 1
    gaps = _runs(~present[first:last]) + first
    gap_bars = gaps[:, 1] - gaps[:, 0]
    order = np.argsort(-gap_bars, kind="stable")[:LISTED_GAPS]
    longest = [[utc_text(int(grid.time[gaps[i, 0]])), int(gap_bars[i])] for i in order]
    report = {
        "first_open": utc_text(grid.time[first]),
        "last_open": utc_text(grid.time[last - 1]),
        "bars": len(rows),
        "outside_bars": len(present) - (last - first),
        "missing_bars": (last - first) - len(rows),
        "filled_bars": int(grid.filled[:, asset].sum()),
        "gaps": len(gaps),
        "longest_gap_bars": int(gap_bars.max(initial=0)),
        "longest_gap_start": longest[0][0] if longest else None,
        "longest_gaps": longest,
    }
    if n_repeated := int(_repeated(grid, asset).sum()):
        report["repeated_bars"] = n_repeated  # omitted if 0, so that reports without them keep their hash
    report |= _volume_report(grid, asset, rows) | _flat_report(grid, asset, rows) | _move_report(grid, asset)
    return report | {"timeline": _timeline(grid, asset, rows, bin_bars)}


def _present(grid: BarGrid, asset: int) -> np.ndarray:
    """Return the bars from the source, (T,) bool."""
    return _traded(grid, asset) | grid.untraded[:, asset]


def _traded(grid: BarGrid, asset: int) -> np.ndarray:
    """Return the bars from the source with their own price, (T,) bool."""
    return ~(grid.missing[:, asset] | grid.filled[:, asset])


def _repeated(grid: BarGrid, asset: int) -> np.ndarray:
    """Return source bars that only repeat the last close, (T,) bool. `fill_gaps` treats them as filled."""
    return grid.untraded[:, asset] & ~_traded(grid, asset)


def _runs(mask: np.ndarray) -> np.ndarray:
    """Return first and last_exclusive index of each run of True values, (runs, 2)."""
    edges = np.diff(np.concatenate([[0], mask.astype(np.int8), [0]]))
    return np.flatnonzero(edges).reshape(-1, 2)


def _longest_run(mask: np.ndarray, time: np.ndarray) -> tuple[int, str | None]:
    """Return the length of the longest run of True values and its start time. The first of equal runs is used."""
    runs = _runs(mask)
    if len(runs) == 0:
        return 0, None
    first, last = runs[int((runs[:, 1] - runs[:, 0]).argmax())]
    return int(last - first), utc_text(int(time[first]))


def _volume_report(grid: BarGrid, asset: int, rows: np.ndarray) -> dict[str, Any]:
    """Report bars without trades, or None if the source has no volumes."""
    is_known = not np.isnan(grid.volume[rows, asset]).all()
    return _run_report("zero_volume", _is_zero_volume(grid, asset)[rows], grid.time[rows], is_known)


def _is_zero_volume(grid: BarGrid, asset: int) -> np.ndarray:
    """Return bars without volume, (T,) bool, including filled bars."""
    return grid.untraded[:, asset] | (grid.volume[:, asset] == 0)


def _flat_report(grid: BarGrid, asset: int, rows: np.ndarray) -> dict[str, Any]:
    """Report bars with open = high = low = close, or None if the source has only closes."""
    opens, high, low, close = (getattr(grid, name)[rows, asset] for name in PRICES)
    is_flat = (high == low) & (opens == close) & (opens == high) | _repeated(grid, asset)[rows]
    return _run_report("flat", is_flat, grid.time[rows], is_known=not np.isnan(opens).all())


def _run_report(kind: str, is_such: np.ndarray, time: np.ndarray, is_known: bool) -> dict[str, Any]:
    names = (f"{kind}_bars", f"longest_{kind}_run", f"longest_{kind}_start")
    values = (int(is_such.sum()), *_longest_run(is_such, time)) if is_known else (None, None, None)
    return dict(zip(names, values, strict=True))


def _moves(grid: BarGrid, asset: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the log return of each existing bar over the previous one, (bars - 1,), and its row.

    Repeated bars are skipped.
    """
    rows = np.flatnonzero(_traded(grid, asset))
    return np.diff(np.log(grid.close[rows, asset])), rows[1:]


def _move_report(grid: BarGrid, asset: int) -> dict[str, Any]:
    """Report jumps: bars with |log return| above 5 % and 10 %, and the largest one with its sign."""
    moves, rows = _moves(grid, asset)
    report: dict[str, Any] = {
        "ret_gt_5pct": int((np.abs(moves) > JUMP).sum()),
        "ret_gt_10pct": int((np.abs(moves) > LARGE_JUMP).sum()),
        "max_logret": 0.0,
        "max_logret_at": None,
    }
    if len(moves):
        largest = int(np.abs(moves).argmax())
        # Twelve digits, because further digits differ between processors and the value is part of the dataset's hash.
        report["max_logret"] = float(f"{moves[largest]:.12g}")
        report["max_logret_at"] = utc_text(int(grid.time[rows[largest]]))
    return report


def _timeline(grid: BarGrid, asset: int, rows: np.ndarray, bin_bars: int) -> dict[str, str]:
    """Return the grid in equal bins, one character each: `.` for none, otherwise ninths of the bin's bars, rounded up.

    Kinds that never occur are omitted; see TIMELINE_KINDS. Bars outside the coin's span count in no kind.
    """
    n_bars = len(grid.time)
    places = {kind: np.zeros(n_bars, dtype=bool) for kind in TIMELINE_KINDS}
    places["missing"][rows[0] : rows[-1] + 1] = grid.missing[rows[0] : rows[-1] + 1, asset]
    places["filled"] = grid.filled[:, asset]
    places["zero_volume"][rows] = _is_zero_volume(grid, asset)[rows]
    moves, moved = _moves(grid, asset)
    places["jumps"][moved] = np.abs(moves) > JUMP
    starts = np.arange(0, n_bars, bin_bars)
    sizes = np.diff(np.append(starts, n_bars))
    counts = {kind: np.add.reduceat(place.astype(np.int64), starts) for kind, place in places.items()}
    ninths = {kind: -(-count * 9 // sizes) for kind, count in counts.items() if count.any()}
    return {kind: "".join(str(n) if n else "." for n in shares.tolist()) for kind, shares in ninths.items()}


def _warnings(grid: BarGrid, asset: int) -> Iterator[str]:
    """Yield the coin's warnings, one line each."""
    ticker, rows = grid.tickers[asset], np.flatnonzero(_present(grid, asset))
    traded, (moves, moved) = _traded(grid, asset), _moves(grid, asset)
    close, volume = grid.close[traded, asset], grid.volume[traded, asset]
    if (close == close[0]).all():
        yield f"{ticker}: the price is {close[0]:g} in every bar; nothing can be learned or traded on it"
    if (volume == 0).all():
        yield f"{ticker}: the volume is 0 in every bar"
    span = int(rows[-1] - rows[0]) + 1
    if span - len(rows) > MANY_MISSING * span:
        yield f"{ticker}: {span - len(rows)} of {span} bars are missing ({(span - len(rows)) / span:.0%})"
    n_repeated, n_still = int(_repeated(grid, asset).sum()), int((traded & grid.untraded[:, asset]).sum())
    if n_repeated > MANY_FILLED * span:
        yield f"{ticker}: {n_repeated} of {span} bars repeat the last close without volume; no order fills in them"
    if n_still > MANY_FILLED * span:
        yield f"{ticker}: {n_still} of {span} bars have prices but no volume; no order fills in them"
    n_filled = int(grid.filled[:, asset].sum())
    if n_filled > MANY_FILLED * span:
        yield f"{ticker}: {n_filled} of {span} bars are made up by filling ({n_filled / span:.0%})"
    if len(moves) and np.abs(moves).max() > STRANGE_MOVE:
        at = utc_text(int(grid.time[moved[int(np.abs(moves).argmax())]]))
        yield f"{ticker}: the price moves by a factor of {np.exp(np.abs(moves).max()):.3g} in the bar of {at}"
