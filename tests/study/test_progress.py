"""What the log and the picture say."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure

from tests.support.lab import outcome
from train.records.account import Metrics
from train.records.results import split_folder
from train.report.picture import figure_of, plot_study
from train.study.objective import Bounds
from train.study.progress import Reporter, duration_text, log_data, outcome_text, summary_lines
from train.study.search_space import build_space
from train.study.split import SplitOutcome, agent_metrics, equal_weight_metrics, outcome_json
from train.study.split_files import write_equity

FIGURES = Metrics(100, 0.05, 0.1, 0.2, 1.5, 1.0, 0.08, 12.5, 0.031, 42, 0.375)
TWO_LINES = 220  # characters of a message: two lines of 120, minus the time
OUTCOME = SplitOutcome(0, FIGURES, replace(FIGURES, sharpe=0.5), 1000, 54321.0, 9876.0, 10.0)


def records() -> list[SimpleNamespace]:
    """Two segments of 3 bars by hand; the benchmark paid 1 % for its coins before the first bar."""
    return [
        SimpleNamespace(
            segment=(first, first + 3),
            bars=np.arange(first, first + 3),
            equity=np.array([100.0, 110.0, 99.0]),
            benchmark_equity=np.array([99.0, 100.0, 102.0]),
            exposure=np.zeros(3),
            turnover=np.array([50.0, 0.0]),
            fees=np.array([0.5, 0.0]),
            trades=np.array([2, 0]),
        )
        for first in (0, 10)
    ]


def test_the_estimate_scales_the_pace_so_far_to_the_budgets_to_come(lab, caplog):
    caplog.set_level(logging.INFO)
    space = build_space(given={"total_env_steps": 2000})
    reporter = Reporter(lab.open(), space, n_folds=6, target=50)
    reporter.split_finished(0, OUTCOME)  # 1000 steps in 10 s, so a split of 2000 takes 20 s
    assert reporter.eta_text().startswith(duration_text(50 * 6 * 20.0))
    assert [r.message for r in caplog.records if r.message.startswith("ETA: ")] == [f"ETA: about {reporter.eta_text()}"]
    reporter.split_finished(0, OUTCOME)
    assert sum(r.message.startswith("ETA: ") for r in caplog.records) == 1


def test_the_estimate_is_shared_among_the_workers_that_run_a_trial(lab):
    study = lab.open()
    trials = [study.ask() for _ in range(4)]
    reporter = Reporter(study, build_space(given={"total_env_steps": 2000}), n_folds=6, target=9)
    reporter.trial_started(trials[0].number, {})
    reporter.split_finished(0, OUTCOME)  # a split of 2000 takes 20 s
    assert reporter.eta_text().startswith(f"{duration_text(3 * 6 * 20.0)} for 9 trials of 6 splits by 4 workers, ")
    study.tell(trials[0], 1.0)  # the next one takes its place
    assert reporter.eta_text().startswith(f"{duration_text(2 * 6 * 20.0)} for 8 trials of 6 splits by 4 workers, ")
    for trial in trials[1:]:
        study.tell(trial, 1.0)
    assert reporter.eta_text().startswith(f"{duration_text(5 * 6 * 20.0)} for 5 trials of 6 splits, ")


def test_a_splits_line_has_both_sharpes_turnover_fees_and_both_rates():
    text = outcome_text(OUTCOME)
    for part in (
        "Sharpe 1.50",
        "equal weight 0.50",
        "excess +1.00",
        "turnover 12.5",
        "fees 3.10%",
        "exposure 37.5%",
        "54,321 env-steps/s",
    ):
        assert part in text
    assert "9,876 samples/s" in text


def test_the_log_of_a_trial_is_short_and_says_its_value_its_fault_and_the_time_left(lab, caplog):
    caplog.set_level(logging.INFO)
    lab.bounds = Bounds(min_trades=10)
    few, many = ([outcome(fold, 1.0, trades=trades) for fold in range(6)] for trades in (3, 20))
    lab.runner.results = [*few, RuntimeError("CUDA error\n" + "word " * 200), *many]
    study, _ = lab.run(2)
    lines = [*caplog.messages, *summary_lines(study)]
    assert [line for line in lines if len(line) > TWO_LINES or "\n" in line] == []
    assert not any("learning_rate" in line for line in lines)
    assert "trial 0: started, 29 settings in trial_0/settings.json" in lines
    (first,) = [i for i, line in enumerate(lines) if line.startswith("trial 0: value")]
    assert "+1.0000, not eligible to be best: it traded 3 times on a split (minimum 10)" in lines[first]
    assert lines[first + 1].startswith("best: none yet; 1 of 2 trials finished, ETA ")
    assert any(line.startswith("trial 1: FAILED: split 0: RuntimeError: CUDA error word") for line in lines)
    assert "best: +1.0000 (trial 2); 2 of 2 trials finished" in lines
    assert (
        "best value +1.0000, trial 2: excess Sharpe +1.00 to +1.00 over 6 splits; settings in "
        + ("trial_2/settings.json")
        in lines
    )


def test_the_settings_of_a_trial_are_in_the_log_at_level_debug(lab, caplog):
    caplog.set_level(logging.DEBUG, "train.study.progress")
    lab.run(1)
    (line,) = [line for line in caplog.messages if "learning_rate=" in line]
    assert line.startswith("trial 0: learning_rate=")


def test_the_ranges_of_a_split_with_many_seams_are_counted(folded, caplog):
    caplog.set_level(logging.INFO)
    pieces = tuple((first, first + 50) for first in range(0, 2000, 100))
    log_data([replace(folded, folds=tuple(replace(fold, fit=pieces, test=pieces) for fold in folded.folds))])
    (line,) = [r.message for r in caplog.records if r.message.startswith("split 0: ")]
    assert "fit 1000 bars, 2024-01-01..2024-01-08 in 20 ranges" in line
    assert [r.message for r in caplog.records if len(r.message) > TWO_LINES] == []


def test_the_log_says_that_the_data_is_synthetic_and_where_every_split_lies(folded, caplog):
    caplog.set_level(logging.INFO)
    log_data([folded])
    assert "SYNTHETIC" in caplog.text
    assert "(3000, 3)" in caplog.text
    assert "2024-01-01" in caplog.text
    assert sum(r.message.startswith("split ") for r in caplog.records) == 6
    fewest = min(sum(b - a for a, b in fold.test) for fold in folded.folds)
    error = math.sqrt(365 * 288 / fewest)
    assert caplog.text.count(f"{fewest} test bars of the smallest split has a standard error of about {error:.1f}") == 1
    assert "validation fold" not in caplog.text


def test_a_split_without_validation_bars_is_warned_of(folded, caplog):
    log_data([replace(folded, folds=(replace(folded.folds[0], validation=()), *folded.folds[1:]))])
    assert caplog.text.count("so the last checkpoint is used") == 1
    assert "split 0: no training segment is long enough for a validation fold" in caplog.text


def test_durations_read_well():
    assert [duration_text(s) for s in (45, 119, 720, 11_100)] == ["45 s", "119 s", "12 min", "3 h 05 min"]


def test_the_equal_weight_portfolio_pays_its_fee_within_its_first_return():
    found = equal_weight_metrics(records(), 100.0)
    assert found.total_return == pytest.approx((1.02) ** 2 - 1.0)
    returns = np.array([0.0, 0.02, 0.0, 0.02])
    assert found.sharpe == pytest.approx(returns.mean() / returns.std(ddof=1) * 10.0)
    agent = agent_metrics(records(), 100.0)
    assert agent.total_return == pytest.approx(0.99**2 - 1.0)
    assert agent.turnover == pytest.approx(100.0 / 103.0)
    assert agent.fees == pytest.approx(1.0 / 103.0)
    assert agent.trades == 4


def test_what_is_not_defined_is_null_in_json():
    nothing = outcome_json(replace(OUTCOME, agent=replace(FIGURES, sharpe=float("nan"))))
    assert nothing["agent"]["sharpe"] is None
    assert nothing["excess_sharpe"] is None
    assert nothing["equal_weight"]["sharpe"] == 0.5


def test_the_picture_is_drawn_from_what_the_study_left(lab, folded, tmp_path):
    study, _ = lab.run(2)
    for fold in range(6):
        write_equity(split_folder(tmp_path, 0, fold) / "equity.npz", records(), folded.dataset.time)
    path = plot_study(study, tmp_path, tmp_path / "study.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_the_final_table_and_the_picture_say_that_the_best_of_many_is_biased(lab, tmp_path, monkeypatch):
    lab.runner.results = [1.0] * 12 + [math.nan]
    study, _ = lab.run(3)
    words = "the largest of 2 completed trials on the same test folds, so it is biased upward"
    assert any(words in line for line in summary_lines(study))
    titles = []
    monkeypatch.setattr(Figure, "suptitle", lambda self, text, **_: titles.append(text))
    plot_study(study, tmp_path, tmp_path / "study.png")
    assert words in titles[0].replace("\n", " ")


def test_the_pictures_title_fits_its_width(lab, tmp_path):
    lab.runner.results = [1.0] * 12
    study, _ = lab.run(2)
    study.set_user_attr("data", [" ".join(["SYNTHETIC 5m, 3 coins, 16735 bars, 2024-01-01 21:25 .. 2024-02-28"] * 4)])
    figure = figure_of(study, tmp_path)
    figure.canvas.draw()
    title = figure._suptitle.get_window_extent()
    assert 0.0 <= title.x0 < title.x1 <= figure.bbox.width


def test_a_study_without_a_completed_trial_has_no_picture_and_no_best(lab):
    study = lab.open()
    assert summary_lines(study)[-1] == "there is no best trial: no trial completed"
    with pytest.raises(ValueError, match="has no best trial to draw: no trial completed"):
        plot_study(study, lab.folder, lab.folder / "study.png")
