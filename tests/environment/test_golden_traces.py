"""Recorded numbers of the public scalar environments: what a host sees must not change.

The traces of finrl_meta are of its class with one line mended: there a purchase is cut to the cash without its fee, so
that cash becomes negative.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from environment_Alpaca import CryptoEnvAlpaca
from environment_Alpaca_vectorized import RULES
from tests.support.markets import ENV_CLASSES

TRACES = sorted((Path(__file__).parent / "golden").glob("*.npz"))
TOLERANCE = 1e-5  # of a trace's largest value: the hosts keep quantities in float32


def load(path):
    trace = np.load(path, allow_pickle=False)
    meta = json.loads(str(trace["meta"]))
    config = {"price_array": trace["price"], "tech_array": trace["tech"], "min_order_qty": meta["min_qty"]}
    env_params = {**meta["env_params"], "rules": meta["host"]}
    return trace, config, env_params, {"gamma": meta["gamma"], **meta["kwargs"]}


def assert_close(trace, name, t, received):
    if name not in trace:
        return  # FinRL's class has neither a benchmark nor a counter of held bars
    expected = trace[name][t]
    atol = TOLERANCE * max(np.abs(trace[name]).max(), 1e-30)
    np.testing.assert_allclose(np.asarray(received, float), expected, rtol=0, atol=atol, err_msg=f"{name} at step {t}")


def test_every_host_preset_has_its_traces():
    assert len(TRACES) == 20
    assert {path.stem[:-2] for path in TRACES} == RULES.keys() - {"standard"}


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_scalar_environment_reproduces_the_trace(path):
    trace, config, env_params, kwargs = load(path)
    env = CryptoEnvAlpaca(config, env_params, **kwargs)
    assert_close(trace, "state", 0, env.reset())
    for t, action in enumerate(trace["actions"]):
        state, reward, done, info = env.step(action)
        assert_close(trace, "state", t + 1, state)
        for name, value in {
            "reward": reward, "cash": env.cash, "qty": env.stocks, "total_asset": env.total_asset,
            "benchmark": info["benchmark_equity"], "cooldown": env.account.held_bars,
        }.items():  # fmt: skip
            assert_close(trace, name, t, value)
        assert done == trace["done"][t]
    assert done
    assert env.max_step == len(trace["actions"])


@pytest.mark.parametrize("env_class", ENV_CLASSES)
@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_every_environment_of_a_batch_reproduces_the_trace(path, env_class):
    trace, config, env_params, kwargs = load(path)
    env = env_class(config, env_params, 3, gpu_id=-1, **kwargs)
    assert_close(trace, "state", 0, env.reset()[1])
    n_steps = len(trace["actions"])
    for t, action in enumerate(trace["actions"]):
        state, reward, done, info = env.step(np.stack([np.zeros_like(action), action, -action]))
        assert_close(trace, "state", t + 1, info["final_state"][1] if done[1] else state[1])
        for name, value in {
            "reward": reward[1], "total_asset": info["equity"][1], "benchmark": info["benchmark_equity"][1],
        }.items():  # fmt: skip
            assert_close(trace, name, t, value)
        if t < n_steps - 1:
            assert_close(trace, "cash", t, env.cash[1])
            assert_close(trace, "qty", t, env.stocks[1])
            assert_close(trace, "cooldown", t, env.book.held_bars[1])
        assert bool(done[1]) == trace["done"][t]
    assert not info["truncated"].any(), "hosts' episodes end, they are not truncated"


@pytest.mark.parametrize("env_class", ENV_CLASSES)
@pytest.mark.parametrize("path", [p for p in TRACES if p.stem.endswith(("_0", "_3"))], ids=lambda path: path.stem)
def test_one_environment_reproduces_the_trace_in_the_hosts_numpy_interface(path, env_class):
    trace, config, env_params, kwargs = load(path)
    env = env_class(config, env_params, 1, gpu_id=-1, **kwargs)
    state = env.reset()
    assert isinstance(state, np.ndarray)
    for t, action in enumerate(trace["actions"]):
        state, reward, done, _ = env.step(action)
        assert isinstance(reward, float)
        assert isinstance(done, bool)
        assert_close(trace, "state", t + 1, state)
        assert_close(trace, "reward", t, reward)
        for name, value in {"cash": env.cash, "qty": env.stocks, "total_asset": env.total_asset}.items():
            assert_close(trace, name, t, value)
    assert done


def test_the_warning_trace_never_trades():
    trace, config, env_params, kwargs = load(next(p for p in TRACES if p.stem == "cappuccino_5"))
    env = CryptoEnvAlpaca(config, env_params, **kwargs)
    env.reset()
    assert sum(env.step(action)[3]["trades"] for action in trace["actions"]) == 0
