"""What is refused or said before a study begins."""

from dataclasses import replace

import pytest

from market import lookahead_record
from market.lookahead_record import Declared
from market.sample import synthetic_dataset
from tests.support.lookahead_cases import as_checked, leaks, with_columns
from train.records.errors import StudyError
from train.runner import session
from train.runner.preparation import _check_n_envs
from train.study.folds import fold_data
from train.study.search_space import build_space
from train.study.split_plan import SplitPlan


@pytest.fixture(autouse=True)
def short_data_is_enough(monkeypatch):
    """Bars ahead that columns must be compared with: data sets here are short."""
    monkeypatch.setattr(lookahead_record, "LEAST_LAGS", 0)


def test_a_band_with_more_accounts_than_its_budget_has_bars_for_is_refused():
    space = build_space(agent="band")
    _check_n_envs(1_200, space)
    with pytest.raises(StudyError, match=r"--n-envs must be at most 1200, .* \(1,200,000\)"):
        _check_n_envs(1_201, space)


@pytest.mark.parametrize(
    ("known", "level", "words"),
    [
        ("checked", "INFO", "look-ahead: clean; features rebuilt from bars bbbbbbbbbbbb, 1 cut, record "),
        ("found", "WARNING", "look-ahead: found; bar 5"),
        ("old", "WARNING", "look-ahead: not checked; features were not rebuilt from cut bars; run scripts/"),
        ("by hand", "WARNING", "look-ahead: unexplained; BTC:"),
        ("stored", "INFO", "look-ahead: clean; 10 columns compared with later bars, 10 suspicious, record "),
    ],
)
def test_the_start_says_what_is_known_of_look_ahead(monkeypatch, caplog, known, level, words):
    dataset = synthetic_dataset("5m", 2500, ("BTC",), seed=1)
    by_hand = with_columns(dataset, leaks(dataset.price[:, 0], 48))
    record = as_checked(by_hand, cuts=0, suspects=dict.fromkeys(by_hand.feature_names, "leaks"),
                        declared=(Declared(by_hand.feature_names, "me", "so"),)).lookahead  # fmt: skip
    cases = {
        "checked": as_checked(dataset),
        "found": as_checked(dataset, finding="bar 5"),
        "old": dataset,
        "by hand": by_hand,
        "stored": replace(by_hand, lookahead=record),
    }
    if known != "by hand":  # the start stays quick where the answer is stored, or needs the bars
        monkeypatch.setattr(session, "tested", None)
    caplog.set_level("INFO")
    session.log_lookahead((fold_data(cases[known], SplitPlan("kfold", 2, 2, 0.0)),))
    (line,) = caplog.records
    assert (line.levelname, line.getMessage().startswith(f"5m: {words}")) == (level, True)
