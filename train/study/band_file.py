"""Band of a policy on its test bars, stored in `split_<k>/band.npz` for band policies."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from market.files import write_whole
from market.planted import Law, best_rule, recipe_of, signal_at
from train.records.errors import StudyError
from train.records.record_files import reason_of
from train.records.results import UNREADABLE, find_closes
from train.records.seals import BAND
from train.records.stored import TrialSettings
from train.validation.band_curves import BandCurves
from train.validation.power import market_volatility

if TYPE_CHECKING:
    from train.band_trace import BandTrace

BAND_FILE = BAND
SHARES = ("lo", "hi", "weight")
STEPS = 10_000  # weights are stored as integer multiples of 1 / STEPS, in a quarter of the space
UNKNOWN = -1


def write_band(path: Path, bands: Sequence[BandTrace], bars: Sequence[np.ndarray], time_s: np.ndarray) -> None:
    """Write the band edges and held weights of every bar.

    Columns: `segment`, `bar`, `time_s` (M,), and `lo`, `hi`, `weight` (M, A) int16, in units of 1 / `STEPS`. The edges
    of a row were decided one bar earlier and are the targets of its orders. Edges are -1 on the first row of a segment,
    because no decision precedes it.

    Args:
        path: file to write.
        bands: band of each segment.
        bars: (n_i + 1,) bar indices of each segment.
        time_s: (T,) close times of the dataset.
    """
    columns = {
        "segment": np.concatenate([np.full(len(rows), i) for i, rows in enumerate(bars)]),
        "bar": np.concatenate(bars),
    }
    columns["time_s"] = time_s[columns["bar"]]
    for name in SHARES:
        share = np.concatenate([getattr(band, name) for band in bands])
        columns[name] = np.where(np.isfinite(share), np.round(share * STEPS), UNKNOWN).astype(np.int16)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **columns)
    write_whole(path, buffer.getvalue())


def read_band(study_folder: Path, path: Path, settings: TrialSettings) -> BandCurves:
    """Return the band curves of a split with the study's prices and, for a planted market, the best band.

    Args:
        study_folder: folder of the study's results.
        path: path of the band file.
        settings: the trial's settings.json.

    Raises:
        StudyError: a file is missing or damaged, or belongs to different data.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            segment, bar, time_s = (file[name] for name in ("segment", "bar", "time_s"))
            lo, hi, weight = (np.where(file[name] == UNKNOWN, np.nan, file[name] / STEPS) for name in SHARES)
        close, tickers = find_closes(study_folder, settings.data.sha256)
        curves = BandCurves(tickers, time_s, segment, close[bar], lo, hi, weight)
        return _with_best(curves, close, settings)
    except UNREADABLE as error:
        raise StudyError(f"{path} cannot be read ({reason_of(error)}); restore the study's results") from error


def _with_best(curves: BandCurves, close: np.ndarray, settings: TrialSettings) -> BandCurves:
    """Add the optimal band if the bars are a planted sample market. It holds all coins equally, or none."""
    recipe, rules = recipe_of(settings.data.source), settings.env_resolved
    if rules is None or recipe is None or recipe.law is not Law.PLANTED or len(curves.time_s) < 2:
        return curves
    bar_seconds = int(np.diff(curves.time_s).min())
    rule = best_rule(bar_seconds, market_volatility([close]), rules.buy_fee_rate + rules.slippage_rate)
    signal = signal_at(recipe, curves.time_s - bar_seconds, bar_seconds)[:, None]  # at the decision, one bar earlier
    share = np.full((1, len(curves.tickers)), 1.0 / len(curves.tickers))
    return replace(
        curves,
        best_lo=np.where(signal > rule.buy_above, share, 0.0),
        best_hi=np.where(signal < rule.sell_below, 0.0, share),
    )
