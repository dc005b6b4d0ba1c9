#!/usr/bin/env python3
"""Bars a second of an evaluation: policies traded in the compiled loop, and in the loop in torch that it replaces.

What is timed is `evaluate_policies` as a study calls it: the environment is made, every segment is traded once, records
are returned. The account values of both loops are compared. The loops add up in another order, as torch does for
another number of rows: an order within a rounding of the venue's minimum is filled in one and not in the other.
"""

from __future__ import annotations

import argparse
import sys
from itertools import chain, pairwise
from typing import Any

import numpy as np

from benchmarks import measuring

N_BARS, N_BARS_QUICK = 17_500, 600
# Width of the net, policies, segments of each.
CASES = ((128, 1, 1), (128, 1, 2), (128, 12, 2), (32, 1, 1), (512, 1, 1))
LEAST, MOST_APART = 5.0, 1e-6
COMPILED, IN_TORCH = "compiled loop", "loop in torch"
COLUMNS = measuring.columns("contender", "net", "policies", segments="segments of each", per_s="bars/s of all accounts")
COLUMNS |= {"us": "us per bar of an account", "ratio": "compiled, times this"}
COLUMNS |= {"apart": "largest relative difference of an account", "flips": "orders filled by one of the two alone"}
ABOUT = (
    f"Evaluation of {N_BARS:,} bars, shared by the segments: 7 coins, observations of 393 numbers, two hidden layers, "
    "rules standard."
)


def policy_of(width: int, seed: int) -> Any:
    """Random weights that trade a lot."""
    import torch

    from benchmarks import contenders as who
    from drl_agents.policy import Policy

    layers = tuple(who.random_layers(width, seed))
    return Policy(torch.zeros(who.STATE_DIM), torch.ones(who.STATE_DIM), layers)


def contenders(
    width: int, n_policies: int, n_segments: int, n_bars: int
) -> tuple[list[measuring.Local], dict[str, Any]]:
    """Both loops, and how far their accounts are apart: columns of the table."""
    from benchmarks import contenders as who
    from train.evaluator import evaluate_policies

    policies = [policy_of(width, seed) for seed in range(n_policies)]
    edges = np.linspace(0, n_bars, n_segments + 1).astype(int).tolist()
    segments = [list(pairwise(edges))] * n_policies
    units = sum(b - a - who.LOOKBACK for a, b in segments[0]) * n_policies

    def evaluate(acts: list[Any]) -> list[Any]:
        return evaluate_policies(acts, segments, who.config(), who.RULES["standard"])

    in_torch = [policy.__call__ for policy in policies]  # no policies of ours, as far as the evaluator knows
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
    """The section."""
    rows: list[dict[str, Any]] = []
    checks: list[dict[str, Any]] = []
    for width, n_policies, n_segments in CASES[: 1 if args.quick else None]:
        timed, case = contenders(width, n_policies, n_segments, N_BARS_QUICK if args.quick else N_BARS)
        rates = measuring.interleaved(timed, *measuring.rounds_of(args))
        rows += [row | {"us": 1e6 / row["per_s"]} for row in measuring.rows_against(timed, rates, **case)]
        name = f"net {width}, {n_policies} policies, {n_segments} segments"
        checks.append(measuring.check(f"times the loop in torch, {name}", rows[-1]["ratio"], least=LEAST))
        if not case["flips"]:
            checks.append(measuring.check(f"relative difference of an account, {name}", case["apart"], most=MOST_APART))
    return measuring.section(args, ABOUT, COLUMNS, rows=rows, checks=[] if args.quick else checks)


if __name__ == "__main__":
    sys.exit(measuring.run("evaluation", __doc__, measure))
