"""Overview plot of a study: trial values, splits, and the best trial's equity on its test bars."""

from __future__ import annotations

import io
import textwrap
from pathlib import Path

import optuna
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from optuna.trial import FrozenTrial

from market.files import write_whole
from train.records.errors import StudyError
from train.records.results import read_equity, split_folder
from train.records.seals import EQUITY
from train.report.charts import AGENT, DASHES, EQUAL, FAINT, INK, STYLE, draw_splits, draw_values, name_time, thinned
from train.report.curves import accounts
from train.report.trials import trial_views
from train.store.artifact_files import fetch_splits
from train.study.eligibility import best_trial, why_no_best
from train.study.progress import selection_text

SIZE_INCHES, DOTS_PER_INCH = (11.0, 9.0), 110
TITLE_CHARACTERS = 150  # characters per line that fit the width of the picture


def plot_study(study: optuna.Study, folder: Path, out: Path) -> Path:
    """Draw the study's plot as a PNG file and return `out`. See `figure_of`."""
    buffer = io.BytesIO()
    figure_of(study, folder).savefig(buffer, format="png")
    write_whole(out, buffer.getvalue())
    return out


def figure_of(study: optuna.Study, folder: Path) -> Figure:
    """Return a figure of the trial values, the excess Sharpe ratio by split, and the equity of the best trial.

    Args:
        study: study with a best trial.
        folder: results folder of the study.

    Raises:
        StudyError: the study has no best trial.
    """
    best = best_trial(study)
    trials = study.get_trials(deepcopy=False)
    if best is None:
        raise StudyError(f"study {study.study_name} has no best trial to draw: {why_no_best(trials)}")
    fetch_splits(study, folder, [best], (EQUITY,))
    with rc_context(STYLE):
        figure = Figure(figsize=SIZE_INCHES, dpi=DOTS_PER_INCH, layout="constrained")
        FigureCanvasAgg(figure)
        values, splits, equity = figure.subplot_mosaic([["values", "splits"], ["equity", "equity"]]).values()
        views = trial_views(trials)
        draw_values(values, views)
        values.plot([], [], "o", color=FAINT, markersize=5, label="completed")
        values.legend()
        draw_splits(splits, views, best.number)
        _draw_equity(equity, best, folder)
        title = f"{study.study_name}: best value {best.value:+.3f} (trial {best.number})"
        texts = (title, selection_text(study), *study.user_attrs.get("data", []))
        figure.suptitle("\n".join(textwrap.fill(text, TITLE_CHARACTERS) for text in texts), fontsize=9)
    return figure


def _draw_equity(axes: Axes, best: FrozenTrial, folder: Path) -> None:
    """Draw the best trial's account and equal weight on every test fold, each starting at 1."""
    axes.axhline(1.0, color=INK, linewidth=0.8)
    for fold in sorted(best.intermediate_values):
        path = split_folder(folder, best.number, fold) / "equity.npz"
        for account in accounts(read_equity(path)) if path.is_file() else []:
            time, start = account["time_s"].astype("datetime64[s]"), account["equity"][0]
            axes.plot(*thinned(time, account["benchmark_equity"] / start), color=EQUAL, linewidth=0.9, linestyle=DASHES)
            axes.plot(*thinned(time, account["equity"] / start), color=AGENT, linewidth=0.9)
    axes.plot([], [], color=AGENT, label="agent (one line per split)")
    axes.plot([], [], color=EQUAL, linestyle=DASHES, label="equal weight")
    name_time(axes, f"equity of trial {best.number} on its test folds (start of each fold = 1)", most_dates=12)
    axes.legend()
