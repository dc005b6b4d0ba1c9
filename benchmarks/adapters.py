#!/usr/bin/env python3
"""Environment steps per second through each adapter, and their ratio to the fast class without one.

    python benchmarks/adapters.py              # 12, 1024 and 4096 environments
    python benchmarks/adapters.py --gpu 0      # the same on a GPU

The market is benchmarks/contenders.py's, with the standard rules and random starts. Actions are drawn beforehand, as
NumPy arrays for the libraries that pass NumPy arrays. Every interface is driven as its library's loop drives it. An
episode lasts 15 000 steps on average, so that with 4096 environments one ends in every fourth step.
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
COLUMNS = measuring.columns(contender="adapter", n_envs="n_envs", per_s="env-steps/s", ratio="times the bare class")
ABOUT = (
    "Environment steps per second through the adapters. 7 assets, 77 feature columns, lookback 5 (393 numbers an "
    "observation), 30 000 bars, standard rules, random starts, random actions drawn beforehand."
)
Work = Callable[[], None]


@dataclass(frozen=True)
class Interface:
    """An adapter, and how it is driven."""

    name: str  # of the row
    module: str  # of adapters/
    env_class: str
    library: str
    package: str  # that brings the library
    takes_numpy: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def work(self, n_envs: int, gpu: int) -> Work:
        """One call steps through all actions."""
        from benchmarks import contenders as who

        env_class = getattr(import_module(f"adapters.{self.module}"), self.env_class)
        env = env_class(who.config(), who.RULES[RULES], n_envs, gpu_id=gpu, **self.options)
        if self.takes_numpy:
            return who.stepping(env, list(who.drawn_actions(n_envs, who.N_ASSETS)))
        actions = who.tensor_actions(n_envs, f"cuda:{gpu}" if gpu >= 0 else "cpu")
        return masked_resets(env, actions) if self.library == "torchrl" else who.stepping(env, actions)


def gymnasium_vector(mode: str, label: str, is_numpy: bool, **options: Any) -> Interface:
    """Gymnasium's vector interface with that autoreset and output."""
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
    """TorchRL's step and masked reset, as a collector drives them."""
    roots = [env.reset()]

    def work() -> None:
        for action in actions:
            roots[0] = env.step_and_maybe_reset(roots[0].set("action", action))[1]

    return work


def bare(n_envs: int, gpu: int) -> Work:
    """The fast class itself."""
    from benchmarks import contenders as who

    env = who.batched_env(True, RULES, n_envs, gpu=gpu)
    return who.stepping(env, who.tensor_actions(n_envs, env.device))


def gymnasium_single(gpu: int) -> Work:
    """Gymnasium's scalar interface."""
    from adapters.gymnasium_single import CryptoEnv
    from benchmarks import contenders as who

    env = CryptoEnv(who.config(), who.RULES[RULES], gpu_id=gpu)
    return who.stepping_one(env, list(who.drawn_actions(who.N_ASSETS)))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Everything that is installed, and the rows of what is not."""
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
    notes = [f"The bare class is {PEER}, whose buffers are not copied, with as many environments."]
    return measuring.section(args, ABOUT, COLUMNS, peer=PEER, unit="env-steps/s", rows=[*rows, *missing], notes=notes)


if __name__ == "__main__":
    sys.path.pop(0)  # this folder, whose adapters.py would stand for the package
    sys.exit(measuring.run("adapters", __doc__, measure, gpu=True, learns=False))
