"""A study's bars lie in memory once, whatever reads them."""

import hashlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

from environment_Alpaca import CryptoEnvAlpaca
from environment_Alpaca_vectorized import VectorizedCryptoEnvAlpaca
from train.records.provenance import ROOT
from train.runner.sharing import FIELDS, shared_data
from train.study.folds import load_study_data
from train.study.split_plan import SplitPlan

PLAN = SplitPlan("standard", 1, 1, 0.15)
READER = """
import hashlib, pickle, sys
from train.runner.sharing import FIELDS
(d,) = pickle.load(sys.stdin.buffer).open()
arrays = [getattr(d.dataset, name) for name in FIELDS]
d.dataset.price[0] = -1.0  # stays private to this process
print(*[hashlib.sha256(array[1:].tobytes()).hexdigest() for array in arrays])
"""


@pytest.fixture
def loaded(market_folder):
    return load_study_data(market_folder, None, None, PLAN)


@pytest.mark.parametrize("tickers", [None, ["ETH"]])
def test_what_is_shared_is_what_was_loaded(market_folder, tickers):
    loaded = load_study_data(market_folder, None, tickers, PLAN)
    with shared_data(loaded) as shared:
        (again,) = shared.open()
    (own,) = loaded
    for name in FIELDS:
        mine, theirs = getattr(own.dataset, name), getattr(again.dataset, name)
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(mine, theirs)
    assert (again.folds, again.holdout, again.origin) == (own.folds, own.holdout, own.origin)


def test_another_process_maps_the_same_pages(loaded):
    with shared_data(loaded) as shared:
        (mine,) = shared.open()
        orders = pickle.dumps(shared)
        assert len(orders) < 100_000
        done = subprocess.run(
            [sys.executable, "-c", READER], input=orders, capture_output=True, pass_fds=shared.fds, cwd=ROOT, check=True
        )
    assert mine.dataset.price[0, 0] > 0.0
    wanted = [hashlib.sha256(getattr(mine.dataset, name)[1:].tobytes()).hexdigest() for name in FIELDS]
    assert done.stdout.decode().split() == wanted


def test_no_environment_copies_the_features(loaded):
    """Neither on all bars nor on a slice of them, as evaluation takes it, nor a scalar one."""
    with shared_data(loaded) as shared:
        (d,) = shared.open()
    config = d.dataset.env_config()
    part = {name: config[name][100:400] for name in ("price_array", "tech_array", "filled_array")}
    for given in (config, config | part | {"segments": [(0, 300)]}):
        env = VectorizedCryptoEnvAlpaca(given, {"rules": "standard", "lookback": 7}, n_envs=3, gpu_id=-1)
        assert np.shares_memory(env.market.windows.numpy(), d.dataset.tech)
        assert np.shares_memory(CryptoEnvAlpaca(given, {"rules": "standard", "lookback": 7}).tech_array, d.dataset.tech)
    env_params = {"rules": "standard", "lookback": 7, "norm_tech": 0.5}
    scaled = VectorizedCryptoEnvAlpaca(config, env_params, n_envs=3, gpu_id=-1)
    assert not np.shares_memory(scaled.market.windows.numpy(), d.dataset.tech)


@pytest.mark.parametrize("norm_tech", [1.0, 0.25])
def test_an_environment_on_shared_bars_steps_to_the_same_bits(loaded, norm_tech):
    with shared_data(loaded) as shared:
        (d,) = shared.open()
    env_params, rng = {"rules": "standard", "lookback": 5, "norm_tech": norm_tech}, np.random.default_rng(0)
    for make in (
        lambda config: CryptoEnvAlpaca(config, env_params, seed=3),
        lambda config: VectorizedCryptoEnvAlpaca(config, env_params, n_envs=4, gpu_id=-1, seed=3),
    ):
        own, shared_one = make(loaded[0].dataset.env_config()), make(d.dataset.env_config())
        states = [np.asarray(env.reset()).copy() for env in (own, shared_one)]
        np.testing.assert_array_equal(*states)
        for _ in range(60):
            action = rng.uniform(-1.0, 1.0, (*states[0].shape[:-1], own.action_dim)).astype(np.float32)
            given = action if states[0].ndim == 1 else torch.from_numpy(action)
            mine, theirs = ([np.asarray(x).copy() for x in env.step(given)[:3]] for env in (own, shared_one))
            for a, b in zip(mine, theirs, strict=True):
                np.testing.assert_array_equal(a, b)
