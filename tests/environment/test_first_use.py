"""The first use of a native step: a wrong, broken or slow one is found, and the outcome is remembered."""

import errno
import json
import os
import subprocess
import sys
import time
from dataclasses import fields, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from environment_Alpaca_vectorized import (
    RULES,
    EnvParams,
    NoNativeStep,
    VectorizedCryptoEnvAlpaca,
    VectorizedCryptoEnvAlpacaOptimized,
    kernels,
)
from tests.environment.test_parity import VARIANTS
from tests.support.markets import INTERPRETS_TRITON, REPO, params_of, random_config

first_use, outcomes, trial, cpu = (kernels(name) for name in ("first_use", "outcomes", "trial", "cpu"))
Contender, Outcome = first_use.Contender, outcomes.Outcome
pytestmark = pytest.mark.filterwarnings("ignore:the plain torch step runs")
interpreted = pytest.mark.skipif(not INTERPRETS_TRITON, reason="no triton here, or a GPU")


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """A user's cache folder that is empty, and a process that knows nothing yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(first_use, "_known", {})
    return tmp_path / "cache" / "environment_Alpaca" / "steps"


def fast_env(rules="standard", **options):
    return VectorizedCryptoEnvAlpacaOptimized(random_config(60), params_of(rules), 4, gpu_id=-1, **options)


def planted(monkeypatch, **methods):
    """Give the CPU's native step other methods, as a compiler's mistake or another machine would."""
    wrong = type("NativeStep", (cpu.NativeStep,), methods)
    monkeypatch.setattr(cpu, "NativeStep", wrong)
    return wrong


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


# ---------------------------------------------------------------- the comparison
class Counter:
    """A contender whose account earns 1.0 a step; `off` maps a step to what is added there to a field."""

    def __init__(self, off=None):
        self.t, self.off = 0, off or {}
        self.values = {"cash": torch.zeros(3, dtype=torch.float64), "done": torch.zeros(3, dtype=torch.bool),
                       "state": torch.ones(3, 2), "trades": torch.zeros(3, dtype=torch.int64)}  # fmt: skip

    def advance(self, _action):
        self.t += 1
        self.values["cash"] += 1.0
        for name, index, value in self.off.get(self.t, ()):
            self.values[name][index] = value

    def contender(self):
        return Contender(self.advance, lambda: self.values)


ACTIONS = torch.zeros(70, 3, 2)


@pytest.mark.parametrize("step", [1, 2, 20, 21, 45, 70])
@pytest.mark.parametrize(
    ("name", "value"), [("cash", -1.0), ("cash", torch.nan), ("done", True), ("state", 1.00001), ("trades", 1)]
)
def test_the_first_step_and_field_that_differ_are_named(step, name, value):
    native = Counter({step: [(name, -1, value)]})
    found = first_use.compare(Counter().contender(), native.contender(), ACTIONS)
    assert (found.step, found.field) == (step, name)
    assert found.n_steps == min(-(-step // first_use.CHUNK_STEPS) * first_use.CHUNK_STEPS, 70)


def test_rounding_and_equal_undefined_values_are_no_difference():
    plain, native = Counter(), Counter()
    plain.values["cash"][0] = native.values["cash"][0] = torch.nan
    native.values["cash"][1] += 4e-10
    native.values["state"] += 4e-7
    assert first_use.compare(plain.contender(), native.contender(), ACTIONS) == first_use.Compared(70)


def test_a_comparison_that_is_late_ends_and_still_sees_what_came_before():
    native = Counter({3: [("cash", 0, 9.0)]})
    late = iter([False, False, False, True])
    assert first_use.compare(Counter().contender(), native.contender(), ACTIONS, lambda: next(late)).step == 3
    assert first_use.compare(Counter().contender(), Counter().contender(), ACTIONS, lambda: True).n_steps == 1


def test_the_ratio_is_that_of_the_fastest_rounds():
    now = [0.0]
    took = {"plain": iter([9.0] + [0.4] * 5 + [0.2] * 10), "native": iter([30.0] + [0.1] * 10 + [0.2] * 5)}

    def contender(name):
        def advance(_action):
            now[0] += next(took[name])

        return Contender(advance, dict)

    ratio = first_use.speed_ratio(contender("plain"), contender("native"), ACTIONS, clock=lambda: now[0])
    assert ratio == pytest.approx(0.2 / 0.1)


# ---------------------------------------------------------------- the native step of the CPU
def test_a_right_step_is_compared_over_a_few_hundred_steps_once_and_remembered(cache, monkeypatch):
    assert fast_env().stepped_by == "numba"
    (path,) = files(cache)
    found = json.loads(path.read_text())
    assert (found["verdict"], found["step"], found["reason"]) == ("equal", "numba", "")
    assert found["ratio"] > 2.0
    assert 20 * len(RULES) <= found["n_steps"] <= cpu.N_TRIED_STEPS * len(RULES)
    assert set(found["key"]) == {"step", "device", "torch", "code", "numba", "features"}
    assert abs(found["when_s"] - time.time()) < 60.0

    def never(*_arguments, **_options):
        raise AssertionError("compared again")

    monkeypatch.setattr(first_use, "try_out", never)
    assert fast_env("cappuccino").stepped_by == "numba", "remembered by the process"
    monkeypatch.setattr(first_use, "_known", {})
    assert fast_env().stepped_by == "numba", "remembered on disk"


def test_the_comparison_is_cheap_enough_for_every_first_start():
    fast_env()  # compiled
    first_use._known.clear()
    (path,) = files(outcomes.folder())
    path.unlink()
    started = time.process_time()
    fast_env()
    assert time.process_time() - started < 2.0  # 0.5 s on an idle core


def test_the_accounts_of_the_comparison_trade_end_and_restart():
    for build in trial.of_every_rule_set(lambda env: cpu.NativeStep(env, checked=False), cpu.N_TRIED_STEPS):
        tried, n_done, n_trades = build(), torch.zeros(trial.N_ENVS, dtype=torch.int64), 0
        for action in tried.actions:
            tried.plain.advance(action)
            seen = tried.plain.fields()
            n_done, n_trades = n_done + seen["done"], n_trades + int(seen["info trades"].sum())
        assert (int((n_done > 0).sum()) > trial.N_ENVS / 2, n_trades > 1000) == (True, True), tried.label


def step_that_adds(to, amount):
    """A method `bind` after which account 5 has something added to one of its records in every step."""

    def bind(self, slots, is_own=False):
        advance = cpu_bind(self, slots, is_own)

        def wrong(action):
            advance(action)
            if self.n_envs == trial.N_ENVS:
                to(self, slots, amount)

        return wrong

    return bind


cpu_bind = cpu.NativeStep.bind


def add_to_cash(kernel, _slots, amount):
    kernel.accounts["cash"][0, 5] += amount


def add_to_state(_kernel, slots, amount):
    slots["state"][5, 0] += amount


@pytest.mark.parametrize(("to", "amount", "field"), [(add_to_cash, 1e-3, "cash"), (add_to_state, 1e-2, "state")])
def test_a_step_that_differs_is_never_used_and_the_field_and_step_are_named(to, amount, field, monkeypatch, cache):
    planted(monkeypatch, bind=step_that_adds(to, amount))
    for native_step in (True, "always"):
        env = fast_env(native_step=native_step)
        assert env.stepped_by == "torch"
        assert f"first at step 2, field {field} (rules finrl_crypto)" in env.why_not_native
    env.reset()
    assert env.step(torch.ones(4, 3))[0].shape == (4, env.state_dim)
    (path,) = files(cache)
    assert str(path) in env.why_not_native, "how to try again"


def test_more_coins_than_the_stack_holds_take_the_plain_step():
    price = np.full((8, 1001), 10.0)
    config = {"price_array": price, "tech_array": np.zeros((8, 1))}
    with pytest.warns(RuntimeWarning, match="at most 1000 coins; received 1001"):
        env = VectorizedCryptoEnvAlpacaOptimized(config, {"rules": "standard", "lookback": 1}, n_envs=2, gpu_id=-1)
    assert env.stepped_by == "torch"


def test_the_warning_of_a_step_that_differs_names_field_and_step(monkeypatch):
    planted(monkeypatch, bind=step_that_adds(add_to_cash, 1e-3))
    with pytest.warns(RuntimeWarning, match="plain torch step.*differs.*step 2, field cash"):
        fast_env()


def test_every_weight_of_a_reward_is_on_in_the_first_trial():
    names = [field.name for field in fields(cpu.drop_in.EnvParams)]
    weights = [name for name in names if name.endswith(("_weight", "_penalty"))]
    for settings in (trial.EVERY_PHASE, {name: 1.0 for variant in VARIANTS.values() for name in variant}):
        assert [name for name in weights if not settings.get(name)] == []


RECORDED = (
    "costs.buy_fee_rate", "costs.sell_fee_rate", "costs.slippage_rate", "gamma", "stale_fraction", "cash_haircut",
    "norm_cash", "norm_stocks", "norm_reward", "norm_action", "min_cash_reserve", "max_position_weight",
    "trailing_stop_pct", "time_decay_floor", "growth_weight", "benchmark_weight", "drawdown_penalty",
    "volatility_penalty", "concentration_penalty", "turnover_penalty", "stale_bars", "min_order_notional",
    "initial_capital", "buy_fee_rate",
)  # fmt: skip
COMPILED_IN = ("TARGET_WEIGHT", "HELD_BARS_SCALE")  # constants of the drop-in, so the plain step's is made wrong


@pytest.mark.slow
@pytest.mark.parametrize("name", [*RECORDED, *COMPILED_IN])
def test_a_step_that_has_one_setting_a_little_wrong_is_found(name, monkeypatch):
    if name in COMPILED_IN:
        monkeypatch.setattr(cpu.drop_in, name, getattr(cpu.drop_in, name) * 1.02)

    def make(env):
        kernel = cpu.NativeStep(env, checked=False)
        record, _, field = name.rpartition(".")
        rules = kernel.rules[record] if record else kernel.rules
        if name in RECORDED:
            rules[field] = rules[field] + 1 if name == "stale_bars" else rules[field] * 1.02
        return kernel

    trials = trial.of_every_rule_set(make, cpu.N_TRIED_STEPS)
    found = first_use.try_out(trials, Outcome("numba", "x", "failed"), budget_s=30.0)
    assert found.verdict == "differs", found


@pytest.mark.parametrize("error", [RuntimeError("no such device"), OSError(errno.ENOSPC, "No space left on device"),
                                   TypeError("of another version"), cpu.NumbaError("cannot be typed")])  # fmt: skip
def test_a_step_that_raises_when_it_is_first_launched_falls_back_at_construction(error, monkeypatch, cache):
    def bind(_self, _slots, is_own=False):
        def launch(_action):
            raise error

        return launch

    planted(monkeypatch, bind=bind)
    env = fast_env()
    assert env.stepped_by == "torch"
    assert type(error).__name__ in env.why_not_native
    assert str(error.args[-1]) in env.why_not_native
    assert json.loads(files(cache)[0].read_text())["verdict"] == "failed"


def test_a_failure_is_tried_again_after_a_day_and_a_difference_is_not(cache):
    key = {"step": "numba"}
    for verdict, age_s, is_kept in (("failed", 60.0, True), ("failed", 90_000.0, False), ("differs", 9e6, True)):
        outcomes.write(Outcome("numba", "x", verdict, "why", when_s=time.time() - age_s, key=key))
        assert (outcomes.read(key) is not None) is is_kept


def test_a_slow_step_is_used_only_when_asked_for(monkeypatch):
    def bind(self, slots, is_own=False):
        advance = cpu_bind(self, slots, is_own)
        return lambda action: (time.sleep(0.01), advance(action))

    planted(monkeypatch, bind=bind)
    env = fast_env()
    assert env.stepped_by == "torch"
    assert "times as long as the plain step" in env.why_not_native
    assert 'native_step="always"' in env.why_not_native
    asked = fast_env(native_step="always")
    assert (asked.stepped_by, asked.why_not_native) == ("numba", None)


def test_copies_and_resized_environments_keep_to_the_outcome(monkeypatch):
    import copy
    import pickle

    planted(monkeypatch, bind=step_that_adds(add_to_cash, 1e-3))
    env = fast_env()
    for other in (copy.deepcopy(env), pickle.loads(pickle.dumps(env))):
        assert other.stepped_by == "torch"
    env.env_num = 2
    assert env.stepped_by == "torch"


# ---------------------------------------------------------------- the cache
DAMAGED = {
    "empty": b"", "cut": b'{"step": "numba", "dev', "no json": b"\xff\xfe\x00", "a list": b"[]", "a number": b"3",
    "a deep one": b"[" * 100_000, "no verdict": b'{"step": "numba"}',
}  # fmt: skip


@pytest.mark.parametrize("damage", [*DAMAGED, "another key", "another verdict", "a negative time", "a text as time"])
def test_a_damaged_file_is_ignored_and_written_again(damage, cache):
    fast_env()
    (path,) = files(cache)
    whole = json.loads(path.read_text())
    changed = {"another key": {"key": whole["key"] | {"torch": "1.0"}}, "another verdict": {"verdict": "splendid"},
               "a negative time": {"when_s": -1.0}, "a text as time": {"when_s": "now"}}.get(damage)  # fmt: skip
    path.write_bytes(DAMAGED[damage] if changed is None else json.dumps(whole | changed).encode())
    first_use._known.clear()
    assert outcomes.read(whole["key"]) is None
    assert fast_env().stepped_by == "numba"
    again = json.loads(path.read_text())
    assert (again["verdict"], again["key"]) == ("equal", whole["key"])
    assert files(cache) == [path]


@pytest.mark.parametrize("code", [errno.EROFS, errno.ENOSPC, errno.EACCES])
@pytest.mark.parametrize("call", ["mkstemp", "fsync", "replace", "mkdir"])
def test_a_folder_that_cannot_be_written_means_no_cache_and_no_error(call, code, cache, monkeypatch):
    def refuse(*_arguments, **_options):
        raise OSError(code, os.strerror(code))

    owner = {"mkstemp": outcomes.tempfile, "mkdir": outcomes.Path}.get(call, outcomes.os)
    monkeypatch.setattr(owner, call, refuse)
    assert fast_env().stepped_by == "numba"
    monkeypatch.undo()
    assert files(cache) == []


@pytest.mark.parametrize("place", ["a file", "a relative path", "no home"])
def test_a_place_that_is_no_folder_means_no_cache_and_no_error(place, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    homes = {"a file": str(tmp_path / "file"), "a relative path": "cache", "no home": ""}
    monkeypatch.setenv("XDG_CACHE_HOME", homes[place])
    monkeypatch.setenv("HOME", str(tmp_path / "home") if place == "a relative path" else "nowhere")
    monkeypatch.chdir(tmp_path)
    assert fast_env().stepped_by == "numba"
    assert [path.parent for path in files(tmp_path) if path.suffix == ".json"] == [
        tmp_path / "home" / ".cache" / "environment_Alpaca" / "steps"
    ] * (place == "a relative path")


def test_a_new_version_of_the_code_is_compared_anew(cache, monkeypatch):
    fast_env()
    monkeypatch.setattr(first_use, "_known", {})
    monkeypatch.setattr(first_use, "_code", lambda: "another hash")
    fast_env()
    assert len(files(cache)) == 2


def test_the_hash_follows_every_file_of_the_folder_and_the_drop_in(tmp_path, monkeypatch):
    for name in ("a.py", "b.py", "outcomes.py", "drop_in.py"):
        (tmp_path / name).write_text("1")
    (tmp_path / "kernels").mkdir()
    for name in ("a.py", "b.py", "outcomes.py"):
        (tmp_path / name).rename(tmp_path / "kernels" / name)
    monkeypatch.setattr(outcomes, "__file__", str(tmp_path / "kernels" / "outcomes.py"))
    hashes = [outcomes.code_sha256(str(tmp_path / "drop_in.py"))]
    for path in (tmp_path / "kernels" / "b.py", tmp_path / "drop_in.py"):
        path.write_text("2")
        hashes.append(outcomes.code_sha256(str(tmp_path / "drop_in.py")))
    assert len(set(hashes)) == 3


TWICE = """
import torch
from tests.support.markets import params_of, random_config
from environment_Alpaca_vectorized import VectorizedCryptoEnvAlpacaOptimized
env = VectorizedCryptoEnvAlpacaOptimized(random_config(60), params_of("standard"), 4, gpu_id=-1)
env.reset()
print(env.stepped_by, float(env.step(torch.ones(4, 3))[1].sum()))
"""


def test_two_processes_at_once_both_end_well_and_leave_one_whole_file(cache):
    environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    started = [subprocess.Popen([sys.executable, "-c", TWICE], env=environment, stdout=subprocess.PIPE, text=True)
               for _ in range(2)]  # fmt: skip
    said = [process.communicate(timeout=300)[0] for process in started]
    assert said[0] == said[1]
    assert said[0].startswith("numba")
    (path,) = files(cache)
    assert json.loads(path.read_text())["verdict"] == "equal"


# ---------------------------------------------------------------- the Triton kernel, interpreted
def interpreted_env(kernel_class, rules="standard", native_step=True, **options):
    """An environment that uses the GPU's kernel with the check that a GPU would make."""

    class Env(VectorizedCryptoEnvAlpacaOptimized):
        def _native_kernel(self):
            try:
                return kernel_class(self, checked=True)
            except NoNativeStep as reason:
                self.why_not_native = str(reason)
                return None

    config = random_config(60, n_assets=2, n_features=2)
    return Env(config, params_of(rules), 4, gpu_id=-1, native_step=native_step, **options)


@interpreted
@pytest.mark.parametrize("rules", ["standard", "cappuccino"])
def test_the_interpreted_kernel_is_right_too_slow_and_judged_in_time(rules, cache):
    started = time.perf_counter()
    env = interpreted_env(kernels("gpu").NativeStep, rules)
    assert time.perf_counter() - started < 5.0 + 3.0  # the machine that runs tests is busy
    assert env.stepped_by == "torch"
    assert "times as long" in env.why_not_native
    found = json.loads(files(cache)[0].read_text())
    assert (found["verdict"], found["took_s"] < 5.0, found["n_steps"] > 1) == ("slower", True, True)
    assert interpreted_env(kernels("gpu").NativeStep, rules, native_step="always").stepped_by == "triton"


@interpreted
def test_a_wrong_kernel_is_found_in_the_interpreter_too(cache):
    gpu = kernels("gpu")

    class Wrong(gpu.NativeStep):
        def __init__(self, env, checked=None):
            super().__init__(env, checked)
            self.rules["sell_fee_rate"] = 0.004

    env = interpreted_env(Wrong, native_step="always")
    assert env.stepped_by == "torch"
    assert "differs from the plain step on the CPU, interpreted" in env.why_not_native
    assert ", field cash" in env.why_not_native
    assert json.loads(files(cache)[0].read_text())["verdict"] == "differs"


@interpreted
def test_a_kernel_that_raises_at_its_first_launch_falls_back_at_construction(monkeypatch):
    gpu = kernels("gpu")

    class Broken(gpu.NativeStep):
        def launch(self, _out, _action):
            raise gpu.TritonError("out of resource: shared memory")

    env = interpreted_env(Broken)
    assert (env.stepped_by, env.is_capturable) == ("torch", False)
    assert "out of resource: shared memory" in env.why_not_native


@interpreted
@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_trial_compiles_the_very_kernel_that_the_environment_runs(rules, variant):
    gpu = kernels("gpu")
    config = random_config(60, n_assets=3, seed=len(variant), qty_increment=1e-6 * ("increments" in variant))
    options = {"compact": "stop" in variant, "episode_bars": 12 if "terms" in variant else None,
               "autoreset": "capped" not in variant, "as_numpy": False}  # fmt: skip
    env = VectorizedCryptoEnvAlpacaOptimized(config, params_of(rules, **VARIANTS[variant]), 3, gpu_id=-1, **options)
    made = []
    trial.like(env, lambda other: made.append(gpu.NativeStep(other, checked=False)) or made[0], n_steps=1)
    assert made[0].choices == gpu.choices_of(env)


@interpreted
@pytest.mark.parametrize(
    ("properties", "name"),
    [({"name": "AMD Radeon RX 7900 GRE", "gcnArchName": "gfx1100"}, "AMD Radeon RX 7900 GRE (gfx1100)"),
     ({"name": "NVIDIA L4", "major": 8, "minor": 9}, "NVIDIA L4 (sm_89)")],
)  # fmt: skip
def test_an_outcome_is_kept_by_the_cards_name_and_architecture(properties, name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: SimpleNamespace(**properties))
    assert kernels("gpu").device_name(torch.device("cuda:0")) == name


def test_a_trial_like_an_environment_has_its_market_and_settings():
    config = random_config(80, n_assets=3, seed=4, qty_increment=1e-5)
    config["price_array"][:5, 1] = 0.0
    settings = params_of("cappuccino", stale_bars=900, trailing_stop_pct=0.3)
    env = VectorizedCryptoEnvAlpaca(config, settings, 3, gpu_id=-1)
    seen = []
    tried = trial.like(env, lambda other: seen.append(other) or cpu.NativeStep(other, checked=False), 60)
    (other,) = seen
    assert replace(other.params, stale_bars=900, trailing_stop_pct=0.3) == env.params
    assert other.market.min_qty.tolist() == env.market.min_qty.tolist()
    levels = other.market.price[0] / env.market.price[5]
    assert ((levels > 0.8) & (levels < 1.25)).all()
    assert first_use.compare(tried.plain, tried.native, tried.actions) == first_use.Compared(60)


def test_settled_parameters_are_taken_as_they_are():
    settings = EnvParams.from_mapping(params_of("cappuccino", fee_rate=0.01), gamma=0.9)
    env = VectorizedCryptoEnvAlpaca(random_config(60), settings, 3, gpu_id=-1, seed=7)
    assert env.params is settings
    assert (env.n_envs, env.seed) == (3, 7)


# ---------------------------------------------------------------- a compiler's words
def test_what_a_failing_compiler_prints_becomes_the_reason_and_nothing_else_is_shown(capfd):
    def launch(_action):
        os.write(2, b"file.py:200:1: error: unsupported target: 'gfx1030'\n" + b"%1 = tt.load\n" * 900)
        sys.stdout.write("and more\n")
        raise RuntimeError("PassManager::run failed")

    tried = first_use.Trial(Counter().contender(), Contender(launch, dict), ACTIONS)
    found = first_use.try_out([lambda: tried], Outcome("triton", "x", "failed"))
    assert found.reason == "RuntimeError: unsupported target: 'gfx1030'"
    assert capfd.readouterr() == ("", "")


def test_what_a_compiler_prints_without_failing_is_shown(capfd):
    with first_use.quiet_compiler([]):
        os.write(2, b"a warning\n")
    assert "a warning" in capfd.readouterr().err


def test_without_room_for_a_compilers_words_the_step_is_compared_all_the_same(monkeypatch):
    def full(*_arguments, **_options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(first_use.tempfile, "TemporaryFile", full)
    assert fast_env().stepped_by == "numba"


def test_a_process_without_standard_error_compares_too():
    code = "import os; os.close(2)\n" + TWICE
    environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True, check=False)
    assert done.stdout.startswith("numba")
    assert np.isfinite(float(done.stdout.split()[1]))


def test_an_equal_outcome_after_few_steps_is_not_remembered(cache, monkeypatch):
    monkeypatch.setattr(first_use, "_alarm", lambda _seconds: lambda: True)  # a machine too slow for more
    assert fast_env().stepped_by == "numba"
    assert files(cache) == []
