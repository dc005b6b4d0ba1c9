"""A picture of a study: best value so far, the splits of every trial, and the best trial's account on its test bars."""

from __future__ import annotations

import io
import textwrap
from pathlib import Path

import numpy as np
import optuna
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from optuna.trial import FrozenTrial, TrialState

from market.files import write_whole
from train.records.errors import StudyError
from train.records.results import read_equity, split_folder
from train.study.eligibility import best_trial, why_no_best
from train.study.progress import selection_text

AGENT, BENCHMARK, FAINT = "#1f5fa8", "#c2571a", "#9a9a9a"
SIZE_INCHES, DOTS_PER_INCH = (11.0, 9.0), 110
CURVE_POINTS = 2000  # drawn per curve
TITLE_CHARACTERS = 140  # of a line: the width of the picture


def plot_study(study: optuna.Study, folder: Path, out: Path) -> Path:
    """Draw the study's picture as PNG; returns `out`. See `figure_of`."""
    buffer = io.BytesIO()
    figure_of(study, folder).savefig(buffer, format="png")
    write_whole(out, buffer.getvalue())
    return out


def figure_of(study: optuna.Study, folder: Path) -> Figure:
    """Values of the trials, splits against equal weight, and the best trial's equity.

    Args:
        study: with a best trial.
        folder: the study's results.

    Raises:
        StudyError: no best trial.
    """
    best = best_trial(study)
    if best is None:
        why = why_no_best(study.get_trials(deepcopy=False))
        raise StudyError(f"study {study.study_name} has no best trial to draw: {why}")
    figure = Figure(figsize=SIZE_INCHES, dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    values_axes, splits_axes, equity_axes = figure.subplot_mosaic([["values", "splits"], ["equity", "equity"]]).values()
    _draw_values(values_axes, study)
    _draw_splits(splits_axes, study, best)
    _draw_equity(equity_axes, best, folder)
    title = f"{study.study_name}: best value {best.value:+.3f} (trial {best.number})"
    texts = (title, selection_text(study), *study.user_attrs.get("data", []))
    figure.suptitle("\n".join(textwrap.fill(text, TITLE_CHARACTERS) for text in texts), fontsize=9)
    return figure


def _draw_values(axes: Axes, study: optuna.Study) -> None:
    """Value of each completed trial and the best so far."""
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    numbers, values = [t.number for t in done], np.array([t.value for t in done], dtype=np.float64)
    axes.plot(numbers, values, "o", color=FAINT, markersize=4, label="trial")
    axes.step(numbers, np.maximum.accumulate(values), where="post", color=AGENT, label="best so far")
    axes.set(title=f"Objective{_left_out(study)}", xlabel="trial", ylabel="mean excess Sharpe - 0.1 std")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)
    _tidy(axes)


def _left_out(study: optuna.Study) -> str:
    """How many trials ended without a value of their own."""
    states = [t.state for t in study.get_trials(deepcopy=False)]
    counts = {"pruned": states.count(TrialState.PRUNED), "failed": states.count(TrialState.FAIL)}
    parts = ", ".join(f"{n} {name}" for name, n in counts.items() if n)
    return f" (not drawn: {parts})" if parts else ""


def _draw_splits(axes: Axes, study: optuna.Study, best: FrozenTrial) -> None:
    """Excess Sharpe of every split of every completed trial, the best trial's in colour."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        axes.plot(*_steps(trial), "o", color=FAINT, markersize=3, alpha=0.6)
    axes.plot(*_steps(best), "o", color=AGENT, label=f"trial {best.number}")
    axes.axhline(0.0, color="black", linewidth=0.8)
    axes.set(xlabel="split", ylabel="per year")
    axes.set_title("Splits: Sharpe minus equal weight's", loc="left")
    axes.set_xticks(sorted(best.intermediate_values))
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), frameon=True)  # inside, its marker would look like a split
    _tidy(axes)


def _steps(trial: FrozenTrial) -> tuple[list[int], list[float]]:
    steps = sorted(trial.intermediate_values)
    return steps, [trial.intermediate_values[step] for step in steps]


def _draw_equity(axes: Axes, best: FrozenTrial, folder: Path) -> None:
    """The best trial's account and the equal-weight portfolio on every test block, each block starting at 1."""
    axes.axhline(1.0, color="black", linewidth=0.8)
    for fold in sorted(best.intermediate_values):
        path = split_folder(folder, best.number, fold) / "equity.npz"
        if not path.is_file():
            continue
        curves = read_equity(path)
        for segment in np.unique(curves["segment"]):
            rows = np.flatnonzero(curves["segment"] == segment)
            rows = rows[:: max(len(rows) // CURVE_POINTS, 1)]
            time = curves["time_s"][rows].astype("datetime64[s]")
            start = curves["equity"][rows[0]]
            axes.plot(time, curves["equity"][rows] / start, color=AGENT, linewidth=0.9)
            axes.plot(time, curves["benchmark_equity"][rows] / start, color=BENCHMARK, linewidth=0.9, alpha=0.5)
    axes.set(title=f"Trial {best.number} on its test blocks, each starting at 1", ylabel="equity")
    axes.plot([], [], color=AGENT, label="agent (one line per split)")
    axes.plot([], [], color=BENCHMARK, label="equal weight")
    axes.legend(frameon=False)
    _tidy(axes)


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
