#!/usr/bin/env python3
"""Measure environment steps per second through each adapter, relative to the fast class without an adapter.

    python benchmarks/adapters.py              # 12, 1024 and 4096 environments
    python benchmarks/adapters.py --gpu 0      # the same on a GPU

The market comes from benchmarks/contenders.py, with the standard rules and random starts. Actions are drawn in advance,
as NumPy arrays for the libraries that pass NumPy arrays. Each interface is called the way its library calls it. An
episode lasts 15,000 steps on average, so with 4,096 environments about one episode ends in every fourth step.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from benchmarks import measuring

RULES = "standard"
N_ENVS, N_ENVS_QUICK = (12, 1024, 4096), (12, 64)
PEER = "VectorizedCryptoEnvAlpacaOptimized"
COLUMNS = measuring.columns(contender="adapter", n_envs="n_envs", per_s="env-steps/s")
COLUMNS["ratio"] = "speed relative to the bare class"
ABOUT = (
    "The table shows environment steps per second through the adapters. The market has 7 assets, 77 feature columns, "
    "lookback 5 (393 numbers per observation) and 30,000 bars. The rules are standard, episodes start at random bars, "
    "and random actions are drawn in advance."
)
Work = Callable[[], None]


@dataclass(frozen=True)
class Interface:
    """An adapter and the way to step it."""

    name: str  # name of the row
    module: str  # module in adapters/
    env_class: str
    library: str
    package: str  # package that provides the library
    takes_numpy: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def work(self, n_envs: int, gpu: int) -> Work:
        """Return a function that steps once through all actions."""
        from benchmarks import contenders as who

        env_class = getattr(import_module(f"adapters.{self.module}"), self.env_class)
        env = env_class(who.config(), who.RULES[RULES], n_envs, gpu_id=gpu, **self.options)
        if self.takes_numpy:
            return who.stepping(env, list(who.drawn_actions(n_envs, who.N_ASSETS)))
        actions = who.tensor_actions(n_envs, f"cuda:{gpu}" if gpu >= 0 else "cpu")
        return masked_resets(env, actions) if self.library == "torchrl" else who.stepping(env, actions)


def gymnasium_vector(mode: str, label: str, is_numpy: bool, **options: Any) -> Interface:
    """Return Gymnasium's vector interface with an autoreset mode and an output type."""
    given = {"autoreset_mode": mode, "output": "numpy" if is_numpy else "torch", **options}
    name = f"gymnasium_vector, {mode}, {label}"
    return Interface(name, "gymnasium_vector", "CryptoVectorEnv", "gymnasium", "gymnasium", is_numpy, given)


INTERFACES = (
    gymnasium_vector("SameStep", "NumPy", True),
    gymnasium_vector("SameStep", "torch", False),
    gymnasium_vector("NextStep", "NumPy", True),
    gymnasium_vector("NextStep", "torch", False),
    gymnasium_vector("SameStep", "NumPy, copy=False", True, copy=False),
    Interface("stable_baselines3", "stable_baselines3", "CryptoVecEnv", "stable_baselines3", "stable-baselines3", True),
    Interface("torchrl", "torchrl", "CryptoEnv", "torchrl", "torchrl"),
    Interface("skrl", "skrl", "CryptoWrapper", "skrl", "skrl"),
    Interface("rsl_rl", "rsl_rl", "CryptoVecEnv", "rsl_rl", "rsl-rl-lib"),
)


def masked_resets(env: Any, actions: Sequence[Any]) -> Work:
    """Return a function that steps and resets the way a TorchRL collector does."""
    roots = [env.reset()]

    def work() -> None:
        for action in actions:
            roots[0] = env.step_and_maybe_reset(roots[0].set("action", action))[1]

    return work


def bare(n_envs: int, gpu: int) -> Work:
    """Return the fast class without an adapter."""
    from benchmarks import contenders as who

    env = who.batched_env(True, RULES, n_envs, gpu=gpu)
    return who.stepping(env, who.tensor_actions(n_envs, env.device))


def gymnasium_single(gpu: int) -> Work:
    """Return Gymnasium's scalar interface."""
    from adapters.gymnasium_single import CryptoEnv
    from benchmarks import contenders as who

    env = CryptoEnv(who.config(), who.RULES[RULES], gpu_id=gpu)
    return who.stepping_one(env, list(who.drawn_actions(who.N_ASSETS)))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measure every installed library and add a row for each missing one."""
    from benchmarks import contenders as who

    missing: list[dict[str, Any]] = []
    works = [(PEER, 1, bare(1, args.gpu))]
    if who.is_installed("gymnasium"):
        works.append(("gymnasium_single", 1, gymnasium_single(args.gpu)))
    for n_envs in N_ENVS_QUICK if args.quick else N_ENVS:
        works.append((PEER, n_envs, bare(n_envs, args.gpu)))
        for interface in INTERFACES:
            if who.is_installed(interface.library):
                works.append((interface.name, n_envs, interface.work(n_envs, args.gpu)))
            else:
                missing.append(measuring.missing_row(interface.name, interface.package, n_envs))
    found = [who.timed(*work, args.gpu) for work in works]
    rates = measuring.interleaved(found, *measuring.rounds_of(args))
    rows = measuring.rows_of(found, rates, PEER)
    notes = [f"The bare class is {PEER} with the same number of environments and without buffer copies."]
    return measuring.section(args, ABOUT, COLUMNS, peer=PEER, unit="env-steps/s", rows=[*rows, *missing], notes=notes)


if __name__ == "__main__":
    sys.path.pop(0)  # this folder, whose adapters.py would shadow the package
    sys.exit(measuring.run("adapters", __doc__, measure, gpu=True, learns=False))
