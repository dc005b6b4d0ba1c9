"""The look-ahead command as its user runs it: exit codes, the first line, and what it refuses."""

import importlib.util
from pathlib import Path

import pytest
import torch

import market.build
from drl_agents.policy import Policy
from drl_agents.policy_file import save_policy
from environment_Alpaca import CryptoEnvAlpaca
from market.bars.candles import write_bars
from market.dataset import make_dataset, save_dataset
from market.sample import sample_bars, synthetic_dataset
from train.env_factory import make_env
from train.lookahead import accounts

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "validation" / "lookahead.py"
COINS = ("BTC", "ETH")
CLEAN = "clean: no row at or before a cut changes with the rows after it"


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("lookahead_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(script, capsys):
    """(exit code, lines of stdout, stderr) of a command line."""

    def call(*words):
        try:
            code = script.main([str(word) for word in words])
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        return code, out.splitlines(), err

    return call


@pytest.fixture
def bars_file(tmp_path):
    bars = sample_bars("5m", 700, COINS, seed=2)
    path = tmp_path / "bars.csv"
    write_bars(bars.drop(index=[400, 401, 1_200]), path)
    return path


@pytest.fixture
def folder(tmp_path):
    save_dataset(synthetic_dataset("5m", 600, COINS, seed=2), tmp_path / "5m")
    return tmp_path / "5m"


def test_clean_bars(run, bars_file):
    code, lines, err = run("--bars", bars_file, "--tickers", "BTC,ETH", "--cuts", 5)
    assert (code, lines[0]) == (0, CLEAN), err
    assert any("some coin had no trades" in line for line in lines)
    assert any("0 suspicious" in line for line in lines)


def test_a_clean_folder(run, folder):
    code, lines, err = run("--data-dir", folder, "--steps", 60, "--cuts", 3)
    assert (code, lines[0]) == (0, CLEAN), err
    equal = [line for line in lines if "60 steps, 3 cuts" in line and line.endswith("bitwise equal")]
    assert len(equal) == 3


def test_a_leak_in_the_pipeline_is_the_first_line(run, bars_file, monkeypatch):
    causal = market.build.segment_features

    def early(bars, features):
        out = causal(bars, features)
        out[:-1, 0] = out[1:, 0]
        return out

    monkeypatch.setattr(market.build, "segment_features", early)
    code, lines, _ = run("--bars", bars_file, "--tickers", "BTC", "ETH")
    assert code == 1
    assert lines[0].startswith("LOOK-AHEAD FOUND: bar 2024-01-0")
    assert "feature BTC:log_return_1 is" in lines[0]
    assert "  also: feature BTC:log_return_1" in lines[1]  # by its correlation


def test_an_early_feature_in_a_folder_is_found(run, tmp_path):
    dataset = synthetic_dataset("5m", 1_000, COINS, seed=2)
    tech = dataset.tech.copy()
    tech[:-1, 18] = tech[1:, 18]
    names = ("tickers", "price", "time", "feature_names", "bar_seconds", "segments", "source", "synthetic")
    save_dataset(make_dataset(tech=tech, **{name: getattr(dataset, name) for name in names}), tmp_path / "leak")
    code, lines, _ = run("--data-dir", tmp_path / "leak", "--steps", 30, "--cuts", 2)
    assert code == 1
    assert lines[0].startswith(f"LOOK-AHEAD FOUND: feature {dataset.feature_names[18]} ")


def test_an_environment_that_shows_the_next_close_is_found(run, script, folder, monkeypatch):
    class ShowsNextClose(CryptoEnvAlpaca):
        def _observe(self):
            state = super()._observe()
            state[3] = self.price_array[min(self.account.bar + 1, len(self.price_array) - 1), 0]
            return state

    monkeypatch.setattr(accounts, "ENVIRONMENTS", (CryptoEnvAlpaca, ShowsNextClose))
    code, lines, _ = run("--data-dir", folder, "--steps", 60, "--cuts", 3)
    assert code == 1
    assert lines[0].startswith("LOOK-AHEAD FOUND: ShowsNextClose, 2024-01-0")
    assert "observation[3]" in lines[0]
    assert "(tech BTC:log_return_1, 0 bars back)" in lines[0]
    assert any("CryptoEnvAlpaca: 60 steps, 3 cuts" in line and "equal" in line for line in lines)


def policy_file(path, rules, dataset, state_dim=None, **facts):
    env = make_env(CryptoEnvAlpaca, dataset.env_config(), rules)
    width = state_dim or env.state_dim
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn((env.action_dim, width), generator=generator)
    policy = Policy(torch.zeros(width), torch.ones(width), ((weight, torch.zeros(env.action_dim)),))
    facts = {"tickers": dataset.tickers, "feature_names": dataset.feature_names, "env_params": rules} | facts
    return save_policy(path, policy, facts)


@pytest.mark.parametrize("rules", ["standard", "cappuccino"])
def test_a_policy_trades_under_its_own_rules_and_coins(run, folder, tmp_path, rules):
    env_params = {"rules": rules, "lookback": 2, "norm_action": 4.0}
    env_params |= {name: 0.01 for name in ("norm_cash", "norm_stocks", "norm_tech", "norm_reward")}
    dataset = synthetic_dataset("5m", 600, COINS, seed=2).with_tickers(("ETH",))
    path = policy_file(tmp_path / "policy.safetensors", env_params, dataset)
    code, lines, err = run("--data-dir", folder, "--policy", path, "--steps", 40, "--cuts", 2)
    assert (code, lines[0]) == (0, CLEAN), err
    assert any("1 coin, " in line for line in lines)
    assert any("40 steps" in line for line in lines)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"tickers": ["BTC", "DOGE"]}, "trades DOGE, which the dataset lacks"),
        ({"env_params": None}, "does not contain its rules"),
        ({"feature_names": ["x"]}, "feature columns that differ"),
        ({"state_dim": 5}, "expects 5 observation values; the dataset gives"),
    ],
)
def test_a_policy_that_does_not_fit_is_refused_in_one_line(run, folder, tmp_path, facts, message):
    dataset = synthetic_dataset("5m", 600, COINS, seed=2)
    path = policy_file(tmp_path / "policy.safetensors", {"rules": "standard", "lookback": 2}, dataset, **facts)
    code, lines, err = run("--data-dir", folder, "--policy", path)
    assert (code, lines) == (2, [])
    assert message in err
    assert err.count("\n") == 1


def test_a_dataset_too_short_for_the_policy_is_refused_in_one_line(run, tmp_path):
    long, short = (synthetic_dataset("5m", n_bars, COINS, seed=2) for n_bars in (600, 40))
    save_dataset(short, tmp_path / "short")
    path = policy_file(tmp_path / "policy.safetensors", {"rules": "standard", "lookback": 50}, long)
    code, lines, err = run("--data-dir", tmp_path / "short", "--policy", path)
    assert (code, lines) == (2, [])
    assert "trading failed (no segment is long enough for lookback 50" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "one of the arguments --bars --data-dir is required"),
        (["--bars", "x.csv", "--policy", "p"], "--policy does not apply to --bars"),
        (["--data-dir", "x", "--features", "host"], "--features does not apply to --data-dir"),
        (["--bars", "x.csv", "--data-dir", "y"], "not allowed with"),
        (["--bars", "x.csv", "--cuts", "0"], "--cuts"),
        (["--bars", "absent.csv"], "absent.csv: no such file"),
        (["--data-dir", "absent"], "absent: no such dataset folder"),
        (["--data-dir", "absent", "--seed", "-1"], "--seed"),
    ],
)
def test_what_cannot_be_analysed_is_exit_code_2(run, words, message):
    code, lines, err = run(*words)
    assert (code, lines) == (2, [])
    assert message in err


def test_the_seed_repeats_the_report(run, bars_file):
    words = ("--bars", bars_file, "--tickers", "BTC", "ETH", "--cuts", 3)
    reports = [run(*words, "--seed", seed)[1] for seed in (4, 4, 5)]
    assert reports[0] == reports[1] != reports[2]
