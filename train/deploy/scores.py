"""Results of policies on the hold-out, bar by bar, and the confidence that a policy beats a benchmark.

The test is the probabilistic Sharpe ratio (Bailey and Lopez de Prado 2012) of paired returns: the policy's return minus
the benchmark's return on the same bar, tested against 0. It corrects for skew and fat tails but assumes independent
bars. The number of returns is therefore divided by their serial inflation (Newey and West 1987) if that is above 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from drl_agents.policy import Policy
from drl_agents.policy_file import weights_sha256
from train.env_factory import rules_of
from train.evaluator import EpisodeRecord, evaluate_policies
from train.records.account import Metrics
from train.study.attainable import Attainable, attainable_by, tradable
from train.study.folds import HoldoutRows
from train.study.search_space import MAX_LOOKBACK
from train.study.split import agent_metrics, equal_weight_metrics, figures_json
from train.validation.metrics import joined_returns
from train.validation.overfitting import estimate_sharpe, probabilistic_sharpe
from train.validation.splits import with_warmup

COSTS = ("fee_rate", "slippage_rate", "min_order_notional")  # equal for all policies of one comparison


@dataclass(frozen=True)
class Scored:
    """Result of one policy on the hold-out."""

    weights_sha256: str
    agent: Metrics
    equal_weight: Metrics
    returns: np.ndarray  # (n,) one-bar returns
    benchmark_returns: np.ndarray  # (n,) one-bar returns of equal weight, including the entry fee
    records: Sequence[EpisodeRecord]
    reached: Attainable

    @property
    def excess_return(self) -> float:
        """Compounded return minus that of an equal-weight portfolio."""
        return self.agent.total_return - self.equal_weight.total_return

    @property
    def confidence(self) -> float:
        """Confidence that the mean return is above equal weight AND above equal weight at the policy's own exposure.

        This is the lower of the two confidences. An account that is mostly cash beats equal weight whenever prices
        fall, without skill.
        """
        matched = self.agent.exposure * self.benchmark_returns
        return _lower(confidence(self.returns - self.benchmark_returns), confidence(self.returns - matched))

    def is_same(self, other: Scored) -> bool:
        """Return True if the other result has equal weights and a bit-identical account."""
        pairs = zip(self.records, other.records, strict=True)
        return self.weights_sha256 == other.weights_sha256 and all(
            np.array_equal(a.bars, b.bars) and np.array_equal(a.equity, b.equity) for a, b in pairs
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; undefined figures are null."""
        figures: dict[str, Any] = {"agent": asdict(self.agent), "equal_weight": asdict(self.equal_weight)}
        figures |= {
            "excess_return": self.excess_return,
            "excess_sharpe": self.agent.sharpe - self.equal_weight.sharpe,
            "confidence": self.confidence,
            **self.reached.to_json(),
        }
        return {"weights_sha256": self.weights_sha256} | figures_json(figures)


def score_policies(
    policies: Sequence[Policy], env_params: Sequence[Mapping[str, Any]], rows: HoldoutRows, gpu_id: int = -1
) -> list[Scored]:
    """Trade the held-out bars with all policies in one call, on the same bars.

    Args:
        policies: policies on any device.
        env_params: environment settings of each policy; the costs of the first replace those of the others, so that all
            policies pay the same costs.
        rows: hold-out from `train.findings.holdout.load_holdout`.
        gpu_id: GPU number; -1 is the CPU.

    Raises:
        ValueError: a policy does not fit the data.
    """
    costs = {name: env_params[0][name] for name in COSTS if name in env_params[0]}
    each = [dict(params) | costs for params in env_params]
    dataset = rows.dataset
    segments = [with_warmup(rows.blocks, dataset.segments, params["lookback"], MAX_LOOKBACK) for params in each]
    found = evaluate_policies(policies, segments, dataset.env_config(), each, gpu_id=gpu_id)
    bars = [tradable(dataset.price, dataset.filled, rules_of(params)) for params in each]
    return [
        _scored(policy, records, dataset.bars_per_year, attainable_by(records, traded))
        for policy, records, traded in zip(policies, found, bars, strict=True)
    ]


def _scored(policy: Policy, records: Sequence[EpisodeRecord], per_year: float, reached: Attainable) -> Scored:
    fair = [np.concatenate([r.equity[:1], r.benchmark_equity[1:]]) for r in records]  # from the same cash
    return Scored(
        weights_sha256(policy),
        agent_metrics(records, per_year),
        equal_weight_metrics(records, per_year),
        joined_returns([r.equity for r in records]),
        joined_returns(fair),
        records,
        reached,
    )


def confidence(returns: np.ndarray) -> float:
    """Return the confidence that the mean of one-bar returns (n,) is above 0, or nan if they are constant."""
    estimate = estimate_sharpe(returns)
    independent = max(int(estimate.n_returns / serial_inflation(returns)), 2)
    return probabilistic_sharpe(replace(estimate, n_returns=independent))


def serial_inflation(returns: np.ndarray) -> float:
    """Return the factor, at least 1, by which serial correlation raises the variance of the mean of returns (n,).

    The estimate uses Bartlett weights (Newey and West 1987) over 12 (n / 100)^(1/4) lags (Schwert 1989).
    """
    n = len(returns)
    centred = returns - returns.mean()
    variance = float(centred @ centred)
    if n < 3 or variance == 0.0:
        return 1.0
    lags = min(int(12.0 * (n / 100.0) ** 0.25), n - 2)
    weights = [1.0 - lag / (lags + 1.0) for lag in range(1, lags + 1)]
    shared = [float(centred[lag:] @ centred[:-lag]) / variance for lag in range(1, lags + 1)]
    return max(1.0 + 2.0 * float(np.dot(weights, shared)), 1.0)


def _lower(one: float, other: float) -> float:
    return math.nan if math.isnan(one) or math.isnan(other) else min(one, other)
