#!/usr/bin/env python3
"""Measure evaluation speed in bars per second: the compiled loop and the torch loop that it replaces.

The timing covers `evaluate_policies` as a study calls it: build the environment, trade every segment once, return the
records. The account values of both loops are compared. The two loops sum in different orders, as torch does for
different numbers of rows. An order within rounding error of the venue's minimum may therefore fill in only one of them.
"""

from __future__ import annotations

import argparse
import sys
from itertools import chain, pairwise
from typing import Any

import numpy as np

from benchmarks import measuring

N_BARS, N_BARS_QUICK = 17_500, 600
# Network width, number of policies, segments per policy.
CASES = ((128, 1, 1), (128, 1, 2), (128, 12, 2), (32, 1, 1), (512, 1, 1))
LEAST, MOST_APART = 5.0, 1e-6
COMPILED, IN_TORCH = "compiled loop", "loop in torch"
COLUMNS = measuring.columns("contender", "net", "policies", segments="segments per policy", per_s="account-bars/s")
COLUMNS |= {"us": "us per account-bar", "ratio": "speedup of the compiled loop"}
COLUMNS |= {"apart": "largest relative difference in equity", "flips": "orders filled in only one loop"}
ABOUT = (
    f"The table shows the speed of evaluating policies on {N_BARS:,} bars, which are divided among the segments. There "
    "are 7 coins, observations of 393 numbers, two hidden layers and standard rules."
)


def policy_of(width: int, seed: int) -> Any:
    """Return a policy with random weights that trades often."""
    import torch

    from benchmarks import contenders as who
    from drl_agents.policy import Policy

    layers = tuple(who.random_layers(width, seed))
    return Policy(torch.zeros(who.STATE_DIM), torch.ones(who.STATE_DIM), layers)


def contenders(
    width: int, n_policies: int, n_segments: int, n_bars: int
) -> tuple[list[measuring.Local], dict[str, Any]]:
    """Return both loops, and table columns with the differences between their accounts."""
    from benchmarks import contenders as who
    from train.evaluator import evaluate_policies

    policies = [policy_of(width, seed) for seed in range(n_policies)]
    edges = np.linspace(0, n_bars, n_segments + 1).astype(int).tolist()
    segments = [list(pairwise(edges))] * n_policies
    units = sum(b - a - who.LOOKBACK for a, b in segments[0]) * n_policies

    def evaluate(acts: list[Any]) -> list[Any]:
        return evaluate_policies(acts, segments, who.config(), who.RULES["standard"])

    in_torch = [policy.__call__ for policy in policies]  # plain functions, for which the evaluator uses the torch loop
    found = (chain.from_iterable(evaluate(acts)) for acts in (policies, in_torch))
    pairs = list(zip(*found, strict=True))
    apart = max(float(np.abs(one.equity / other.equity - 1.0).max()) for one, other in pairs)
    flips = sum(int(np.abs(one.trades - other.trades).sum()) for one, other in pairs)
    timed = [
        measuring.Local(COMPILED, n_policies * n_segments, lambda: evaluate(policies), units),
        measuring.Local(IN_TORCH, n_policies * n_segments, lambda: evaluate(in_torch), units),
    ]
    case = {"net": width, "policies": n_policies, "segments": n_segments}
    return timed, case | {"apart": apart, "flips": flips}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measure the section."""
    rows: list[dict[str, Any]] = []
    checks: list[dict[str, Any]] = []
    for width, n_policies, n_segments in CASES[: 1 if args.quick else None]:
        timed, case = contenders(width, n_policies, n_segments, N_BARS_QUICK if args.quick else N_BARS)
        rates = measuring.interleaved(timed, *measuring.rounds_of(args))
        rows += [row | {"us": 1e6 / row["per_s"]} for row in measuring.rows_against(timed, rates, **case)]
        policies, segments = f"{n_policies} polic{'y' if n_policies == 1 else 'ies'}", f"{n_segments} segment"
        name = f"net {width}, {policies}, {segments}{'' if n_segments == 1 else 's'}"
        checks.append(measuring.check(f"speedup over the torch loop ({name})", rows[-1]["ratio"], least=LEAST))
        if not case["flips"]:
            checks.append(measuring.check(f"relative difference in equity ({name})", case["apart"], most=MOST_APART))
    return measuring.section(args, ABOUT, COLUMNS, rows=rows, checks=[] if args.quick else checks)


if __name__ == "__main__":
    sys.exit(measuring.run("evaluation", __doc__, measure))
