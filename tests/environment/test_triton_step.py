"""The GPU kernel against the plain class: every step, every field. Without a GPU Triton's interpreter runs it."""

import sys
from dataclasses import fields

import numpy as np
import pytest
import torch

import environment_Alpaca_vectorized as drop_in
from environment_Alpaca_vectorized import Portfolio, VectorizedCryptoEnvAlpaca, VectorizedCryptoEnvAlpacaOptimized
from tests.environment import test_laws as laws
from tests.environment.test_parity import VARIANTS
from tests.support.markets import INTERPRETS_TRITON, InterpretedTriton, params_of, random_config

RULES = ("finrl_crypto", "cappuccino", "standard")
interpreted = pytest.mark.skipif(
    not INTERPRETS_TRITON, reason="no triton here, or a GPU, where the kernel itself is tested"
)
on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available() or INTERPRETS_TRITON, reason="no GPU here")
each_rules = pytest.mark.parametrize("rules", RULES)


class Pair:
    """The plain class on the CPU and the kernel, on one market, stepped together and compared in every field."""

    def __init__(self, config, env_params, n_envs, fast_class=InterpretedTriton, device="cpu", **options):
        options = {"as_numpy": False, **options}
        self.plain = VectorizedCryptoEnvAlpaca(config, env_params, n_envs, device="cpu", **options)
        self.fast = fast_class(config, env_params, n_envs, device=device, **options)
        assert type(self.fast._fast.kernel).__module__ == "environment_Alpaca_kernels.gpu"
        self.assert_close("first state", self.fast.reset(), self.plain.reset())

    def step(self, action):
        """One step of both; returns the plain one's done and info."""
        state, reward, done, info = self.plain.step(action)
        fast_state, fast_reward, fast_done, fast_info = self.fast.step(torch.as_tensor(action).to(self.fast.device))
        self.assert_close("state", fast_state, state)
        self.assert_close("reward", fast_reward, reward)
        assert torch.equal(fast_done.cpu(), done)
        self.assert_close("final_state", fast_info["final_state"].cpu()[done], info["final_state"][done])
        for name in set(info) - {"final_state", "reward_terms"}:
            self.assert_close(name, fast_info[name], info[name])
        for name, term in info["reward_terms"].items():
            self.assert_close(name, fast_info["reward_terms"][name], term)
        self.assert_books()
        return done, info

    def assert_books(self):
        for field in fields(Portfolio):
            self.assert_close(field.name, getattr(self.fast.book, field.name), getattr(self.plain.book, field.name))
        self.assert_close("episode", self.fast._episode, self.plain._episode)

    def assert_close(self, name, received, expected):
        rtol = 1e-6 if expected.dtype == torch.float32 else 1e-9
        close = {"rtol": rtol, "atol": rtol, "msg": lambda text: f"{name}: {text}"}
        torch.testing.assert_close(received.cpu(), expected, **close)


def rollout(pair, n_steps, seed=0, spoil=None):
    """Random actions, whole-account orders now and then -> environments that finished, trades."""
    rng = np.random.default_rng(seed)
    shape, n_done, n_trades = (pair.plain.n_envs, pair.plain.action_dim), 0, 0
    for t in range(n_steps):
        action = rng.uniform(-1, 1, shape).astype(np.float32)
        action = np.sign(action) if t % 5 == 0 else action
        if spoil:
            spoil(t, action)
        done, info = pair.step(torch.from_numpy(action))
        n_done, n_trades = n_done + int(done.sum()), n_trades + int(info["trades"].sum())
    return n_done, n_trades


@interpreted
@each_rules
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_step_equals_the_plain_step(rules, variant):
    config = random_config(60, n_assets=4, seed=len(variant), volatility=0.02)
    if "increments" in variant:
        config["qty_increment"] = config["min_order_qty"] * 3
        config["qty_increment"][0] = 1e-9
    pair = Pair(config, params_of(rules, **VARIANTS[variant]), 13, start="random", episode_bars=12)
    n_done, n_trades = rollout(pair, 26)
    assert (n_done, n_trades > 200) == (26, True), "the comparison must cover restarts and trades"


@interpreted
@each_rules
@pytest.mark.parametrize("n_envs", [1, 16, 37])
def test_every_size_equals_the_plain_step(rules, n_envs):
    # 23 features of 3 bars are 69 columns: two whole tiles and a part of a third. One coin needs no padding.
    config = random_config(50, n_assets={1: 1, 16: 7, 37: 8}[n_envs], n_features=23, seed=n_envs)
    pair = Pair(config, params_of(rules, observe_account=True), n_envs, start="stratified", episode_bars=5, seed=4)
    assert rollout(pair, 11, seed=n_envs)[0] >= 2 * n_envs


@interpreted
@each_rules
@pytest.mark.parametrize("start", ["first", "random", "stratified"])
def test_segments_and_starts_equal_the_plain_step(rules, start):
    config = random_config(70, seed=5, segments=[(0, 14), (14, 16), (20, 33), (35, 70)])
    assert rollout(Pair(config, params_of(rules, trailing_stop_pct=0.01), 5, start=start, seed=9), 14)[0] > 3


@interpreted
@pytest.mark.parametrize("rules", [rules for rules in RULES if rules != "standard"])  # which refuses a price of 0
def test_coins_without_a_price_equal_the_plain_step(rules):
    config = random_config(40, seed=9)
    config["price_array"][0, 2] = 0.0
    config["price_array"][6:11, 1] = 0.0
    config["price_array"][13, :] = 0.0
    rollout(Pair(config, params_of(rules, stale_bars=3), 3, start="first", episode_bars=22), 24)


@interpreted
@pytest.mark.parametrize("observe_account", [False, True])
@pytest.mark.parametrize("rules", ["cappuccino", "standard"])
def test_compact_observations_equal_the_plain_ones(rules, observe_account):
    env_params = params_of(rules, observe_account=observe_account)
    rollout(Pair(random_config(60, seed=1), env_params, 4, start="random", episode_bars=5, compact=True), 7)


@interpreted
@each_rules
def test_actions_that_are_no_numbers_or_huge_equal_the_plain_step(rules):
    def spoil(t, action):
        action[t % 4, t % 3] = (np.nan, np.inf, -np.inf, 3e38)[t % 4]
        action[3] = -3e38 if t % 2 else 1e30

    pair = Pair(random_config(60, seed=2), params_of(rules), 4, start="random", episode_bars=8)
    rollout(pair, 10, spoil=spoil)
    assert pair.plain._rejected.sum() > 4


@interpreted
@each_rules
def test_one_environment_for_hosts_equals_the_plain_one(rules):
    config = random_config(24, seed=3)
    plain, fast = (
        env_class(config, params_of(rules), 1, gpu_id=-1, start="first")
        for env_class in (VectorizedCryptoEnvAlpaca, InterpretedTriton)
    )
    np.testing.assert_array_equal(plain.reset(), fast.reset())
    rng, done = np.random.default_rng(0), False
    while not done:
        action = rng.uniform(-1, 1, 3)
        state, reward, done, info = plain.step(action)
        fast_state, fast_reward, fast_done, fast_info = fast.step(action)
        np.testing.assert_allclose(fast_state, state, rtol=1e-6, atol=1e-6)
        assert (fast_reward, fast_done) == (pytest.approx(reward, rel=1e-6, abs=1e-7), done)
        assert fast_info["final_state"].tolist() == fast_state.tolist()
        assert fast_info["trades"] == info["trades"]
        assert (fast.cash, fast.total_asset) == pytest.approx((plain.cash, plain.total_asset), rel=1e-9)


@interpreted
def test_nothing_beyond_the_last_environment_is_written():
    env = InterpretedTriton(random_config(30), params_of("standard"), 13, gpu_id=-1, episode_bars=2)
    env.reset()
    slots = {"state": torch.full((20, env.state_dim), 7.0), "reward": torch.full((20,), 7.0),
             "done": torch.ones(20, dtype=torch.bool)}  # fmt: skip
    for _ in range(2):
        env.step(torch.ones(13, 3), out={name: slot[:13] for name, slot in slots.items()})
    assert (slots["state"][13:] == 7.0).all()
    assert (slots["reward"][13:] == 7.0).all()
    assert slots["done"][:13].all()
    assert (slots["state"][:13] != 7.0).all()


@interpreted
def test_the_episode_of_a_running_environment_is_not_touched():
    config = random_config(60, segments=[(0, 8), (10, 60)])
    env = InterpretedTriton(config, params_of("standard"), 2, start="first", gpu_id=-1)
    env.reset()
    for buffers in (env._fast.spare, env._fast.latest):
        buffers.slots["final_state"].fill_(7.0)
    for _ in range(5):
        _, _, done, info = env.step(torch.ones(2, 3))
    assert done.tolist() == [True, False]
    assert (info["final_state"] == 7.0).all(1).tolist() == [False, True], "written where done"


# ---------------------------------------------------------------- the choice of a kernel
def test_without_triton_a_gpu_runs_the_plain_step(monkeypatch):
    env = VectorizedCryptoEnvAlpacaOptimized(random_config(30), params_of("standard"), 2, gpu_id=-1)
    monkeypatch.setitem(sys.modules, "environment_Alpaca_kernels.gpu", None)
    monkeypatch.setattr(env, "device", torch.device("cuda"))
    drop_in._warn_once.cache_clear()
    with pytest.warns(RuntimeWarning, match="the plain torch step runs"):
        assert env._native_kernel() is None
    assert "environment_Alpaca_kernels.gpu" in env.why_not_native


# ---------------------------------------------------------------- graphs
class FakeGraphs:
    """Records a closure and runs it again, as a CUDA graph does with what a capture launched."""

    def __init__(self, fails=False):
        self.fails, self.calls = fails, []

    def capture(self, launch):
        self.calls.append("capture")
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing")

        def replay():
            self.calls.append("replay")
            launch()

        return replay

    def warm_up(self, launch):
        self.calls.append("warm up")
        launch()


@interpreted
@pytest.mark.parametrize("fails", [False, True])
def test_a_captured_step_replays_with_each_steps_action(monkeypatch, fails):
    import environment_Alpaca_kernels.gpu as triton_step

    pair = Pair(random_config(40, seed=1), params_of("standard"), 3, start="random", episode_bars=4)
    kernel, graphs = pair.fast._fast.kernel, FakeGraphs(fails)
    monkeypatch.setattr(triton_step, "capture_on_gpu", graphs.capture)
    monkeypatch.setattr(triton_step, "warm_up_on_gpu", graphs.warm_up)
    kernel.is_graphed = True
    for buffers in (pair.fast._fast.spare, pair.fast._fast.latest):
        buffers.advance = kernel.bind(buffers.slots, is_own=True)
    rollout(pair, 2 * triton_step.WARM_UPS + 4)  # each set of buffers has a graph of its own
    expected = ["warm up"] * 2 * triton_step.WARM_UPS + ["capture", "capture"]
    replays = [] if fails else ["replay"] * 4
    assert sorted(graphs.calls) == sorted(expected + replays)
    assert graphs.calls[: len(expected) - 2] == expected[:-2]

    state = torch.zeros(3, pair.fast.state_dim)
    action = torch.full((3, 3), 0.5)
    want = pair.plain.step(action)[0]
    assert pair.fast.step(action, out={"state": state})[0] is state, "a caller's slot is not in the graph"
    torch.testing.assert_close(state, want, rtol=1e-6, atol=1e-6)
    assert len(graphs.calls) == len(expected + replays)
    rollout(pair, 2)


@interpreted
def test_a_replayed_graph_reads_the_cost_factor_from_where_it_was_captured(monkeypatch):
    import environment_Alpaca_kernels.gpu as triton_step

    pair = Pair(random_config(40, seed=1), params_of("standard"), 3, start="random", episode_bars=4)
    kernel, graphs = pair.fast._fast.kernel, FakeGraphs()
    monkeypatch.setattr(triton_step, "capture_on_gpu", graphs.capture)
    monkeypatch.setattr(triton_step, "warm_up_on_gpu", graphs.warm_up)
    kernel.is_graphed = True
    for buffers in (pair.fast._fast.spare, pair.fast._fast.latest):
        buffers.advance = kernel.bind(buffers.slots, is_own=True)
    rollout(pair, 2 * triton_step.WARM_UPS + 2)
    address, choices = kernel.rules.values.data_ptr(), kernel.choices
    for factor in (0.5, 0.0, 1.0):
        pair.plain.cost_factor = pair.fast.cost_factor = factor
        rollout(pair, 2)
    assert graphs.calls[-6:] == ["replay"] * 6
    assert (kernel.rules.values.data_ptr(), kernel.choices) == (address, choices)


# ---------------------------------------------------------------- on a GPU
@on_a_gpu
@each_rules
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_gpu_runs_the_kernel_as_the_plain_step(rules, variant):
    config = random_config(200, n_assets=7, seed=len(variant), volatility=0.02, segments=[(0, 90), (95, 200)])
    options = {"start": "random", "episode_bars": 30, "fast_class": VectorizedCryptoEnvAlpacaOptimized}
    for n_envs in (1, 13, 37, 4096):  # the first three replay a graph from the fourth step on
        rollout(Pair(config, params_of(rules, **VARIANTS[variant]), n_envs, device="cuda", **options), 70)


@on_a_gpu
def test_a_callers_graph_holds_a_step():
    config, env_params = random_config(60), params_of("standard")
    options = {"start": "random", "episode_bars": 10, "device": "cuda"}
    env, twin = (VectorizedCryptoEnvAlpacaOptimized(config, env_params, 64, **options) for _ in range(2))
    action = torch.ones(64, 3, device="cuda")
    env.reset(), twin.reset()
    env.step(action)  # compiled before the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        env.step(action)
    graph.replay()
    twin.step(action), twin.step(action)
    assert torch.equal(env.cash, twin.cash)


@on_a_gpu
@pytest.mark.parametrize("env_class", [VectorizedCryptoEnvAlpaca, VectorizedCryptoEnvAlpacaOptimized])
def test_a_callers_graph_follows_the_cost_factor(env_class):
    config, env_params = random_config(60), params_of("standard")
    options = {"start": "first", "device": "cuda", "autoreset": False}
    env, twin = (env_class(config, env_params, 64, **options) for _ in range(2))
    action = torch.ones(64, 3, device="cuda")
    env.reset(), twin.reset()
    env.step(action)  # compiled before the capture
    env.reset()
    first = env.book
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        fees = env.step(action)[3]["fees"]
    for factor in (1.0, 0.25, 0.0):
        env.book = twin.book = first
        env.cost_factor = twin.cost_factor = factor
        graph.replay()
        assert torch.equal(fees, twin.step(action)[3]["fees"])


# ---------------------------------------------------------------- laws
SMALL_MARKET = {"n_bars": 40, "n_assets": 3, "n_features": 2, "seed": 5, "volatility": 0.02}
OPTION = {
    "trailing_stop_pct": 0.01, "min_cash_reserve": 0.2, "slippage_rate": 0.01, "norm_action": 1.0, "stale_bars": 3,
    "max_position_weight": 0.3,
}  # fmt: skip
LAWS = {
    laws.test_books_never_go_negative_and_equity_moves_only_by_prices_fees_and_slippage: {
        "market": SMALL_MARKET, "option": OPTION, "kind": "alternate",
    },
    laws.test_without_costs_trading_does_not_change_the_account_value: {"market": SMALL_MARKET, "option": OPTION},
    laws.test_an_environment_does_not_depend_on_its_neighbours: {"market": SMALL_MARKET, "option": OPTION},
    laws.test_permuting_environments_permutes_the_outputs: {"market": SMALL_MARKET, "order": [3, 0, 5, 1, 4, 2]},
    laws.test_a_second_episode_equals_a_first_one: {"market": SMALL_MARKET, "option": OPTION},
}  # fmt: skip


@pytest.mark.slow
@interpreted
@each_rules
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__.removeprefix("test_"))
def test_the_laws_hold_for_the_kernel_too(law, rules):
    law.hypothesis.inner_test(env_class=InterpretedTriton, rules=rules, **LAWS[law])


@pytest.mark.slow
@interpreted
@each_rules
def test_scrambling_later_bars_changes_nothing_earlier_in_the_kernel(rules):
    laws.test_scrambling_later_bars_changes_nothing_earlier(InterpretedTriton, rules, 9)
