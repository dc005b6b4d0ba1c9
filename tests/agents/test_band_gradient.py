"""The exact gradient of the band against autograd through the simulator's own step, and against differences."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import environment_Alpaca_vectorized as drop_in
from drl_agents.agents import band_gradient as module
from drl_agents.agents.band_gradient import NEEDED, BandRecord, band_gradient, fastest_for, rules_of
from tests.support.band_reference import EVERYTHING, band_params, made_market, random_band, roll_out

BACKENDS = ("numba", "torch")  # test_band_gradient_triton.py has the third
GENERATED = settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
rules = st.fixed_dictionaries(
    {
        "fee_rate": st.sampled_from([0.0, 0.0025, 0.02]), "slippage_rate": st.sampled_from([0.0, 0.0005]),
        "min_cash_reserve": st.sampled_from([0.0, 0.0, 0.2]),
        "reserve_base": st.sampled_from(["equity", "initial_capital"]),
        "max_position_weight": st.sampled_from([0.0, 0.0, 0.3]), "cash_haircut": st.sampled_from([1.0, 0.9]),
        "growth_weight": st.sampled_from([1.0, 0.5]), "drawdown_penalty": st.sampled_from([0.0, 0.7]),
        "volatility_penalty": st.sampled_from([0.0, 3.0]), "concentration_penalty": st.sampled_from([0.0, 0.3]),
        "turnover_penalty": st.sampled_from([0.0, 0.01]), "norm_reward": st.sampled_from([1.0, 100.0]),
        "min_order_notional": st.sampled_from([0.0, 10.0, 500.0]),
        "terminal_equity_fraction": st.sampled_from([0.01, 0.9]),
    }
)  # fmt: skip
markets = st.fixed_dictionaries(
    {
        "n_assets": st.sampled_from([1, 2, 7]), "seed": st.integers(0, 10_000),
        "volatility": st.sampled_from([1e-3, 0.02, 0.2]), "gaps": st.booleans(), "worthless": st.booleans(),
    }
)  # fmt: skip
rollouts = st.fixed_dictionaries(
    {
        "episode_bars": st.sampled_from([None, 7]), "cost_factor": st.sampled_from([0.0, 0.4, 1.0]),
        "invested": st.booleans(),
    }
)  # fmt: skip
bands = st.sampled_from(["noise", "slow", "greedy", "empty"])
treatments = pytest.mark.parametrize("as_if_filled", [False, True], ids=["as dropped", "as if filled"])
H, N = 25, 3


def assert_same(found, expected, rtol=1e-9):
    """Equal relative to the largest entry; one below 1e-12 is rounding, as nothing here has so small a scale."""
    scale = max(1e-12, *(float(x.abs().max()) for x in expected))
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=rtol, atol=rtol * scale)


def gradient_of(rollout, **options):
    found = band_gradient(rollout.record, rollout.params, cost_factor=rollout.cost_factor, **options)
    return found.lo, found.hi


def assert_is_autograds(rollout, **options):
    for backend in BACKENDS:
        assert_same(gradient_of(rollout, backend=backend, **options), rollout.gradient)


# ------------------------------------------------------------------------------------------------ against autograd
@pytest.mark.slow
@treatments
@GENERATED
@given(market=markets, rule=rules, rollout=rollouts, kind=bands, increment=st.booleans())
def test_the_gradient_is_autograds_on_generated_markets(as_if_filled, market, rule, rollout, kind, increment):
    config = made_market(60, **market)
    if increment:
        config["qty_increment"] = config["min_order_qty"] * 2.0
    band = random_band(H, N, market["n_assets"], market["seed"], kind)
    made = roll_out(config, band_params(**rule), *band, seed=market["seed"], as_if_filled=as_if_filled, **rollout)
    assert_is_autograds(made, as_if_filled=as_if_filled)


@treatments
@pytest.mark.parametrize("n_assets", [1, 2, 7])
@pytest.mark.parametrize("kind", ["noise", "greedy", "empty"])
def test_the_gradient_is_autograds_with_everything_on(as_if_filled, n_assets, kind):
    made = roll_out(made_market(60, n_assets, 3, gaps=True, worthless=True), band_params(**EVERYTHING),
                    *random_band(20, N, n_assets, 3, kind), episode_bars=9, invested=True, cost_factor=0.7,
                    as_if_filled=as_if_filled)  # fmt: skip
    assert made.record.done.any()
    assert (made.record.filled > 0).any()
    assert_is_autograds(made, as_if_filled=as_if_filled)


@pytest.mark.parametrize("penalty", ["drawdown_penalty", "concentration_penalty", "turnover_penalty"])
def test_ties_take_autograds_subgradient(penalty):
    # Two coins with one price and one band are equally large, and an account in cash stays at its peak.
    config = made_market(30, 2, 5)
    config["price_array"][:] = config["price_array"][:, :1]
    config["min_order_qty"][:] = 0.0
    lo, hi = (edge[..., :1].expand(-1, -1, 2).clone() for edge in random_band(20, N, 2, 5, "greedy"))
    hi[::5], lo[::5] = 0.0, 0.0
    lo[:3], hi[:3] = 0.0, 0.0
    made = roll_out(config, band_params(**{penalty: 1.0}), lo, hi)
    without = roll_out(config, band_params(), lo, hi)
    assert not torch.allclose(made.gradient[0], without.gradient[0])
    assert_is_autograds(made, as_if_filled=False)


@pytest.mark.parametrize(("minimum", "as_if_filled"), [(100.0, False), (0.0, True)])
def test_edges_agree_with_central_differences_where_no_order_switches(minimum, as_if_filled):
    config, params = made_market(40, 2, 11), band_params(**EVERYTHING, min_order_notional=minimum)
    config["min_order_qty"][:] = 0.0
    lo, hi = random_band(8, 12, 2, 11, "noise")
    made = roll_out(config, params, lo, hi)
    pattern, found = made.pattern(), torch.stack(gradient_of(made, as_if_filled=as_if_filled))
    n_compared, eps = 0, 1e-6
    for edge, h, a in np.ndindex(2, 8, 2):
        sides = []
        for sign in (1.0, -1.0):
            moved = torch.stack((lo, hi))
            moved[edge, h, :, a] += sign * eps
            sides.append(roll_out(config, params, *moved))
        stays = torch.stack([(side.pattern() == pattern).all(0).all(0).all(-1) for side in sides]).all(0)  # (N,)
        difference = (sides[0].objective - sides[1].objective).detach() / (2 * eps)
        torch.testing.assert_close(found[edge, h, :, a][stays], difference[stays], rtol=1e-5, atol=1e-6)
        n_compared += int((stays & (found[edge, h, :, a] != 0)).sum())
    assert n_compared > 40


def test_a_rollout_of_the_fast_class_has_the_gradient_of_the_float64_step():
    config = made_market(80, 3, 2)
    config["min_order_qty"][:] = 0.0
    params = band_params(min_order_notional=0.0, start="first")
    lo, hi = random_band(30, 4, 3, 2)
    expected = roll_out(config, params, lo, hi)
    env = drop_in.VectorizedCryptoEnvAlpacaOptimized(config, params, 4, gpu_id=-1)
    state, rows = env.reset(), []
    for h in range(30):
        weight, bar = state[:, 1:4], env.time
        action = weight.clamp(lo[h].float(), hi[h].float()) - weight
        state, _, done, _ = env.step(action)
        rows.append((bar, action, env.filled, done.clone()))
    bar, action, filled, done = (torch.stack(column) for column in zip(*rows, strict=True))
    zero = torch.zeros(4, dtype=torch.float64)
    capital, market = zero + 10_000.0, env.market
    record = BandRecord(
        cash=capital, qty=torch.zeros(4, 3, dtype=torch.float64), peak=capital, max_drawdown=zero, bar=bar,
        lo=lo.float(), hi=hi.float(), action=action, filled=filled, done=done, price=market.price,
        min_qty=market.min_qty, qty_increment=market.qty_increment)  # fmt: skip
    found = band_gradient(record, env.params, as_if_filled=False)
    assert found.lo.dtype == torch.float32
    assert_same((found.lo.double(), found.hi.double()), expected.gradient, rtol=1e-4)


# ------------------------------------------------------------------------------------------------ by hand
def one_coin(price, **params):
    """Market of one coin without costs, minima and increments."""
    config = {"price_array": np.array([price]).T, "tech_array": np.zeros((len(price), 1), np.float32)}
    free = {"fee_rate": 0.0, "slippage_rate": 0.0, "min_order_notional": 0.0, "initial_capital": 100.0}
    return config, band_params(lookback=1, norm_reward=1.0, start="first", **(free | params))


def band_of(*edges):
    """(lo, hi) of one account and one coin, each (H, 1, 1), from pairs."""
    return tuple(torch.tensor(side, dtype=torch.float64)[:, None, None] for side in zip(*edges, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_half_the_account_in_a_coin_that_doubles(backend):
    # 100 in cash; lo = 0.5 buys 5 coins at 10, worth 100 at 20: J = log(1 + lo), dJ/dlo = 1 / 1.5.
    config, params = one_coin([10.0, 10.0, 20.0, 20.0])
    made = roll_out(config, params, *band_of((0.5, 0.9), (0.0, 1.0)))
    found = band_gradient(made.record, made.params, backend=backend)
    assert found.lo.flatten().tolist() == pytest.approx([1 / 1.5, 0.0])
    assert not found.hi.any()
    assert (found.touched, found.dropped) == (0.5, 0.0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_dropped_order_has_no_gradient_or_that_of_its_fill(backend):
    # lo = 0.5 asks for 50, the venue wants 80. Filled it would have earned 50 of 100: J = log(1 + filled / 100).
    config, params = one_coin([10.0, 10.0, 20.0, 20.0], min_order_notional=80.0)
    lo, hi = band_of((0.5, 0.9), (0.0, 1.0))
    record = roll_out(config, params, lo, hi).record
    record = replace(record, action=torch.where(record.action == -1.0, lo, record.action))
    env_params = drop_in.EnvParams.from_mapping(params)
    dropped = band_gradient(record, env_params, as_if_filled=False, backend=backend)
    filled = band_gradient(record, env_params, as_if_filled=True, backend=backend)
    assert not dropped.lo.any()
    assert filled.lo.flatten().tolist() == pytest.approx([1.0, 0.0])  # taken where the account holds nothing
    assert filled.dropped == dropped.dropped == 1.0


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_edge_is_missed_by_a_bars_drift(backend):
    # Held 5 coins at 10 with 50 in cash: weight 0.5. hi = 0.25 asks for -0.25 of an equity that is 75 once the price
    # is 5: sold 0.25 * 75 / 5 = 3.75 coins, 1.25 kept, weight 1.25 * 5 / 75 = 1/12 in place of 0.25.
    # The last bar doubles the price: J = log of (50 + 3.75 * 5 + 1.25 * 10) / ..., dJ/dhi = 75 / 5 * (10 - 5) / 81.25.
    config, params = one_coin([10.0, 5.0, 10.0])
    made = roll_out(config, params, *band_of((0.0, 0.25), (0.0, 1.0)))
    record = replace(made.record, cash=torch.tensor([50.0]).double(), qty=torch.tensor([[5.0]]).double(),
                     action=torch.tensor([-0.25, 0.0]).double()[:, None, None],
                     filled=torch.tensor([-3.75, 0.0]).double()[:, None, None])  # fmt: skip
    found = band_gradient(record, made.params, backend=backend)
    assert found.hi.flatten().tolist() == pytest.approx([75 / 81.25, 0.0])


# ------------------------------------------------------------------------------------------------ what can be chosen
def test_the_mean_return_leaves_the_objective_only():
    config, mean = made_market(60, 2, 4), torch.tensor([2e-3, -1e-3], dtype=torch.float64)
    band = random_band(20, N, 2, 4)
    net = roll_out(config, band_params(), *band, mean_return=mean)
    gross = roll_out(config, band_params(), *band)
    for name, value in vars(gross.record).items():  # prices, fills and actions are those of the market as it is
        assert value is None or torch.equal(value, getattr(net.record, name))
    assert not torch.allclose(net.gradient[0], gross.gradient[0])
    assert_is_autograds(net, mean_return=mean, as_if_filled=False)


def test_without_its_mean_a_steady_rise_is_worth_nothing():
    config, params = one_coin(list(100.0 * 1.001 ** np.arange(30)))
    made = roll_out(config, params, *(edge[..., :1] for edge in random_band(28, 1, 1, 0)))
    gross = torch.stack(gradient_of(made)).abs().sum()
    net = torch.stack(gradient_of(made, mean_return=torch.tensor([0.001]))).abs().sum()
    assert net < 2e-3 * gross  # log(1 + 0.001 w) - 0.001 w: what is left is of second order


def test_what_comes_after_the_rollout_can_be_given_a_value():
    made = roll_out(made_market(60, 2, 4), band_params(**EVERYTHING), *random_band(20, N, 2, 4),
                    final_equity=(final := torch.tensor([1e-4, 0.0, 3e-4]).double()))  # fmt: skip
    assert_is_autograds(made, final_equity=final, as_if_filled=False)


def test_accounts_that_share_bars_may_share_the_bands_memory():
    lo, hi = (edge[:, :1] for edge in random_band(20, 1, 2, 9))
    made = roll_out(made_market(40, 2, 9), band_params(start="first"), lo.repeat(1, 40, 1), hi.repeat(1, 40, 1))
    shared = replace(made.record, lo=lo.expand(-1, 40, -1), hi=hi.expand(-1, 40, -1))
    for backend in BACKENDS:
        found = band_gradient(shared, made.params, as_if_filled=False, backend=backend)
        assert_same((found.lo, found.hi), made.gradient)


@treatments
def test_a_band_by_bar_gets_the_sum_over_the_accounts_that_came_by(as_if_filled):
    lo, hi = (edge[:, 0] for edge in random_band(60, 1, 2, 9))
    steps = (edge[:20, None].repeat(1, N, 1) for edge in (lo, hi))
    record = roll_out(made_market(60, 2, 9), band_params(), *steps, episode_bars=8, seed=2).record
    at_steps = replace(record, lo=lo[record.bar], hi=hi[record.bar])  # any band will do: its actions are recorded
    params = drop_in.EnvParams.from_mapping(band_params())
    for backend in BACKENDS:
        by_step = band_gradient(at_steps, params, as_if_filled=as_if_filled, backend=backend)
        by_bar = band_gradient(replace(record, lo=lo, hi=hi), params, as_if_filled=as_if_filled, backend=backend)
        for steps, bars in ((by_step.lo, by_bar.lo), (by_step.hi, by_bar.hi)):
            expected = torch.zeros_like(lo).index_add_(0, record.bar.flatten(), steps.flatten(0, 1))
            torch.testing.assert_close(bars, expected)


@pytest.mark.parametrize("name", NEEDED)
def test_a_setting_whose_account_is_another_one_is_refused_by_name(name):
    given_params = drop_in.EnvParams.from_mapping(band_params())
    others = {str: "other", bool: True, int: 3, float: 0.125}
    wrong = type("Wrong", (), {**vars(given_params), name: others[type(NEEDED[name])]})
    with pytest.raises(ValueError, match=name):
        rules_of(wrong)


def test_an_unknown_backend_is_refused():
    made = roll_out(made_market(20, 1, 0), band_params(), *random_band(3, 1, 1, 0))
    with pytest.raises(ValueError, match="abacus"):
        band_gradient(made.record, made.params, backend="abacus")


@pytest.mark.parametrize(("device", "installed", "expected"), [
    ("cpu", {"numba", "triton"}, "numba"), ("cuda", {"numba", "triton"}, "triton"), ("cpu", {"triton"}, "torch"),
    ("cuda", {"numba"}, "torch"), ("mps", {"numba", "triton"}, "torch"),
])  # fmt: skip
def test_the_backend_is_the_fastest_that_is_installed_for_the_device(monkeypatch, device, installed, expected):
    monkeypatch.setattr(module, "is_installed", lambda package: package in installed)
    assert fastest_for(torch.device(device)) == expected


def test_the_simulators_constants_are_the_same():
    for name in ("TARGET_WEIGHT", "EQUITY_FLOOR", "INCREMENT_SLACK"):
        assert getattr(module, name) == getattr(drop_in, name)
