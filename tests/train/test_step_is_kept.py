"""Which step ran is written down, and a run that is gone on from keeps the step that its checkpoint was made with."""

import logging

import pytest

import environment_Alpaca_vectorized as drop_in
from drl_agents.policy_file import load_policy
from environment_Alpaca import CryptoEnvAlpaca
from environment_Alpaca_vectorized import NoNativeStep, VectorizedCryptoEnvAlpaca, VectorizedCryptoEnvAlpacaOptimized
from tests.support.markets import params_of, random_config
from tests.train.test_checkpoint import assert_same_end, killed, train
from train.checkpoint import Checkpoints
from train.env_factory import step_name
from train.evaluator import evaluate_policy, step_of

pytestmark = pytest.mark.filterwarnings("ignore:the plain torch step runs")
BATCH = {"n_envs": 12, "total_env_steps": 1536, "horizon_len": 16}
KINDS = {"rows": BATCH, "bars": BATCH | {"observation_store": "bars"}}


@pytest.fixture
def without_numba(monkeypatch):
    """Switch numba's step off for a block of code."""
    whole = drop_in.kernels

    def missing(where):
        if where == "cpu":
            raise NoNativeStep("numba is not installed here")
        return whole(where)

    def switch(is_missing):
        monkeypatch.setattr(drop_in, "kernels", missing if is_missing else whole)

    return switch


def lines(caplog, words):
    return [record for record in caplog.records if words in record.getMessage()]


@pytest.mark.parametrize(
    ("env_class", "n_envs", "name"),
    [(CryptoEnvAlpaca, 1, "scalar"), (VectorizedCryptoEnvAlpaca, 12, "torch"),
     (VectorizedCryptoEnvAlpacaOptimized, 12, "numba")],
)  # fmt: skip
def test_a_result_and_its_policies_say_which_step_trained_them(env_class, n_envs, name, tmp_path):
    result = train(tmp_path, env_class=env_class, n_envs=n_envs, total_env_steps=512)
    assert result.stepped_by == name
    for path in (result.best_policy, result.last_policy):
        assert load_policy(path).metadata["stepped_by"] == name


def test_a_class_that_is_not_ours_is_called_by_its_name():
    assert step_name(object()) == "object"


def test_the_log_says_why_the_plain_step_runs(without_numba, tmp_path, caplog):
    without_numba(True)
    train(tmp_path, **BATCH)
    (line,) = lines(caplog, "using the plain torch step instead of the native step")
    assert "numba is not installed here" in line.getMessage()


def test_records_say_which_step_traded_them(without_numba):
    def traded():
        return evaluate_policy(lambda state: state[:, :3], random_config(60), params_of("standard"))

    assert step_of(traded()) == "numba"
    without_numba(True)
    assert step_of(traded()) == "torch"
    assert step_of([]) == ""


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_begun_with_the_plain_step_keeps_it_to_the_bit_though_a_native_one_is_there_now(
    kind, without_numba, tmp_path, caplog
):
    caplog.set_level(logging.INFO, "train.run")
    first, second, whole = (tmp_path / name for name in ("first", "second", "whole"))
    without_numba(True)
    expected = train(whole, **KINDS[kind])
    killed(first, 4, **KINDS[kind])
    without_numba(False)
    resumed = train(second, Checkpoints(second, (first,)), **KINDS[kind])
    assert resumed.stepped_by == "torch"
    assert_same_end(expected, resumed)
    assert len(lines(caplog, "because the checkpoint was made with it")) == 1
    assert lines(caplog, "is not available now") == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_whose_native_step_is_gone_goes_on_with_the_plain_one_and_says_so(kind, without_numba, tmp_path, caplog):
    caplog.set_level(logging.INFO, "train.run")
    first, second, whole = (tmp_path / name for name in ("first", "second", "whole"))
    expected = train(whole, **KINDS[kind])
    killed(first, 4, **KINDS[kind])
    without_numba(True)
    resumed = train(second, Checkpoints(second, (first,)), **KINDS[kind])
    (line,) = lines(caplog, "is not available now")
    for words in ("numba", "numba is not installed here", "plain torch step", "not bit-identical"):
        assert words in line.getMessage()
    assert resumed.stepped_by == "numba, torch"
    assert load_policy(resumed.last_policy).metadata["stepped_by"] == "numba, torch"
    assert resumed.n_updates == expected.n_updates
    for after, before in zip(resumed.history, expected.history, strict=True):
        assert after.mean_reward == pytest.approx(before.mean_reward, rel=1e-3, abs=1e-3)


def test_a_run_that_changed_its_step_keeps_the_later_one(without_numba, tmp_path, caplog):
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    killed(first, 3, **BATCH)
    without_numba(True)
    killed(second, 6, (first,), **BATCH)
    without_numba(False)
    caplog.set_level(logging.INFO, "train.run")
    resumed = train(third, Checkpoints(third, (second, first)), **BATCH)
    assert resumed.stepped_by == "numba, torch"
    assert len(lines(caplog, "because the checkpoint was made with it")) == 1


def test_a_run_that_keeps_its_native_step_says_nothing_of_it(tmp_path, caplog):
    caplog.set_level(logging.INFO, "train.run")
    killed(tmp_path / "first", 3, **BATCH)
    resumed = train(tmp_path / "second", Checkpoints(tmp_path / "second", (tmp_path / "first",)), **BATCH)
    assert resumed.stepped_by == "numba"
    assert [record.getMessage() for record in caplog.records if "step" in record.getMessage()] == []
