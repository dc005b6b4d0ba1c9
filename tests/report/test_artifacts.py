"""The picture of every trial: there when the trial has ended, whatever it ended as, and never in its way."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import optuna
import pytest
from matplotlib.image import imread
from optuna.artifacts import get_all_artifact_meta
from optuna.trial import TrialState

from tests.support.fabricated_study import records_of
from train.records.results import artifacts_folder, split_folder
from train.report.artifacts import equity_figure
from train.study.interruption import Interrupted
from train.study.split_files import write_equity


@pytest.fixture
def traded(lab):
    """A lab whose stand-in for training leaves the equity files that training leaves."""
    inner = lab.runner

    def run_split(settings, data, fold, out_dir, origin, on_progress=None, *others):
        outcome = inner(settings, data, fold, out_dir, origin, on_progress)
        records = records_of(data.dataset, fold.test, np.random.default_rng(fold.index), 0.0)
        out_dir.mkdir(parents=True, exist_ok=True)
        write_equity(out_dir / "equity.npz", records, data.dataset.time)
        return outcome

    lab.runner = run_split
    lab.inner = inner
    return lab


def pictures(study: optuna.Study, number: int) -> list[optuna.artifacts.ArtifactMeta]:
    return get_all_artifact_meta(study_or_trial=study.get_trials()[number], storage=study._storage)


@pytest.mark.slow
def test_completed_pruned_and_failed_trials_have_their_picture(traded):
    traded.inner.results = [1.0] * 6 + [1.0, float("nan")] + [1.0, ValueError("no")] + [ValueError("at once")]
    study, _ = traded.run(3)
    states = [t.state.name for t in study.get_trials()]
    assert states == ["COMPLETE", "PRUNED", "FAIL", "FAIL", "COMPLETE"]
    assert [len(pictures(study, n)) for n in range(5)] == [1, 1, 1, 0, 1]  # the fourth failed before a split ended
    folder = artifacts_folder(traded.folder / "results")
    for number in (0, 1, 2, 4):
        (meta,) = pictures(study, number)
        assert (meta.filename, meta.mimetype) == ("equity.png", "image/png")
        image = imread(folder / meta.artifact_id, format="png")
        assert image.shape[1] > 300
        assert image.std() > 0.01
    assert len(list(folder.iterdir())) == 4  # nothing unfinished stays


def test_the_picture_has_a_panel_for_every_split_that_ended_and_names_the_data(traded):
    study, _ = traded.run(1)
    folder, attrs = traded.folder / "results", study.get_trials()[0].user_attrs
    figure = equity_figure(folder, 0, attrs)
    titles = [axes.get_title(loc="left") for axes in figure.axes if axes.axison]
    assert titles == [f"split {k}: Sharpe 1.00, equal weight 0.00" for k in range(6)]
    assert "SYNTHETIC 5m" in figure.get_suptitle()
    figure = equity_figure(folder, 0, {name: attrs[name] for name in ("split_0", "split_1", "split_3", "split_5")})
    assert [axes.axison for axes in figure.axes] == [True] * 4 + [False] * 2


def test_the_curves_are_the_accounts_compounded_over_their_blocks(traded):
    study, _ = traded.run(1)
    folder, attrs = traded.folder / "results", study.get_trials()[0].user_attrs
    held, agent = equity_figure(folder, 0, attrs).axes[0].get_lines()[:2]
    assert (held.get_label(), agent.get_label()) == ("equal weight", "agent")
    with np.load(split_folder(folder, 0, 0) / "equity.npz") as file:
        equity, segment, benchmark = file["equity"], file["segment"], file["benchmark_equity"]
    blocks = [segment == number for number in np.unique(segment)]
    assert len(blocks) == 2
    assert agent.get_ydata()[0] == 1.0
    assert agent.get_ydata()[-1] == pytest.approx(np.prod([equity[b][-1] / equity[b][0] for b in blocks]))
    assert held.get_ydata()[-1] == pytest.approx(np.prod([benchmark[b][-1] / equity[b][0] for b in blocks]))


def damage_equity(folder: Path) -> None:
    path = split_folder(folder, 0, 2) / "equity.npz"
    path.write_bytes(path.read_bytes()[:100])


def put_a_file_in_the_way(folder: Path) -> None:
    artifacts_folder(folder).write_text("a file")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [(damage_equity, "split_2/equity.npz cannot be read"), (put_a_file_in_the_way, "FileExistsError")],
)
def test_a_picture_that_cannot_be_made_is_said_and_the_trial_is_none_the_worse(traded, caplog, spoil, words):
    last = traded.folded.folds[-1].index
    run_split = traded.runner

    def spoiled(settings, data, fold, *others):
        outcome = run_split(settings, data, fold, *others)
        if fold.index == last:
            spoil(traded.folder / "results")
        return outcome

    traded.runner = spoiled
    with caplog.at_level(logging.WARNING):
        study, _ = traded.run(1)
    assert [(t.state, t.value) for t in study.get_trials()] == [(TrialState.COMPLETE, 1.0)]
    (said,) = [r.message for r in caplog.records if "could not draw the equity plot" in r.message]
    assert "trial 0" in said
    assert words in said
    assert pictures(study, 0) == []


def test_after_a_signal_nothing_is_drawn(traded):
    traded.inner.results = [1.0, lambda: os.kill(os.getpid(), 15) or 1.0]
    study, ending = traded.run(1)
    assert ending.signal_number == 15
    assert study.get_trials()[0].state == TrialState.FAIL
    assert pictures(study, 0) == []
    assert issubclass(Interrupted, KeyboardInterrupt)  # not an Exception, which is what is drawn after
