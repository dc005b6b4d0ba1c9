"""Time grid of bars: its step, its offset from midnight UTC, and bars off the grid.

Bars open at `offset_s + n * step` seconds since 1970-01-01 00:00 UTC. A few stray bars off this grid are dropped as
missing and logged. More of them raise an error that names the likely cause: an offset, close times, local times with
daylight saving changes, or two timeframes in one file.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import NoReturn
from zoneinfo import available_timezones

import numpy as np
import pandas as pd

from market.errors import BarsError
from market.names import timeframe_name
from market.times import utc_text

LEAST_BAR_SECONDS = 60
USUAL_STEPS = 0.8  # fraction of all steps at which the most common one is the step
STRAY_SHARE = 0.01  # largest fraction of bars off the grid that may be dropped
LEAST_BARS = 20  # with fewer bars there are no strays
HOUR_S, DAY_S, SECONDS_PER_YEAR = 3_600, 86_400, 31_536_000
MOST_CHANGES = 2  # clock changes per year
# One zone per rule and local hour of a clock change. Zones that the machine lacks are skipped.
CLOCKS = (
    "Europe/London",
    "Europe/Berlin",
    "Europe/Athens",
    "America/New_York",
    "America/Santiago",
    "America/Sao_Paulo",
    "Australia/Sydney",
    "Pacific/Auckland",
    "Asia/Jerusalem",
    "Asia/Beirut",
    "Africa/Cairo",
    "America/Havana",
    "America/Asuncion",
    "America/Mexico_City",
    "Atlantic/Azores",
)
WRITE_UTC = "write the timestamps in UTC (2024-08-05T12:05:00Z) or with their offset (+02:00)"

LOGGER = logging.getLogger(__name__)


def bar_seconds_of(bars: pd.DataFrame, where: str) -> int:
    """Return the seconds between bars, of which some may be off the grid (see `on_grid`).

    `bars` is sorted by symbol and time.

    Raises:
        BarsError: every symbol has only one bar.
    """
    step = _step_of(opens_of(bars), bars["symbol"].cat.codes.to_numpy())
    if step == 0:
        raise BarsError(f"{where}: one bar per symbol is too few; at least 2 are required")
    return step


def _step_of(opens: np.ndarray, codes: np.ndarray) -> int:
    """Return the greatest common step of all open times, or the most common step; 0 if no symbol has two bars."""
    steps = np.diff(opens)[np.diff(codes) == 0]
    if len(steps) == 0:
        return 0
    # Gaps do not change the common divisor. A stray makes it tiny, so the most common step is used then.
    divisor = int(np.gcd.reduce(steps))
    lengths, counts = np.unique(steps, return_counts=True)
    usual = int(lengths[counts.argmax()])
    return usual if divisor < LEAST_BAR_SECONDS or counts.max() >= USUAL_STEPS * len(steps) else divisor


def opens_of(bars: pd.DataFrame) -> np.ndarray:
    """Return the open times in UTC seconds, (rows,) int64."""
    return bars["timestamp"].dt.as_unit("s").astype("int64").to_numpy()


def few_strays(n_off: int, n_bars: int) -> bool:
    """Return True if the bars off the grid are few enough to be dropped."""
    return n_off <= max(STRAY_SHARE * n_bars, int(n_bars >= LEAST_BARS))


def off_grid(bars: pd.DataFrame, step: int, offset_s: int = 0, n_all: int | None = None) -> tuple[np.ndarray, bool]:
    """Return a mask of bars off the grid, (rows,) bool, and whether all of them are strays.

    A stray replaces its bar on the grid or is isolated. Neighboring bars between bars on the grid belong to a shorter
    timeframe, whose bars on the grid cover less than a step. `n_all` is the number of bars of which strays must be few;
    None uses the number of `bars`.
    """
    opens = opens_of(bars)
    is_off = (opens - offset_s) % step != 0
    if not is_off.any():
        return is_off, True
    places = pd.DataFrame({"symbol": bars["symbol"].astype(str).to_numpy(), "open": opens})
    off = places.loc[is_off].sort_values(["symbol", "open"], ignore_index=True)
    slots = off.assign(open=(off["open"] - offset_s) // step * step + offset_s)
    is_beside = slots.merge(places.loc[~is_off], how="left", indicator=True)["_merge"].eq("both").to_numpy()
    gaps = off.groupby("symbol")["open"].diff().fillna(np.inf).to_numpy()
    is_alone = np.minimum(gaps, np.append(gaps[1:], np.inf)) >= 2 * step
    return is_off, few_strays(len(off), n_all or len(bars)) and bool((is_alone | ~is_beside).all())


def on_grid(bars: pd.DataFrame, step: int, offset_s: int, where: str, n_all: int) -> pd.DataFrame:
    """Drop and log strays. Raise BarsError with the likely cause for other bars off the grid (see `off_grid`)."""
    is_off, are_strays = off_grid(bars, step, offset_s, n_all)
    if not is_off.any():
        return bars
    if not are_strays:
        _refuse(bars, is_off, step, where)
    first = bars.iloc[int(is_off.argmax())]
    LOGGER.warning(
        "%s: dropped %d bars off the %s grid as missing, first %s %s UTC",
        where, int(is_off.sum()), timeframe_name(step), first["symbol"], f"{first['timestamp']:%Y-%m-%d %H:%M:%S}",
    )  # fmt: skip
    return bars.loc[~is_off]


def _refuse(bars: pd.DataFrame, is_off: np.ndarray, step: int, where: str) -> NoReturn:
    opens, name = opens_of(bars), timeframe_name(step)
    bar = bars.iloc[int(is_off.argmax())]
    first = f"{where}: {bar['symbol']} bar {bar['timestamp']:%Y-%m-%d %H:%M:%S}"
    found, counts = np.unique(opens % step, return_counts=True)
    phases = found[counts > STRAY_SHARE * len(opens)]
    are_all_off = len(phases) == 1 and is_off.mean() > 1 - STRAY_SHARE
    if are_all_off and phases[0] % 60:
        raise BarsError(
            f"{first} is off the {name} grid by {phases[0]} s, like all bars; if these are close times, pass "
            "--stamp close"
        )
    if are_all_off:
        offset = f"{phases[0] // HOUR_S:02}:{phases[0] % HOUR_S // 60:02}"
        raise BarsError(
            f"{first}: all {name} bars open {offset} hours after the UTC grid; if these are their open times in UTC, "
            f"pass --offset {offset}"
        )
    change = _moves_by_an_hour(opens, phases, step)
    if change is not None:
        raise BarsError(
            f"{first} is off the {name} grid, and the open times shift by an hour at {utc_text(change)}: local times "
            f"with daylight saving time; {WRITE_UTC}, or use bars of at most 1h and --timeframe {name}"
        )
    raise BarsError(
        f"{first} is off the {name} grid ({int(is_off.sum())} such bars); use bars of one timeframe, stamped with "
        "their open time"
    )


def _moves_by_an_hour(opens: np.ndarray, phases: np.ndarray, step: int) -> int | None:
    """Return the first open time that shifts by an hour, or None if the shifts do not look like clock changes."""
    if len(phases) != 2 or phases[1] - phases[0] not in (HOUR_S, step - HOUR_S):
        return None
    usual = np.unique(opens[np.isin(opens % step, phases)])
    changes = usual[1:][np.diff(usual % step) != 0]
    years = (usual[-1] - usual[0]) / SECONDS_PER_YEAR
    return int(changes[0]) if len(changes) <= MOST_CHANGES * (1 + years) else None


# ---------------------------------------------------------------------------------------------- daylight saving time


def check_wall_clock(opens: np.ndarray, codes: np.ndarray, where: str) -> None:
    """Raise BarsError if times without a zone repeat or skip exactly the hour of a clock change in some zone.

    Args:
        opens: (rows,) int64, sorted by symbol and time, interpreted as UTC.
        codes: (rows,) int, symbol of each row.
        where: start of the error message.
    """
    is_twice = (np.diff(opens) == 0) & (np.diff(codes) == 0)
    step = _step_of(opens[np.append(True, ~is_twice)], codes[np.append(True, ~is_twice)])
    if len(opens) < LEAST_BARS or not 0 < step <= HOUR_S:
        return
    twice = opens[1:][is_twice]
    for zone, first, last, repeats in _changes(int(opens.min()), int(opens.max())):
        if repeats and _repeats(opens, twice, first, last):
            does = "is repeated"
        elif not repeats and _skips(opens, codes, first, last, step):
            does = "is missing"
        else:
            continue
        raise BarsError(
            f"{where}: the hour from {utc_text(first)} {does}, as in local time at the change "
            f"{'from' if repeats else 'to'} daylight saving time ({zone}); {WRITE_UTC}"
        )


def _changes(first_s: int, last_s: int) -> Iterator[tuple[str, int, int, bool]]:
    """Yield (zone, first, last, repeats) for the local hours [first, last) that clock changes repeat or skip."""
    moments = pd.date_range(
        pd.Timestamp(first_s - DAY_S, unit="s").floor("h"),
        pd.Timestamp(last_s + DAY_S, unit="s"),
        freq="30min",
        tz="UTC",
    )
    utc = moments.tz_localize(None).as_unit("s").asi8
    for zone in [zone for zone in CLOCKS if zone in available_timezones()]:
        local = moments.tz_convert(zone).tz_localize(None).as_unit("s").asi8
        ahead = local - utc
        for change in np.flatnonzero(np.diff(ahead)) + 1:
            before, after = int(utc[change] + ahead[change - 1]), int(local[change])
            yield zone, min(before, after), max(before, after), after < before


def _repeats(opens: np.ndarray, twice: np.ndarray, first: int, last: int) -> bool:
    """Return True if most bars in [first, last) are repeated, and no other bars within a day."""
    n_twice = int(np.sum((twice >= first) & (twice < last)))
    n_near = int(np.sum((twice >= first - DAY_S) & (twice < last + DAY_S)))
    n_bars = int(np.sum((opens >= first) & (opens < last))) - n_twice
    return n_near == n_twice > n_bars // 2


def _skips(opens: np.ndarray, codes: np.ndarray, first: int, last: int, step: int) -> bool:
    """Return True if no symbol has a bar in [first, last), and one has all other bars within three days of it."""
    is_near = (opens >= first - 3 * DAY_S) & (opens < last + 3 * DAY_S)
    if ((opens >= first) & (opens < last)).any():
        return False
    for code in np.unique(codes[is_near]):
        near = opens[is_near & (codes == code)]
        n_whole = (near[-1] - near[0]) // step + 1 - (last - first) // step
        if near[0] < first and near[-1] >= last and len(near) == n_whole >= LEAST_BARS:
            return True
    return False
