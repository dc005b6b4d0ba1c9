"""Identity of a study: the bars, their division into splits, and every rule that makes its trials comparable.

The identity is stored when the study is created. A run with a different identity is rejected (`train.store.database`).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import optuna

from train.config import TrainConfig
from train.env_factory import resolved_rules
from train.messages import brief
from train.records.keys import CODE_VERSION
from train.records.record_files import plain
from train.records.stored import Identity
from train.study.folds import LEAST_TRADED_BARS, VALIDATION_FRACTION, FoldedData
from train.study.objective import DEFAULT_BOUNDS, LEAST_EXPOSURE, SPREAD_WEIGHT, Bounds
from train.study.search_space import LEAST_UPDATES, NARROW, Space, stored_narrow
from train.study.search_tables import TABLES
from train.study.split_plan import SplitPlan
from train.study.venue import venue_env, venue_terms

logger = logging.getLogger(__name__)

# Fields of TrainConfig that are not part of "learner". The first two are in "run"; any device may run trials.
RUN_FIELDS = ("n_envs", "seed", "gpu_id", "rocm_settings")


def study_identity(
    data: Sequence[FoldedData],
    plan: SplitPlan,
    space: Space,
    *,
    n_envs: int,
    seed: int,
    volume_30d: float | None = None,
    bounds: Bounds = DEFAULT_BOUNDS,
    artifacts: str | None = None,
) -> dict[str, Any]:
    """Return the identity as plain JSON values: part -> name -> value. Equal identities mean comparable trials."""
    fixed_train, fixed_env = dict(TABLES[space.agent].fixed_train), dict(TABLES[space.agent].fixed_env)
    market = data[0].dataset  # all datasets have the same venue (`train.study.folds.common_market`)
    parts = {
        # Compared before the data, whose hash includes the rules, so that an error names the rule.
        "venue": plain(venue_terms(market, volume_30d)),
        "--holdout": plan.holdout_fraction,
        "data_sha256": {d.timeframe: d.dataset.sha256 for d in data},
        "holdout": {d.timeframe: plain(d.holdout) for d in data},
        "splits": {"mode": plan.mode, "num_paths": plan.num_paths, "k_test_groups": plan.k_test_groups}
        | {d.timeframe: {"purge_bars": d.purge_bars, "embargo_bars": d.embargo_bars} for d in data}
        | {"validation_fraction": VALIDATION_FRACTION, "least_validation_bars": LEAST_TRADED_BARS},
        "search space": space.to_json(),
        "run": {"n_envs": n_envs, "seed": seed} | ({"artifacts": artifacts} if artifacts else {}),
        "simulator rules": _simulator_rules(fixed_env | venue_env(market, volume_30d)),
        "order rules": _order_rules(data),
        "learner": _learner(fixed_train) | {"least_updates": LEAST_UPDATES},
        "scoring": {"spread_weight": SPREAD_WEIGHT, "least_exposure": LEAST_EXPOSURE, **asdict(bounds)},
    }
    return json.loads(json.dumps(plain(parts)))


def absent_values(stored: Identity) -> dict[str, dict[str, Any]]:
    """Return the values that applied to studies whose stored identity lacks some names: part -> name -> value.

    A setting that was added later has a default that reproduces the earlier behavior.
    """
    return {
        "search space": {NARROW: stored_narrow(stored.search_space)},
        "simulator rules": _simulator_rules(dict(TABLES[stored.agent].fixed_env)) if stored.agent in TABLES else {},
        "learner": _learner({}),
    }


def warn_of_other_code(study: optuna.Study, version: str) -> None:
    """Log a warning if earlier trials ran a different version. Its rules are equal, but its code may differ."""
    trials = study.get_trials(deepcopy=False)
    others = sorted({t.user_attrs[CODE_VERSION] for t in trials if CODE_VERSION in t.user_attrs} - {version})
    if others:
        logger.warning(
            "code: this is version %s, but earlier trials ran %s; their values may not be comparable. To start from "
            "scratch, pass a different --study-name", version, brief(", ".join(others), 80),
        )  # fmt: skip


def _simulator_rules(env: Mapping[str, Any]) -> dict[str, Any]:
    return resolved_rules(dict(env) | {"lookback": 1})


def _learner(train: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in asdict(TrainConfig(**train)).items() if name not in RUN_FIELDS}


def _order_rules(data: Sequence[FoldedData]) -> dict[str, Any]:
    """Return the smallest order and the increment of each coin, in coins."""
    rules = {}
    for d in data:
        config = d.dataset.env_config()
        for ticker, least, step in zip(
            config["tickers"], config["min_order_qty"], config["qty_increment"], strict=True
        ):
            rules[ticker] = {"min_order_qty": float(least), "qty_increment": float(step)}
    return rules
