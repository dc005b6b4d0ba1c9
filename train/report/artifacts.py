"""Plots of every trial, stored as Optuna artifacts that optuna-dashboard shows on the trial's page.

A plot is drawn while the trial is still RUNNING, because Optuna accepts no artifacts for a finished trial. It is stored
in the study's artifact store if there is one. Otherwise it is stored in `<results>/artifacts`, which all studies under
`<results>` share, as optuna-dashboard requires.
"""

from __future__ import annotations

import logging
import math
import tempfile
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from optuna.artifacts import FileSystemArtifactStore, upload_artifact
from optuna.exceptions import StorageInternalError

from train.findings.returns import Columns
from train.records.attributes import splits_in
from train.records.keys import SETTINGS
from train.records.record_files import read_record
from train.records.results import artifacts_folder, read_equity, split_folder, trial_folder
from train.records.stored import SplitFigures, TrialSettings
from train.report.band_picture import band_figure
from train.report.charts import AGENT, DASHES, EQUAL, INK, STYLE, thinned
from train.report.curves import UNREADABLE, accounts, compounded, held
from train.store.artifact_files import Pictures
from train.study.band_file import BAND_FILE, read_band

logger = logging.getLogger(__name__)

PICTURE, BAND_PICTURE = "equity.png", "band.png"
MOST_PANELS = 24  # largest number of splits drawn, which limits the time a picture takes
N_COLUMNS = 3
PANEL_INCHES, DOTS_PER_INCH = (3.6, 2.5), 96
TITLE_CHARACTERS = 54  # characters per line that fit the width of one panel


@contextmanager
def picture_of(trial: optuna.Trial, study_folder: Path, pictures: Pictures | None = None) -> Iterator[None]:
    """Run a trial in the context, then draw and upload its plot, whether the trial completed, was pruned or failed.

    If the plot cannot be drawn, a warning is logged and the trial is not affected. After a signal, no plot is drawn.

    Args:
        trial: trial in state RUNNING.
        study_folder: results folder of the study.
        pictures: artifact store of the study. None means `<results>/artifacts`.
    """
    try:
        yield
    except Exception:
        _upload(trial, study_folder, pictures)
        raise
    _upload(trial, study_folder, pictures)


def _upload(trial: optuna.Trial, study_folder: Path, pictures: Pictures | None) -> None:
    started = time.monotonic()
    try:
        figure = equity_figure(study_folder, trial.number, trial.user_attrs)
        if figure is None:
            logger.debug("trial %d: no equity plot, because no split has finished", trial.number)
            return
        _store(figure, PICTURE, trial, study_folder, pictures)
        band = band_of_trial(study_folder, trial.number, trial.user_attrs)
        if band is not None:
            _store(band, BAND_PICTURE, trial, study_folder, pictures)
    except (*UNREADABLE, StorageInternalError) as error:
        logger.warning("trial %d: could not draw the equity plot: %s: %s", trial.number, type(error).__name__, error)
        return
    logger.debug("trial %d: equity plot drawn in %.2f s", trial.number, time.monotonic() - started)


def _store(figure: Figure, name: str, trial: optuna.Trial, study_folder: Path, pictures: Pictures | None) -> None:
    store: Any = pictures
    if store is None:
        folder = artifacts_folder(study_folder)
        folder.mkdir(parents=True, exist_ok=True)
        store = FileSystemArtifactStore(folder)
    with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=study_folder) as scratch:
        path = Path(scratch) / name
        figure.savefig(path, format="png")
        upload_artifact(artifact_store=store, file_path=str(path), study_or_trial=trial, mimetype="image/png")


def band_of_trial(study_folder: Path, trial_number: int, user_attrs: Mapping[str, Any]) -> Figure | None:
    """Return the band on the test folds of the first split that has one, or None if no split has a band.

    Raises:
        StudyError, OSError, ValueError: a file is missing or damaged.
    """
    split = next((k for k in splits_in(user_attrs) if _band_path(study_folder, trial_number, k).is_file()), None)
    if split is None:
        return None
    settings = read_record(trial_folder(study_folder, trial_number) / SETTINGS, TrialSettings)
    curves = read_band(study_folder, _band_path(study_folder, trial_number, split), settings)
    title = f"Trial {trial_number}, split {split}: band and held weight on the test folds, joined"
    return band_figure(curves, "\n".join([title, str(user_attrs.get("data_label", ""))]))


def _band_path(study_folder: Path, trial_number: int, split: int) -> Path:
    return split_folder(study_folder, trial_number, split) / BAND_FILE


def equity_figure(study_folder: Path, trial_number: int, user_attrs: Mapping[str, Any]) -> Figure | None:
    """Return a plot of the agent and equal weight on the test folds of every finished split, or None without splits.

    Each split starts at 1.

    Raises:
        OSError, ValueError, KeyError: an equity file is damaged.
    """
    figures = splits_in(user_attrs)
    paths = {fold: split_folder(study_folder, trial_number, fold) / "equity.npz" for fold in figures}
    drawn = [fold for fold in sorted(paths) if paths[fold].is_file()][:MOST_PANELS]
    if not drawn:
        return None
    n_columns = min(N_COLUMNS, len(drawn))
    n_rows = math.ceil(len(drawn) / n_columns)
    hidden = len(paths) - len(drawn)
    title = f"Trial {trial_number}: equity on the test folds of each split, joined"
    title += f"; {hidden} more splits not shown" if hidden else ""
    lines = textwrap.wrap(title, TITLE_CHARACTERS * n_columns)
    lines += textwrap.wrap(str(user_attrs.get("data_label", "")), TITLE_CHARACTERS * n_columns)
    with rc_context({**STYLE, "font.size": 8.0, "axes.titlesize": 9.0}):
        size = (PANEL_INCHES[0] * n_columns, PANEL_INCHES[1] * n_rows + 0.9)
        figure = Figure(size, dpi=DOTS_PER_INCH, layout="constrained")
        FigureCanvasAgg(figure)
        panels = list(figure.subplots(n_rows, n_columns, sharey=True, squeeze=False).flat)
        for axes, fold in zip(panels, drawn, strict=False):
            axes.set_title(f"split {fold}: {_excess_text(figures[fold])}")
            _draw_split(axes, accounts(read_equity(paths[fold])))
        for axes in panels[len(drawn) :]:
            axes.set_axis_off()
        figure.suptitle("\n".join(lines), fontsize=8)
        figure.supylabel("equity (start = 1)", fontsize=9)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=9)
    return figure


def _draw_split(axes: Axes, blocks: Sequence[Columns]) -> None:
    """Draw both accounts, compounded over the blocks, with a vertical line at the end of each block."""
    for values, color, line, label in (
        ([held(block) for block in blocks], EQUAL, DASHES, "equal weight"),
        ([block["equity"] for block in blocks], AGENT, "-", "agent"),
    ):
        curve = compounded(values)
        axes.plot(*thinned(np.arange(len(curve)), curve), color=color, linestyle=line, linewidth=0.9, label=label)
    for end in np.cumsum([len(block["equity"]) for block in blocks[:-1]]):
        axes.axvline(end, color="#9a9a9a", linewidth=0.7, linestyle=":")
    axes.axhline(1.0, color=INK, linewidth=0.6)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.set_xlabel("bar of the joined test folds")


def _excess_text(split: SplitFigures) -> str:
    share = split.of_hindsight  # unset in results of earlier versions
    beside = f"\n{100.0 * share:.2g} % of hindsight" if isinstance(share, float) else ""
    return f"Sharpe {_sharpe(split.agent.sharpe)}, equal weight {_sharpe(split.equal_weight.sharpe)}{beside}"


def _sharpe(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "undefined"
