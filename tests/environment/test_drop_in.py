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


def run(folder, *arguments):
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


def test_the_file_alone_works_in_an_empty_folder(tmp_path):
    shutil.copy(DROP_IN, tmp_path)
    (tmp_path / "use.py").write_text(USE)
    done = run(tmp_path, "use.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "VectorizedCryptoEnvAlpaca (5, 9)", "VectorizedCryptoEnvAlpacaOptimized (5, 9)", "[]",
    ]  # fmt: skip


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
    ("change", "field"),
    [({"norm_reward": 7.0}, "reward"), ({"norm_cash": 7.0}, "state[0]"), ({"stale_bars": 2}, "stocks[1]")],
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
