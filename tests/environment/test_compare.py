"""`--compare` finds every rule that a host's class breaks, and nothing where it breaks none."""

import itertools
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import environment_Alpaca_vectorized as drop_in
from environment_Alpaca_kernels import compare
from environment_Alpaca_kernels.compare_cases import PLAN, Cases
from environment_Alpaca_kernels.compare_host import HostClass
from tests.support import host_scalar
from tests.support.host_scalar import ALPACA_LIMITS, CappuccinoLike, FinRLCryptoLike

ROOT = Path(__file__).resolve().parents[2]
RULES = {FinRLCryptoLike: "finrl_crypto", CappuccinoLike: "cappuccino"}


def with_rule(cls, **switches):
    """A class that breaks a rule of `cls`."""
    return type("Mutant", (cls,), {**switches, "__module__": cls.__module__})


def outcome_of(cls, rules, steps=120, n_coins=4, plan=PLAN, given=None, seconds=0.0):
    host = HostClass(cls, rules, given or {})
    return compare.compare_class(host, Cases(host, steps, 0, n_coins, plan=plan), len(plan), 0, seconds)


def cases_with(setting):
    return [case for case in PLAN if setting in case[1]][:1] if setting else PLAN[:2]


# ---------------------------------------------------------------------------------------------- equal
@pytest.mark.parametrize("cls", RULES)
def test_a_host_that_breaks_no_rule_is_equal_and_every_line_of_it_ran(cls):
    outcome = outcome_of(cls, RULES[cls], steps=100)
    assert outcome.difference is None, str(outcome.difference)
    assert outcome.unreached == ()
    assert outcome.exit_code == compare.EQUAL
    assert outcome.cases == len(PLAN)


def test_orders_of_exactly_the_smallest_size_are_decided_by_rounding_and_not_compared(monkeypatch):
    def least(source):
        view = yield np.empty(0)
        while True:
            view = yield view.ordering(view.min_qty) * source.choice([-1.0, 1.0], len(view.qty))

    monkeypatch.setattr(compare, "KINDS", (least,))
    assert outcome_of(FinRLCryptoLike, "finrl_crypto", plan=PLAN[:1]).difference is None


# ---------------------------------------------------------------------------------------------- every rule
COMMON = (
    ({"stale_bars": 47}, None), ({"stale_bars": 49}, None), ({"stale_share": 0.0501}, None),
    ({"buy_fee_factor": 1.001}, None), ({"sell_fee_factor": 1.001}, None), ({"buys_first": True}, None),
    ({"end_shift": 1}, None), ({"end_shift": -1}, None), ({"final_discount": 0.9999}, None),
)  # fmt: skip
BROKEN = [
    *((FinRLCryptoLike, *each) for each in COMMON), *((CappuccinoLike, *each) for each in COMMON),
    (FinRLCryptoLike, {"haircut": 0.9001}, None), (FinRLCryptoLike, {"alpha_weight": 1.0001}, None),
    (CappuccinoLike, {"haircut": 0.9901}, None), (CappuccinoLike, {"alpha_weight": 0.50001}, None),
    (CappuccinoLike, {"absolute_weight": 0.3001}, None), (CappuccinoLike, {"bonus_weight": 0.02001}, None),
    (CappuccinoLike, {"bonus_from": 0.12}, None), (CappuccinoLike, {"reserve_factor": 1.001}, "min_cash_reserve"),
    (CappuccinoLike, {"shortfall_weight": 0.501}, "min_cash_reserve"),
    (CappuccinoLike, {"action_limit": 990.0}, "norm_action"),
    (CappuccinoLike, {"stop_factor": 1.05}, "trailing_stop_pct"),
    (CappuccinoLike, {"purchase_resets_high": False}, "trailing_stop_pct"),
    (CappuccinoLike, {"purchase_resets_high": False, "sale_resets_high": False}, "trailing_stop_pct"),
    (CappuccinoLike, {"cap_factor": 1.001}, "max_position_pct"),
    (CappuccinoLike, {"concentration_from": 0.401}, "concentration_penalty"),
    (CappuccinoLike, {"few_weight": 0.501}, "concentration_penalty"),
    (CappuccinoLike, {"even_weight": 0.1001}, "concentration_penalty"),
    (CappuccinoLike, {"even_below": 0.42}, "concentration_penalty"),
    (CappuccinoLike, {"active_from": 0.012}, "concentration_penalty"),
]  # fmt: skip


@pytest.mark.parametrize(("cls", "switches", "setting"), BROKEN, ids=lambda value: str(value)[:60])
def test_a_broken_rule_is_found(cls, switches, setting):
    outcome = outcome_of(with_rule(cls, **switches), RULES[cls], plan=cases_with(setting))
    assert outcome.exit_code == compare.DIFFERENT


@pytest.mark.parametrize("factor", [0.99, 1.01])
@pytest.mark.parametrize("coin", range(len(ALPACA_LIMITS)))
def test_every_coins_smallest_order_is_checked_both_ways(coin, factor):
    minimum_factor = np.where(np.arange(10) == coin, 1.1 * factor, 1.1)
    outcome = outcome_of(with_rule(FinRLCryptoLike, minimum_factor=minimum_factor), "finrl_crypto", n_coins=10)
    assert outcome.exit_code == compare.DIFFERENT


@pytest.mark.parametrize("age", [1, 24, 250])
def test_stale_release_is_checked_at_any_age(age):
    def found(bars):
        cls = with_rule(FinRLCryptoLike, stale_bars=bars)
        plan = PLAN[:1]
        return outcome_of(cls, "finrl_crypto", 300, 3, plan, {"stale_bars": age}).difference

    assert found(age) is None
    assert found(age + 1) is not None


def test_a_host_of_24_bars_is_not_taken_for_one_of_48():
    difference = outcome_of(with_rule(FinRLCryptoLike, stale_bars=24), "finrl_crypto").difference
    assert difference is not None
    assert any("_take" in line or "stocks" in line for line in compare.source_lines(difference.lines))


# ---------------------------------------------------------------------------------------------- tolerances
class Generous(FinRLCryptoLike):
    """Buys a little more than was ordered."""

    extra = 0.0

    def _buy(self, order, price):
        before = self.stocks.copy()
        super()._buy(order, price)
        self.stocks = (before + (self.stocks - before) * np.float64(1.0 + self.extra)).astype(np.float32)


@pytest.mark.parametrize(("units", "is_found"), [(1, False), (16, True)])
def test_a_coin_may_differ_by_the_rounding_of_one_bar_and_no_more(units, is_found):
    outcome = outcome_of(with_rule(Generous, extra=units * 2.0**-23), "finrl_crypto", plan=PLAN[:1])
    assert (outcome.difference is not None) == is_found


def test_cash_that_leaks_without_a_trade_is_found_to_a_billionth():
    class Leaks(FinRLCryptoLike):
        def step(self, actions):
            is_idle = not actions.any()
            result = super().step(actions)
            self.cash *= 1.0 - 1e-9 * is_idle
            return result

    difference = outcome_of(Leaks, "finrl_crypto").difference
    assert difference is not None
    assert difference.field == "cash"


def test_a_reset_that_leaves_another_account_value_is_found():
    class Forgets(FinRLCryptoLike):
        def reset(self):
            state = super().reset()
            self.total_asset *= 0.999
            return state

    difference = outcome_of(Forgets, "finrl_crypto", steps=5).difference
    assert difference is not None
    assert (difference.step, difference.field) == (0, "total_asset")


# ---------------------------------------------------------------------------------------------- the report
class Suspicious(FinRLCryptoLike):
    """Has a line that no account reaches."""

    def step(self, actions):
        if self.cash < -1.0:
            raise RuntimeError("overdrawn")
        return super().step(actions)


def test_a_line_that_never_ran_is_printed_and_makes_it_3(capsys):
    outcome = outcome_of(Suspicious, "finrl_crypto", plan=PLAN[:4])
    assert compare.source_lines(outcome.unreached) == [
        f'test_compare.py:{outcome.unreached[0][1]}:             raise RuntimeError("overdrawn")'
    ]
    assert outcome.exit_code == compare.NOT_REACHED
    compare._report(outcome)
    assert "not reached:\n  test_compare.py:" in capsys.readouterr().out


def test_a_difference_names_step_account_field_values_actions_case_and_new_lines():
    difference = outcome_of(with_rule(FinRLCryptoLike, end_shift=-1), "finrl_crypto", plan=PLAN[:1]).difference
    assert difference is not None
    text = str(difference)
    assert "differs first at step 119, environment 0, field reward: host " in text
    assert "actions: uniform; case: calm" in text
    late = outcome_of(with_rule(FinRLCryptoLike, stale_bars=47), "finrl_crypto").difference
    assert "self._take(i, self.stocks[i] * self.stale_share, price[i])" in str(late)


def test_what_a_host_prints_stays_out_of_the_report(capsys):
    class Talks(FinRLCryptoLike):
        def step(self, actions):
            sys.stdout.write("a trade\n")
            return super().step(actions)

    assert outcome_of(Talks, "finrl_crypto", plan=PLAN[:1]).difference is None
    assert capsys.readouterr().out == ""


def test_a_tracer_that_was_there_before_is_there_afterwards():
    def tracer(frame, event, argument):
        return None

    sys.settrace(tracer)
    try:
        outcome_of(FinRLCryptoLike, "finrl_crypto", steps=5, plan=PLAN[:1])
        assert sys.gettrace() is tracer
    finally:
        sys.settrace(None)


# ---------------------------------------------------------------------------------------------- reading a host's file
PANICS = '''
from tests.support.host_scalar import ALPACA_LIMITS, FinRLCryptoLike

class CryptoEnvAlpaca(FinRLCryptoLike):
    """Sells everything when a volatility index is high."""

    def __init__(self, config, env_params, initial_capital=1_000_000, buy_cost_pct=0.003, sell_cost_pct=0.003,
                 gamma=0.99, if_log=False, exchange="binance", panic_from=1e9):
        super().__init__(config, env_params, initial_capital, buy_cost_pct, sell_cost_pct, gamma, if_log)
        index = config["cvix_array"]
        self.calm = index * env_params.get("calmness", 1.0)
        self.panic_from = panic_from
        self.exchange = exchange
        self.names = config.get("ticker_list", [])

    def step(self, actions):
        if self.calm[self.time] > self.panic_from:
            actions[:] = -1e6
        return super().step(actions)

class Another(CryptoEnvAlpaca):
    """A second environment in the file."""
'''


@pytest.fixture
def panics(tmp_path):
    path = tmp_path / "environment_Panic.py"
    path.write_text(PANICS)
    np.savez(tmp_path / "bars.npz", price_array=100.0 + np.random.default_rng(0).normal(size=(600, 2)).cumsum(axis=0),
             tech_array=np.ones((600, 3)), cvix_array=np.ones(600))  # fmt: skip
    return path


def run(*arguments, env_file, class_name="CryptoEnvAlpaca"):
    command = ["--compare", "--env-file", env_file, "--class", class_name, "--seconds", "0", "--rules", "finrl_crypto"]
    return compare.main([str(part) for part in (*command, *arguments)])


def test_what_the_step_depends_on_and_nobody_here_knows_is_named_and_makes_it_3(panics, capsys):
    assert run("--data", panics.with_name("bars.npz"), "--steps", 60, env_file=panics) == compare.NOT_REACHED
    out = capsys.readouterr().out
    named = out.partition("not compared, though its step depends on it: ")[2].partition("\n")[0]
    assert named == 'argument panic_from, config["cvix_array"], env_params["calmness"]'
    assert "actions[:] = -1e6" in out
    assert "equal over" in out


def test_the_rule_that_was_not_compared_shows_when_it_acts(panics, capsys):
    data = panics.with_name("bars.npz")
    assert run("--data", data, "--set", "panic_from=0.5", env_file=panics) == compare.DIFFERENT
    assert "actions[:] = -1e6" in capsys.readouterr().out


def test_a_class_that_cannot_be_built_says_what_it_asks_for(panics, capsys):
    assert run(env_file=panics) == compare.USAGE
    err = capsys.readouterr().err
    assert "KeyError: 'cvix_array'" in err
    assert "panic_from=1000000000.0" in err
    assert "it reads config[cvix_array, price_array, tech_array, ticker_list]" in err


def test_an_unknown_class_lists_those_that_there_are(panics, capsys):
    assert run(env_file=panics, class_name="CryptoEnv") == compare.USAGE
    assert "no class CryptoEnv: " in (err := capsys.readouterr().err)
    assert "classes with step and reset: CryptoEnvAlpaca, Another" in err
    assert compare.main(["--compare", "--env-file", str(panics)]) == compare.USAGE
    assert "choose one with --class" in capsys.readouterr().err


def test_settings_without_a_reader_are_refused(panics, capsys):
    assert run("--set", "calmnes=2", env_file=panics) == compare.USAGE
    assert "does not read calmnes; it reads buy_cost_pct, calmness, cvix_array" in capsys.readouterr().err
    assert run("--set", "calmness", env_file=panics) == compare.USAGE
    assert "KEY=VALUE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"price_array": np.ones((9, 2))}, "does not contain tech_array, only price_array"),
        ({"price_array": np.ones((9, 2)), "tech_array": np.ones((8, 2))}, "same number of bars"),
        ({"price_array": -np.ones((9, 2)), "tech_array": np.ones((9, 2))}, "price_array is -1 at bar 0"),
        ({"price_array": np.zeros((9, 2)), "tech_array": np.ones((9, 2)), "cvix_array": np.ones(9)}, "positive prices"),
    ],
)
def test_data_that_cannot_be_used_says_why(panics, arrays, message, capsys):
    folder = panics.with_name("bars")
    folder.mkdir()
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    assert run("--data", folder, "--steps", 3, env_file=panics) == compare.USAGE
    assert message in capsys.readouterr().err


def test_a_file_that_is_missing_or_does_not_import_is_a_usage_error(tmp_path, capsys):
    assert compare.main(["--compare", "--env-file", str(tmp_path / "none.py")]) == compare.USAGE
    assert "--env-file" in capsys.readouterr().err
    (tmp_path / "host.py").write_text("import a_package_that_is_not_installed")
    assert compare.main(["--compare", "--env-file", str(tmp_path / "host.py")]) == compare.USAGE
    assert "No module named 'a_package_that_is_not_installed'" in capsys.readouterr().err


def test_a_class_of_another_family_needs_its_rules_named(tmp_path, capsys):
    source = "from tests.support.host_scalar import FinRLCryptoLike\nclass Own(FinRLCryptoLike): ..."
    (tmp_path / "host.py").write_text(source)
    assert compare.main(["--compare", "--env-file", str(tmp_path / "host.py")]) == compare.USAGE
    assert "Own is not recognized; set --rules to one of finrl_crypto" in capsys.readouterr().err


def test_settings_that_the_user_fixes_are_kept_in_every_case():
    host = HostClass(CappuccinoLike, "cappuccino", {"lookback": 7, "trailing_stop_pct": 0.05})
    settings = [case.settings for case in itertools.islice(Cases(host, 30, 0, 3), len(PLAN) + 3)]
    assert {(each["lookback"], each["trailing_stop_pct"]) for each in settings} == {(7, 0.05)}


# ---------------------------------------------------------------------------------------------- next to a host
def test_the_command_line_next_to_a_host_with_file_and_folder_copied(tmp_path):
    shutil.copy(ROOT / "environment_Alpaca_vectorized.py", tmp_path)
    alone = run_in(tmp_path, "--compare")
    assert alone.returncode == compare.USAGE
    assert "environment_Alpaca_kernels" in alone.stderr
    assert "copy it" in alone.stderr
    assert len(alone.stderr.splitlines()) == 1
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "environment_Alpaca_kernels", tmp_path / "environment_Alpaca_kernels", ignore=ignored)
    shutil.copy(host_scalar.__file__, tmp_path / "environment_Alpaca.py")
    choice = ("--class", "FinRLCryptoLike", "--rules", "finrl_crypto", "--n-coins", "3")
    done = run_in(tmp_path, "--compare", *choice, "--steps", "60", "--seconds", "0")
    assert done.returncode == compare.EQUAL, done.stdout + done.stderr
    assert "rules: finrl_crypto; 3 coins" in done.stdout
    assert "equal over" in done.stdout


def run_in(folder, *arguments):
    command = [sys.executable, "environment_Alpaca_vectorized.py", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


def test_an_instance_is_compared_with_the_settings_that_it_has():
    price = 100.0 * np.exp(np.random.default_rng(1).normal(0, 0.01, (90, 3)).cumsum(axis=0))
    norms = {"norm_cash": 1e-3, "norm_stocks": 1e-2, "norm_tech": 1.0, "norm_reward": 1e-2, "norm_action": 5.0}
    scalar = CappuccinoLike({"price_array": price, "tech_array": price}, {"lookback": 3, **norms}, 900.0, gamma=0.9)
    scalar.safety_factor_stock_buy = 0.7
    batch = drop_in.from_scalar_env(scalar, 24, rules="cappuccino", as_numpy=False, autoreset=False, gpu_id=-1)
    assert (batch.params.initial_capital, batch.params.cash_haircut, batch.params.gamma) == (900.0, 0.7, 0.9)
    watch = compare.LineWatch(HostClass(CappuccinoLike))
    hosts = [type(scalar)({"price_array": price, "tech_array": price}, {"lookback": 3, **norms}, 900.0, gamma=0.9)
             for _ in range(8)]  # fmt: skip
    for host in hosts:
        host.safety_factor_stock_buy = 0.7
    assert compare.SideBySide(hosts, batch, watch, 0).run(200) is None
    with pytest.raises(ValueError, match="is not recognized; pass rules"):
        drop_in.from_scalar_env(scalar)
