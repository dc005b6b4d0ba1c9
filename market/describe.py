"""Text report of a dataset: aligned tables of quality, segments, prices and features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from market.bars.quality import FILL_RULE, LISTED_GAPS, has_report
from market.dataset import Dataset
from market.names import known_currency, timeframe_name
from market.times import utc_text

LISTED_SEGMENTS = 12
LISTED_COLUMNS = 8
LARGE_FEATURE = 1_000.0  # network inputs should be near 1
STUCK_SHARE = 0.9  # fraction of rows with the same value
SAMPLED_ROWS = 20_000
DROPPED = {
    "outside": "before a coin's first bar or after its last",
    "gaps": "in gaps",
    "too_short": "in runs that are too short",
    "warmup": "warm-up of the features",
}


def aligned(head: Sequence[str], rows: Sequence[Sequence[object]], indent: str = "  ") -> list[str]:
    """Return table rows padded to equal column widths: first column left, others right. None is shown as `-`."""
    cells = [[*head], *([("-" if cell is None else str(cell)) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]

    def line(row: Sequence[str]) -> str:
        first, *others = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return (indent + "  ".join([first, *others])).rstrip()

    return [line(row) for row in cells]


def quality_lines(dataset: Dataset) -> list[str]:
    """Return the quality report of the bars from which the dataset was built."""
    quality = dataset.quality
    if not has_report(quality, dataset.tickers):
        return ["no quality report in the manifest"]
    step, first = quality["source_bar_seconds"], quality["source_first_open_s"]
    last = first + step * (quality["source_bars"] - 1)
    lines = [
        f"source: {quality['source_bars']} bars of {timeframe_name(step)} per coin, opens {utc_text(first)} .. "
        f"{utc_text(last)} UTC; each coin is counted from its first bar to its last",
        _fill_line(quality),
    ]
    reports = {ticker: quality["tickers"][ticker] for ticker in dataset.tickers}
    return [*lines, *_coverage(reports), *_activity(reports), *_longest_gaps(reports), *_warning_lines(quality)]


def _fill_line(quality: Mapping[str, Any]) -> str:
    longest = quality["max_fill_bars"]
    if quality["fill_rule"] != FILL_RULE:
        return f"fill rule {quality['fill_rule']}"
    if longest == 0:
        return "filled: none; every missing bar splits the data"
    return f"filled: the first {longest} missing bars of a gap, by {quality['fill_rule']}; a longer gap splits the data"


def _coverage(reports: Mapping[str, Mapping[str, Any]]) -> list[str]:
    head = ("coin", "first open", "last open", "bars", "missing", "repeated", "filled", "gaps")
    names = ("first_open", "last_open", "bars", "missing_bars", "repeated_bars", "filled_bars", "gaps")
    head, names = (*head, "longest gap", "starts at"), (*names, "longest_gap_bars", "longest_gap_start")
    # Reports omit `repeated_bars` if there are none.
    return aligned(head, [(coin, *(report.get(name, 0) for name in names)) for coin, report in reports.items()])


def _activity(reports: Mapping[str, Mapping[str, Any]]) -> list[str]:
    head = ("coin", "no volume", "longest run", "starts at", "flat", "longest run", "starts at")
    names = ("zero_volume_bars", "longest_zero_volume_run", "longest_zero_volume_start")
    names += ("flat_bars", "longest_flat_run", "longest_flat_start", "ret_gt_5pct", "ret_gt_10pct")
    head += ("moves > 5 %", "> 10 %", "largest log return", "at")
    rows = []
    for ticker, report in reports.items():
        largest = f"{100.0 * report['max_logret']:+.2f} %"
        rows.append((ticker, *(report[name] for name in names), largest, report["max_logret_at"]))
    return aligned(head, rows)


def _longest_gaps(reports: Mapping[str, Mapping[str, Any]]) -> list[str]:
    found = [(bars, start, ticker) for ticker, report in reports.items() for start, bars in report["longest_gaps"]]
    found = sorted(found, key=lambda gap: -gap[0])[:LISTED_GAPS]
    listed = ", ".join(f"{ticker} {bars} bars from {start}" for bars, start, ticker in found)
    return [f"longest gaps: {listed}"] if found else []


def _warning_lines(quality: Mapping[str, Any]) -> list[str]:
    return [f"WARNING {warning}" for warning in quality["warnings"]]


def segment_lines(dataset: Dataset) -> list[str]:
    """Return the dropped bars with their reasons, followed by the segments with their dates."""
    lengths = [last - first for first, last in dataset.segments]
    lines = list(_dropped_lines(dataset))
    lines.append(f"segments: {len(lengths)}, {sum(lengths)} bars; bars without trades: {_filled_text(dataset)}")
    shown = dataset.segments[:LISTED_SEGMENTS]
    rows = [
        (f"{first}..{last}", f"{last - first} bars", utc_text(dataset.time[first]), utc_text(dataset.time[last - 1]))
        for first, last in shown
    ]
    lines += aligned(("rows", "length", "first close", "last close"), rows)
    hidden = len(dataset.segments) - len(shown)
    return [*lines, f"  ... and {hidden} more"] if hidden else lines


def _dropped_lines(dataset: Dataset) -> Iterator[str]:
    quality = dataset.quality
    if "dropped_bars" not in quality:
        return
    dropped = quality["dropped_bars"]
    parts = ", ".join(f"{dropped[reason]} {meaning}" for reason, meaning in DROPPED.items())
    used = quality["used_bars"]
    yield f"used: {used} of {quality['grid_bars']} bars of {timeframe_name(dataset.bar_seconds)}; dropped: {parts}"
    if used != len(dataset.time):
        yield f"  (this report covers all {used} bars; the dataset holds {len(dataset.time)} of them)"


def _filled_text(dataset: Dataset) -> str:
    counts = dict(zip(dataset.tickers, dataset.filled.sum(axis=0).tolist(), strict=True))
    return ", ".join(f"{ticker} {count}" for ticker, count in counts.items() if count) or "none"


def venue_lines(dataset: Dataset) -> list[str]:
    """Return the order rules and fees of the coins, and the coins without a rule."""
    venue = dataset.venue
    lines = [f"  order rules: {venue.label} ({venue.source}); fees of {venue.fees_as_of}"]
    missing = venue.unlisted(dataset.tickers)
    if missing:
        notional = venue.order_rules(missing).min_order_notional
        bound = f"minimum order {notional:g} {known_currency(missing[0]) or 'USD'}" if notional else "no minimum order"
        own = "scripts/data/refresh_venues.py downloads the venue's rules"
        lines.append(f"  no entry for {', '.join(missing)}: {bound}; {own}")
    return lines


def price_lines(dataset: Dataset) -> list[str]:
    """Return first, lowest, highest and last price per coin, and the change from first to last."""
    rows = []
    for ticker, price in zip(dataset.tickers, dataset.price.T, strict=True):
        change = f"{100.0 * (price[-1] / price[0] - 1.0):+.1f} %"
        rows.append((ticker, *(f"{value:.6g}" for value in (price[0], price.min(), price.max(), price[-1])), change))
    return aligned(("coin", "first", "lowest", "highest", "last", "change"), rows)


def feature_groups(dataset: Dataset) -> dict[str, list[int]]:
    """Group columns by feature: the key `log_return_1` holds the columns of all coins."""
    groups: dict[str, list[int]] = {}
    for column in range(len(dataset.feature_names)):
        groups.setdefault(dataset.feature_label(column), []).append(column)
    return groups


def feature_lines(dataset: Dataset) -> list[str]:
    """Return lowest value, mean, standard deviation and highest value per feature, and warnings about odd columns."""
    lowest, highest = dataset.tech.min(axis=0), dataset.tech.max(axis=0)
    mean, spread = dataset.tech.mean(axis=0, dtype=np.float64), dataset.tech.std(axis=0, dtype=np.float64)
    rows = []
    for name, columns in feature_groups(dataset).items():
        centre = mean[columns].mean()
        pooled = np.sqrt((spread[columns] ** 2 + (mean[columns] - centre) ** 2).mean())
        values = (lowest[columns].min(), centre, pooled, highest[columns].max())
        rows.append((name, len(columns), *(f"{value:.4g}" for value in values)))
    table = aligned(("feature", "columns", "lowest", "mean", "spread", "highest"), rows)
    return [*table, *_strange_columns(dataset, lowest, highest)]


def _strange_columns(dataset: Dataset, lowest: np.ndarray, highest: np.ndarray) -> Iterator[str]:
    """Yield warnings about constant columns, columns with large values, and columns that rarely change."""
    is_constant = lowest == highest
    is_large = np.maximum(np.abs(lowest), np.abs(highest)) > LARGE_FEATURE
    sample = dataset.tech[:: max(len(dataset.tech) // SAMPLED_ROWS, 1)]
    is_stuck = np.array([_commonest_share(column) > STUCK_SHARE for column in sample.T]) & ~is_constant
    meanings = {
        "constant and carry no information": is_constant,
        f"beyond +-{LARGE_FEATURE:g} and dominate the others unless scaled": is_large,
        f"nearly constant, with one value in more than {STUCK_SHARE:.0%} of the rows": is_stuck,
    }
    for meaning, is_meant in meanings.items():
        names = [dataset.feature_names[column] for column in np.flatnonzero(is_meant)]
        if names:
            more = f" and {len(names) - LISTED_COLUMNS} more" if len(names) > LISTED_COLUMNS else ""
            listed = ", ".join(names[:LISTED_COLUMNS])
            yield f"WARNING {len(names)} of {len(lowest)} columns are {meaning}: {listed}{more}"


def _commonest_share(column: np.ndarray) -> float:
    """Return the fraction of rows that hold the most common value."""
    return float(np.unique(column, return_counts=True)[1].max() / len(column))
