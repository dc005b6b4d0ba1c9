"""A picture of every trial's accounts, kept as Optuna's artifact: optuna-dashboard shows it on the trial's page.

Drawn while the trial is still RUNNING, because Optuna takes no artifact of a trial that has ended. Stored in
`<results>/artifacts`, one folder for all studies of the results, as optuna-dashboard wants it, or in the study's
artifact store if it has one.
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
from optuna.artifacts import FileSystemArtifactStore, upload_artifact
from optuna.exceptions import StorageInternalError

from train.findings.returns import Columns
from train.records.attributes import splits_in
from train.records.keys import SETTINGS
from train.records.record_files import read_record
from train.records.results import artifacts_folder, read_equity, split_folder, trial_folder
from train.records.stored import SplitFigures, TrialSettings
from train.report.band_picture import band_figure
from train.report.charts import AGENT, EQUAL, INK, STYLE, thinned
from train.report.curves import UNREADABLE, accounts, compounded, held
from train.store.artifact_files import Pictures
from train.study.band_file import BAND_FILE, read_band

logger = logging.getLogger(__name__)

PICTURE, BAND_PICTURE = "equity.png", "band.png"
MOST_PANELS = 24  # splits drawn, so that a trial with very many does not wait for its picture
N_COLUMNS = 3
PANEL_INCHES, DOTS_PER_INCH = (3.6, 2.1), 96


@contextmanager
def picture_of(trial: optuna.Trial, study_folder: Path, pictures: Pictures | None = None) -> Iterator[None]:
    """Runs a trial inside; when it is done, pruned or failed, its picture is drawn and uploaded.

    A picture that cannot be made is said in the log and changes nothing for the trial. After a signal none is made.

    Args:
        trial: RUNNING.
        study_folder: the study's results.
        pictures: the study's artifact store; None: `<results>/artifacts`.
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
            logger.debug("trial %d: no split has finished, so there is no picture of its equity", trial.number)
            return
        _store(figure, PICTURE, trial, study_folder, pictures)
        band = band_of_trial(study_folder, trial.number, trial.user_attrs)
        if band is not None:
            _store(band, BAND_PICTURE, trial, study_folder, pictures)
    except (*UNREADABLE, StorageInternalError) as error:
        logger.warning("trial %d: no picture of its equity: %s: %s", trial.number, type(error).__name__, error)
        return
    logger.debug("trial %d: picture of its equity in %.2f s", trial.number, time.monotonic() - started)


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
    hidden = len(paths) - len(drawn)
    title = f"Trial {trial_number}: equity on the test blocks of each split, blocks joined, each split from 1"
    title += f"; {hidden} more splits not drawn" if hidden else ""
    label = textwrap.wrap(str(user_attrs.get("data_label", "")), 60 * n_columns)
    with rc_context({**STYLE, "font.size": 7.0, "axes.titlesize": 9.0}):
        size = (PANEL_INCHES[0] * n_columns, PANEL_INCHES[1] * n_rows + 0.7)
        figure = Figure(size, dpi=DOTS_PER_INCH, layout="constrained")
        FigureCanvasAgg(figure)
        panels = list(figure.subplots(n_rows, n_columns, sharey=True, squeeze=False).flat)
        for axes, fold in zip(panels, drawn, strict=False):
            axes.set_title(f"split {fold}: {_excess_text(figures[fold])}")
            _draw_split(axes, accounts(read_equity(paths[fold])))
        for axes in panels[len(drawn) :]:
            axes.set_axis_off()
        figure.suptitle("\n".join([title, *label]), fontsize=8)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=9)
    return figure


def _draw_split(axes: Axes, blocks: Sequence[Columns]) -> None:
    """Both accounts, the blocks compounded one after the other; a line where a block ends."""
    for values, color, label in (
        ([held(block) for block in blocks], EQUAL, "equal weight"),
        ([block["equity"] for block in blocks], AGENT, "agent"),
    ):
        curve = compounded(values)
        axes.plot(*thinned(np.arange(len(curve)), curve), color=color, linewidth=0.9, label=label)
    for end in np.cumsum([len(block["equity"]) for block in blocks[:-1]]):
        axes.axvline(end, color="#9a9a9a", linewidth=0.7, linestyle=":")
    axes.axhline(1.0, color=INK, linewidth=0.6)
    axes.xaxis.set_ticks([])


def _excess_text(split: SplitFigures) -> str:
    share = split.of_hindsight  # not known of results of an earlier version
    beside = f"; {100.0 * share:.2g} % of hindsight" if isinstance(share, float) else ""
    return f"Sharpe {_sharpe(split.agent.sharpe)}, equal weight {_sharpe(split.equal_weight.sharpe)}{beside}"


def _sharpe(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "not defined"
