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
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks import measuring

RULES = "standard"
N_ENVS, N_ENVS_QUICK = (12, 1024, 4096), (12, 64)
PEER = "VectorizedCryptoEnvAlpacaOptimized"
COLUMNS = {"contender": "adapter", "n_envs": "n_envs", "per_s": "env-steps/s", "ratio": "times the bare class"}
ABOUT = (
    "Environment steps per second through the adapters. 7 assets, 77 feature columns, lookback 5 (393 numbers an "
    "observation), 30 000 bars, standard rules, random starts, random actions drawn beforehand."
)
Work = Callable[[], None]


def bare(n_envs: int, gpu: int) -> Work:
    """The fast class itself."""
    from benchmarks import contenders as who

    env = who.batched_env(True, RULES, n_envs, gpu=gpu)
    return who.stepping(env, who.tensor_actions(n_envs, env.device))


def gymnasium_vector(n_envs: int, gpu: int, **options: Any) -> Work:
    """Gymnasium's vector interface."""
    from adapters.gymnasium_vector import CryptoVectorEnv
    from benchmarks import contenders as who

    env = CryptoVectorEnv(who.config(), who.RULES[RULES], n_envs, gpu_id=gpu, **options)
    tensors = who.tensor_actions(n_envs, env.env.device)
    return who.stepping(env, tensors if options.get("output") == "torch" else list(who.drawn_actions(n_envs, 7)))


def gymnasium_single(n_envs: int, gpu: int) -> Work:
    """Gymnasium's scalar interface."""
    from adapters.gymnasium_single import CryptoEnv
    from benchmarks import contenders as who

    env = CryptoEnv(who.config(), who.RULES[RULES], gpu_id=gpu)

    def work() -> None:
        for action in actions:
            *_, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()

    actions = list(who.drawn_actions(7))
    env.reset()
    return work


def stable_baselines3(n_envs: int, gpu: int) -> Work:
    """SB3's vector interface."""
    from adapters.stable_baselines3 import CryptoVecEnv
    from benchmarks import contenders as who

    env = CryptoVecEnv(who.config(), who.RULES[RULES], n_envs, gpu_id=gpu)
    return who.stepping(env, list(who.drawn_actions(n_envs, 7)))


def torchrl(n_envs: int, gpu: int) -> Work:
    """TorchRL's step and masked reset, as a collector drives them."""
    from adapters.torchrl import CryptoEnv
    from benchmarks import contenders as who

    env = CryptoEnv(who.config(), who.RULES[RULES], n_envs, gpu_id=gpu)
    actions, roots = who.tensor_actions(n_envs, env.device), [env.reset()]

    def work() -> None:
        for action in actions:
            roots[0] = env.step_and_maybe_reset(roots[0].set("action", action))[1]

    return work


def skrl(n_envs: int, gpu: int) -> Work:
    """skrl's interface."""
    from adapters.skrl import CryptoWrapper
    from benchmarks import contenders as who

    env = CryptoWrapper(who.config(), who.RULES[RULES], n_envs, gpu_id=gpu)
    return who.stepping(env, who.tensor_actions(n_envs, env.device))


def rsl_rl(n_envs: int, gpu: int) -> Work:
    """rsl_rl's interface."""
    from adapters.rsl_rl import CryptoVecEnv
    from benchmarks import contenders as who

    env = CryptoVecEnv(who.config(), who.RULES[RULES], n_envs, gpu_id=gpu)
    return who.stepping(env, who.tensor_actions(n_envs, env.device))


def interfaces() -> Iterator[tuple[str, str, str, Callable[..., Work], dict[str, Any]]]:
    """Row name, module and package that it needs, maker, options."""
    for mode in ("SameStep", "NextStep"):
        for label, options in (("NumPy", {}), ("torch", {"output": "torch"})):
            yield (f"gymnasium_vector, {mode}, {label}", "gymnasium", "gymnasium", gymnasium_vector,
                   options | {"autoreset_mode": mode})  # fmt: skip
    yield ("gymnasium_vector, SameStep, NumPy, copy=False", "gymnasium", "gymnasium", gymnasium_vector,
           {"autoreset_mode": "SameStep", "copy": False})  # fmt: skip
    yield "stable_baselines3", "stable_baselines3", "stable-baselines3", stable_baselines3, {}
    yield "torchrl", "torchrl", "torchrl", torchrl, {}
    yield "skrl", "skrl", "skrl", skrl, {}
    yield "rsl_rl", "rsl_rl", "rsl-rl-lib", rsl_rl, {}


def contenders(args: argparse.Namespace) -> tuple[list[measuring.Local], list[dict[str, Any]]]:
    """Everything that is installed, and the rows of what is not."""
    from benchmarks import contenders as who

    found: list[measuring.Local] = []
    missing: list[dict[str, Any]] = []

    def add(name: str, n_envs: int, work: Work) -> None:
        least = -(-200 // who.N_ACTIONS) if args.gpu >= 0 else 1  # a GPU's clock is read after at least 200 steps
        found.append(measuring.Local(name, n_envs, work, who.N_ACTIONS * n_envs, measuring.waiter(args.gpu), least))

    add(PEER, 1, bare(1, args.gpu))
    if who.is_installed("gymnasium"):
        add("gymnasium_single", 1, gymnasium_single(1, args.gpu))
    for n_envs in N_ENVS_QUICK if args.quick else N_ENVS:
        add(PEER, n_envs, bare(n_envs, args.gpu))
        for name, module, package, maker, options in interfaces():
            if who.is_installed(module):
                add(name, n_envs, maker(n_envs, args.gpu, **options))
            else:
                missing.append(measuring.missing_row(name, package, n_envs))
    return found, missing


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The section "adapters"."""
    found, missing = contenders(args)
    rates = measuring.interleaved(found, *measuring.rounds_of(args))
    rows = measuring.rows_of(found, rates, PEER, {})
    notes = [f"The bare class is {PEER}, whose buffers are not copied, with as many environments."]
    return measuring.section(args, ABOUT, COLUMNS, peer=PEER, unit="env-steps/s", rows=[*rows, *missing], notes=notes)


def main(argv: list[str] | None = None) -> int:
    """Measure, print, write."""
    args = measuring.arguments(__doc__).parse_args(argv)
    measuring.with_threads(args)
    import torch

    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    measuring.finish(args, "adapters", measure(args))
    return 0


if __name__ == "__main__":
    sys.exit(main())
