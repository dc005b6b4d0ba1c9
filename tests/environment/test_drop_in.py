"""The file alone, and beside a host's environment."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from environment_Alpaca import CryptoEnvAlpaca
from environment_Alpaca_vectorized import (
    EnvParams,
    VectorizedCryptoEnvAlpaca,
    VectorizedCryptoEnvAlpacaOptimized,
    compare_with_scalar,
    from_scalar_env,
)
from tests.support.markets import params_of, random_config

ROOT = Path(__file__).resolve().parents[2]
DROP_IN = ROOT / "environment_Alpaca_vectorized.py"

USE = """
import numpy as np, torch
from environment_Alpaca_vectorized import VectorizedCryptoEnvAlpaca, VectorizedCryptoEnvAlpacaOptimized
config = {"price_array": np.full((50, 2), 10.0), "tech_array": np.zeros((50, 3))}
for env_class in (VectorizedCryptoEnvAlpaca, VectorizedCryptoEnvAlpacaOptimized):
    env = env_class(config, {"rules": "standard", "lookback": 2}, n_envs=5, gpu_id=-1)
    env.reset()
    print(env_class.__name__, tuple(env.step(torch.zeros(5, 2))[0].shape))
import sys
heavy = {"pandas", "numba", "elegantrl", "optuna", "market", "train"}
print(sorted({name.split(".")[0] for name in sys.modules} & heavy))
"""

# A host's own scalar class as the drop-in meets it: other attribute names, no `params`, quantities in float32.
HOST = """
import numpy as np
import environment_ours as ours

class CryptoEnvAlpaca:
    def __init__(self, config, env_params, initial_capital=500, buy_cost_pct=0.0025, sell_cost_pct=0.0025, gamma=0.99,
                 if_log=False):
        self._env = ours.CryptoEnvAlpaca(config, {**env_params, "rules": "cappuccino"}, initial_capital,
                                         buy_cost_pct, sell_cost_pct, gamma)
        self.price_array, self.tech_array = config["price_array"], config["tech_array"]
        self.initial_cash, self.buy_cost_pct, self.sell_cost_pct = initial_capital, buy_cost_pct, sell_cost_pct
        self.gamma, self.minimum_qty_alpaca = gamma, np.array(self._env.min_qty)
        self.time_decay_floor = self.min_cash_reserve = self.concentration_penalty = self.trailing_stop_pct = 0.0
        for name in ("lookback", "norm_cash", "norm_stocks", "norm_tech", "norm_reward", "norm_action"):
            setattr(self, name, env_params[name])
        self.safety_factor_stock_buy = 1 - 0.01

    def reset(self):
        return self._env.reset()

    def step(self, actions):
        actions *= 1.0  # hosts write into the array they are given
        state, reward, done, _ = self._env.step(actions)
        return state, reward SABOTAGE, done, None

    cash = property(lambda self: self._env.cash)
    stocks = property(lambda self: self._env.stocks.astype(np.float32))
    total_asset = property(lambda self: self._env.total_asset)
"""


def run(folder, *arguments):
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


def make_host_folder(tmp_path, sabotage):
    folder = tmp_path / "a host's repository"
    folder.mkdir()
    shutil.copy(DROP_IN, folder)
    shutil.copy(ROOT / "environment_Alpaca.py", folder / "environment_ours.py")
    (folder / "environment_Alpaca.py").write_text(HOST.replace("SABOTAGE", sabotage))
    return folder


def test_the_file_alone_works_in_an_empty_folder(tmp_path):
    shutil.copy(DROP_IN, tmp_path)
    (tmp_path / "use.py").write_text(USE)
    done = run(tmp_path, "use.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "VectorizedCryptoEnvAlpaca (5, 9)", "VectorizedCryptoEnvAlpacaOptimized (5, 9)", "[]",
    ]  # fmt: skip


def test_compare_says_equal_beside_a_host_that_is(tmp_path):
    done = run(make_host_folder(tmp_path, ""), "environment_Alpaca_vectorized.py", "--compare", "--steps", "300")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "environment_Alpaca.py: equal over 300 steps" in done.stdout


def test_compare_names_the_first_difference_beside_a_host_that_is_not(tmp_path):
    folder = make_host_folder(tmp_path, "+ 0.001 * (self._env.time >= 30)")
    done = run(folder, "environment_Alpaca_vectorized.py", "--compare", "--steps", "300")
    assert done.returncode == 1
    assert "differs first at step 26, environment 0, field reward" in done.stdout


def test_compare_without_a_host_says_what_to_do(tmp_path):
    shutil.copy(DROP_IN, tmp_path)
    done = run(tmp_path, "environment_Alpaca_vectorized.py", "--compare")
    assert done.returncode == 2
    assert "--env-file" in done.stderr
    assert run(tmp_path, "environment_Alpaca_vectorized.py", "--help").returncode == 0


@pytest.mark.parametrize("env_class", [VectorizedCryptoEnvAlpaca, VectorizedCryptoEnvAlpacaOptimized])
@pytest.mark.parametrize("rules", ["finrl_crypto", "cappuccino", "standard"])
def test_our_own_scalar_class_compares_equal_to_the_end_of_its_episode(rules, env_class):
    options = {"initial_capital": 5000, "buy_cost_pct": 0.001, "start": "first"}
    scalar = CryptoEnvAlpaca(random_config(80), params_of(rules), **options)
    assert compare_with_scalar(scalar, 500, seed=3, env_class=env_class) is None


def test_settings_are_inherited_from_the_scalar_instance():
    config = random_config(80, segments=[(0, 30), (40, 80)], qty_increment=np.array([0.1, 0.2, 0.3]))
    scalar = CryptoEnvAlpaca(config, params_of("standard", turnover_penalty=0.3), 777.0, 0.001, 0.002, 0.9)
    batch = from_scalar_env(scalar, 3, gpu_id=-1)
    assert batch.params == scalar.params
    assert batch.market.qty_increment.tolist() == [0.1, 0.2, 0.3]
    assert batch.market.segment_end.tolist() == [30, 80]


@pytest.mark.parametrize(
    ("change", "field"), [({"norm_reward": 7.0}, "reward"), ({"norm_cash": 7.0}, "state"), ({"stale_bars": 2}, "state")]
)
def test_a_difference_names_its_field(change, field):
    class Liar(CryptoEnvAlpaca):
        """Says it has one set of settings and steps with another."""

        def step(self, actions):
            told, self.params = self.params, EnvParams.from_mapping(params_of("cappuccino", **change))
            result = super().step(actions)
            self.params = told
            return result

    difference = compare_with_scalar(Liar(random_config(80), params_of("cappuccino")), 60)
    assert difference is not None
    assert difference.field == field
