"""A picture of every trial's accounts, kept as Optuna's artifact: optuna-dashboard shows it on the trial's page.

Drawn while the trial is still RUNNING, because Optuna takes no artifact of a trial that has ended. Stored in
`<results>/artifacts`, one folder for all studies of the results, as optuna-dashboard wants it.
"""

from __future__ import annotations

import logging
import math
import tempfile
import textwrap
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from optuna.artifacts import FileSystemArtifactStore, upload_artifact
from optuna.exceptions import StorageInternalError

from train.records.attributes import splits_in
from train.records.codec import read_record
from train.records.keys import SETTINGS
from train.records.results import artifacts_folder, read_equity, split_folder, trial_folder
from train.records.stored import SplitFigures, TrialSettings
from train.report.band_png import band_figure
from train.report.curves import UNREADABLE
from train.report.picture import AGENT, BENCHMARK
from train.study.band_file import BAND_FILE, read_band

logger = logging.getLogger(__name__)

PICTURE, BAND_PICTURE = "equity.png", "band.png"
MOST_PANELS = 24  # splits drawn, so that a trial with very many does not wait for its picture
N_COLUMNS = 3
CURVE_POINTS = 600  # drawn per curve; a panel is some 350 pixels wide
PANEL_INCHES, DOTS_PER_INCH = (3.6, 2.1), 96


@contextmanager
def picture_of(trial: optuna.Trial, study_folder: Path) -> Iterator[None]:
    """Runs a trial inside; when it is done, pruned or failed, its picture is drawn and uploaded.

    A picture that cannot be made is said in the log and changes nothing for the trial. After a signal none is made.
    """
    try:
        yield
    except Exception:
        _upload(trial, study_folder)
        raise
    _upload(trial, study_folder)


def _upload(trial: optuna.Trial, study_folder: Path) -> None:
    started = time.monotonic()
    try:
        figure = equity_figure(study_folder, trial.number, trial.user_attrs)
        if figure is None:
            logger.debug("trial %d: no split has finished, so there is no picture of its equity", trial.number)
            return
        _store(figure, PICTURE, trial, study_folder)
        band = band_of_trial(study_folder, trial.number, trial.user_attrs)
        if band is not None:
            _store(band, BAND_PICTURE, trial, study_folder)
    except (*UNREADABLE, StorageInternalError) as error:
        logger.warning("trial %d: no picture of its equity: %s: %s", trial.number, type(error).__name__, error)
        return
    logger.debug("trial %d: picture of its equity in %.2f s", trial.number, time.monotonic() - started)


def _store(figure: Figure, name: str, trial: optuna.Trial, study_folder: Path) -> None:
    folder = artifacts_folder(study_folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=folder) as scratch:
        path = Path(scratch) / name
        figure.savefig(path, format="png")
        upload_artifact(
            artifact_store=FileSystemArtifactStore(folder), file_path=str(path), study_or_trial=trial,
            mimetype="image/png",
        )  # fmt: skip


def band_of_trial(study_folder: Path, trial_number: int, user_attrs: Mapping[str, Any]) -> Figure | None:
    """The band on the test blocks of the first split that has one; None of a trial without.

    Raises:
        StudyError, OSError, ValueError: a file that is missing or damaged.
    """
    split = next((k for k in splits_in(user_attrs) if _band_path(study_folder, trial_number, k).is_file()), None)
    if split is None:
        return None
    settings = read_record(trial_folder(study_folder, trial_number) / SETTINGS, TrialSettings)
    curves = read_band(study_folder, _band_path(study_folder, trial_number, split), settings)
    title = f"Trial {trial_number}, split {split}: band and held weight on the test blocks, blocks joined"
    return band_figure(curves, "\n".join([title, str(user_attrs.get("data_label", ""))]))


def _band_path(study_folder: Path, trial_number: int, split: int) -> Path:
    return split_folder(study_folder, trial_number, split) / BAND_FILE


def equity_figure(study_folder: Path, trial_number: int, user_attrs: Mapping[str, Any]) -> Figure | None:
    """Agent against equal weight on the test blocks of every split that has finished, each block from 1; None of none.

    Raises:
        OSError, ValueError, KeyError: an equity file that is damaged.
    """
    figures = splits_in(user_attrs)
    paths = {fold: split_folder(study_folder, trial_number, fold) / "equity.npz" for fold in figures}
    drawn = [fold for fold in sorted(paths) if paths[fold].is_file()][:MOST_PANELS]
    if not drawn:
        return None
    n_columns = min(N_COLUMNS, len(drawn))
    n_rows = math.ceil(len(drawn) / n_columns)
    width, height = PANEL_INCHES
    figure = Figure(figsize=(width * n_columns, height * n_rows + 0.7), dpi=DOTS_PER_INCH)
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(n_rows, n_columns, sharey=True, squeeze=False).flat)
    for axes, fold in zip(panels, drawn, strict=False):
        _draw_split(axes, read_equity(paths[fold]), f"split {fold}: {_excess_text(figures[fold])}")
    for axes in panels[len(drawn) :]:
        axes.set_axis_off()
    hidden = len(paths) - len(drawn)
    title = f"Trial {trial_number}: equity on the test blocks of each split, blocks joined, each split from 1"
    title += f"; {hidden} more splits not drawn" if hidden else ""
    figure.suptitle(
        "\n".join([title, *textwrap.wrap(str(user_attrs.get("data_label", "")), 60 * n_columns)]), fontsize=8
    )
    figure.legend(*panels[0].get_legend_handles_labels(), loc="lower center", ncols=2, frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.3 / (height * n_rows + 0.7), 1, 1))
    return figure


def _draw_split(axes: Axes, curves: Mapping[str, np.ndarray], title: str) -> None:
    """Both accounts, the blocks compounded one after the other; a line where a block ends."""
    blocks = [curves["segment"] == number for number in np.unique(curves["segment"])]
    start = 0
    for name, color, label in (("benchmark_equity", BENCHMARK, "equal weight"), ("equity", AGENT, "agent")):
        level, parts = 1.0, []
        for rows in blocks:
            parts.append(level * curves[name][rows] / curves["equity"][rows][0])
            level = parts[-1][-1]
        value = np.concatenate(parts)
        rows = np.linspace(0, len(value) - 1, min(len(value), CURVE_POINTS)).astype(np.int64)
        axes.plot(rows, value[rows], color=color, linewidth=0.9, label=label)
    for rows in blocks[:-1]:
        start += int(rows.sum())
        axes.axvline(start, color="#9a9a9a", linewidth=0.7, linestyle=":")
    axes.axhline(1.0, color="black", linewidth=0.6)
    axes.set_title(title, fontsize=9, loc="left")
    axes.tick_params(labelsize=7)
    axes.xaxis.set_ticks([])
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def _excess_text(split: SplitFigures) -> str:
    share = split.of_hindsight  # not known of results of an earlier version
    beside = f"; {100.0 * share:.2g} % of hindsight" if isinstance(share, float) else ""
    return f"Sharpe {_sharpe(split.agent.sharpe)}, equal weight {_sharpe(split.equal_weight.sharpe)}{beside}"


def _sharpe(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "not defined"
