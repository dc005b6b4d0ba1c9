"""Studies with results of the right form and invented numbers, in seconds: nothing is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

from market.dataset import Dataset
from train.env_factory import resolved_rules, rules_of
from train.records.account import Metrics
from train.records.keys import SETTINGS
from train.records.record_files import plain, write_json
from train.records.results import split_folder, study_folder, trial_folder
from train.records.seals import seal
from train.records.stored import (
    DataFacts,
    FoldBars,
    Holdout,
    HoldoutScore,
    PolicyOrigin,
    PolicyScore,
    SplitFigures,
    StudyFile,
    TrialSettings,
)
from train.study.attainable import attainable_by, tradable
from train.study.folds import FoldedData
from train.study.objective import score
from train.study.search_space import MAX_LOOKBACK
from train.study.split import ATTAINABLE, SplitOutcome, agent_metrics, equal_weight_metrics, outcome_json
from train.study.split_files import write_closes, write_equity
from train.study.venue import policy_origin
from train.validation.benchmarks import Costs, equal_weight
from train.validation.splits import with_warmup

FEE = 0.0025
ENV = {"rules": "standard", "lookback": 1, "fee_rate": FEE, "slippage_rate": 0.0005}
HELD = Holdout(1_704_720_300, 1_704_864_000, 480, 265, "c", "d")
SPACE = {"learning_rate": FloatDistribution(1e-5, 1e-2, log=True), "gamma": FloatDistribution(0.9, 0.999)}


def records_of(dataset: Dataset, test: Any, rng: np.random.Generator, drift: float) -> list[SimpleNamespace]:
    """An account for each test block: half the market's returns, plus luck."""
    records = []
    for first, last in with_warmup(test, dataset.segments, 1, MAX_LOOKBACK):
        bars = np.arange(first, last)
        held = equal_weight(dataset.price[bars], Costs(10_000.0, FEE))
        market = held.equity[1:] / held.equity[:-1] - 1.0
        r = 0.5 * market + rng.normal(drift, 0.001, len(bars) - 1)
        equity = 10_000.0 * np.append(1.0, np.cumprod(1.0 + r))
        traded = np.where(rng.random(len(r)) < 0.05, 100.0, 0.0)
        benchmark = held.equity.copy()
        benchmark[0] = 10_000.0 / (1.0 + FEE)
        records.append(
            SimpleNamespace(
                segment=(first, last), bars=bars, equity=equity, benchmark_equity=benchmark, turnover=traded,
                fees=traded * FEE, trades=(traded > 0).astype(np.int64), exposure=np.full(len(bars), 0.5),
            )
        )  # fmt: skip
    return records


def write_trial(
    folder: Path, data: FoldedData, number: int, seed: int, drift: float, env: Mapping[str, Any] = ENV
) -> list[SplitOutcome]:
    """Files of one trial; its outcomes."""
    dataset, outcomes, rng = data.dataset, [], np.random.default_rng(seed)
    for fold in data.folds:
        records = records_of(dataset, fold.test, rng, drift)
        per_year = dataset.bars_per_year
        agent, other = agent_metrics(records, per_year), equal_weight_metrics(records, per_year)
        reached = attainable_by(records, tradable(dataset.price, dataset.filled, rules_of(env)))
        beside = {name: getattr(reached, name) for name in ATTAINABLE}
        outcome = SplitOutcome(fold.index, agent, other, 1000, 1e5, 1e5, 1.0, **beside)
        out = split_folder(folder, number, fold.index)
        out.mkdir(parents=True, exist_ok=True)
        write_equity(out / "equity.npz", records, dataset.time)
        write_json(out / "result.json", plain(data.origin) | outcome_json(outcome))
        outcomes.append(outcome)
    settings = TrialSettings(
        study=folder.name,
        trial=number,
        train={"seed": [1, 2]},
        env=dict(env),
        data=DataFacts(
            label=dataset.label,
            sha256=dataset.sha256,
            tickers=dataset.tickers,
            source=dataset.source,
            synthetic=dataset.synthetic,
        ),
        folds=tuple(FoldBars(**vars(fold)) for fold in data.folds),
    )
    write_json(trial_folder(folder, number) / SETTINGS, plain(settings) | {"env_resolved": resolved_rules(env)})
    return outcomes


def new_study(results: Path, data: FoldedData, name: str = "made_up") -> tuple[optuna.Study, Path]:
    """A study without trials, in memory, and its folder."""
    study = optuna.create_study(direction="maximize", study_name=name)
    study.set_user_attr("uuid", f"{abs(hash(str(results) + str(id(study)))):032x}")
    study.set_user_attr("data", [data.dataset.label])
    study.set_user_attr("identity", identity_of(data))
    about = StudyFile(name, study.user_attrs["uuid"], data.dataset.synthetic, (data.origin,))
    folder = study_folder(results, about)
    write_closes(folder, data)
    return study, folder


def identity(**changes: Any) -> dict[str, Any]:
    """The least that every study was begun under, as its database keeps it."""
    splits = {"mode": "standard", "num_paths": 3, "k_test_groups": 2}
    return {"data_sha256": {"5m": "a"}, "splits": splits, "run": {"n_envs": 12, "seed": 7}, **changes}


def identity_of(data: FoldedData) -> dict[str, Any]:
    """With the parts that a page shows."""
    known = identity(
        data_sha256={data.timeframe: data.dataset.sha256},
        venue={"name": "alpaca", "volume_30d": 0.0, "order_rules_as_of": "2024-08-31", "fees_as_of": "2023-03-13"},
        holdout={},
    )
    known["splits"][data.timeframe] = {"purge_bars": data.purge_bars, "embargo_bars": data.embargo_bars}
    return known | {"simulator rules": resolved_rules(ENV)}


def figures(**changes: Any) -> Metrics:
    """Of an account that was half invested."""
    known = Metrics(100, 0.01, 0.1, 0.2, 1.0, 1.0, 0.05, turnover=2.0, fees=0.001, trades=20, exposure=0.5)
    return replace(known, **changes)


def split_attributes(*agents: Metrics) -> dict[str, Any]:
    """User attributes of a trial whose account had these figures, one split each."""
    return {f"split_{k}": plain(SplitFigures(agent, figures())) for k, agent in enumerate(agents)}


def holdout_score(agents: Sequence[Metrics] = (figures(),), **changes: Any) -> HoldoutScore:
    """Of trial 4, which passes: both figures are three errors above 0.

    Args:
        agents: of each policy.
        changes: other fields.
    """
    policies = tuple(PolicyScore("policy.safetensors", "b", agent, figures(), 3.0, 1.0, 3.0) for agent in agents)
    known = {
        "study": "made_up", "uuid": "a" * 32, "trial": 4, "holdout": HELD, "data_label": "SYNTHETIC 5m",
        "synthetic": True, "env": ENV, "policies": policies, "mean_excess_sharpe": 3.0, "excess_sharpe_error": 1.0,
        "mean_lead_sharpe": 3.0, "sharpe_standard_error": 1.0,
    }  # fmt: skip
    return HoldoutScore(**known | changes)


def origin(dataset: Dataset) -> PolicyOrigin:
    """What a policy says that was trained on these bars."""
    return policy_origin(dataset, study="s", trial=0, venue=None, code_version="abc123")


def add_complete(study: optuna.Study, folder: Path, data: FoldedData, drift: float = 0.0) -> int:
    """A completed trial with all its files; its number."""
    number = len(study.get_trials(deepcopy=False))
    add_result(study, write_trial(folder, data, number, seed=number, drift=drift), number, data, folder)
    return number


def add_result(study: optuna.Study, outcomes: list[SplitOutcome], number: int, data: FoldedData, folder: Path) -> None:
    """The database's part of a completed trial."""
    rng = np.random.default_rng(number)
    excess = {o.fold: o.excess_sharpe for o in outcomes}
    attrs = {f"split_{o.fold}": outcome_json(o) | seal(folder, number, o.fold) for o in outcomes}
    study.add_trial(
        create_trial(
            params={"learning_rate": 10 ** rng.uniform(-5, -2), "gamma": rng.uniform(0.9, 0.999)},
            distributions=SPACE,
            value=score(list(excess.values())),
            intermediate_values=excess,
            user_attrs=attrs | {"code_version": "abc123"} | plain(data.origin),
        )
    )


def add_ended(study: optuna.Study, state: TrialState, reason: str) -> None:
    """A pruned, failed or running trial without files."""
    name = "pruned" if state == TrialState.PRUNED else "failure"
    study.add_trial(create_trial(state=state, user_attrs={name: reason} if reason else {}))


def idle(outcome: SplitOutcome) -> SplitOutcome:
    """The same split with a Sharpe and Sortino that are not defined."""
    return replace(outcome, agent=replace(outcome.agent, sharpe=float("nan"), sortino=float("nan")))


def unsealed(study: optuna.Study) -> optuna.Study:
    """The study as one from before the database kept hashes of files."""
    old = optuna.create_study(direction="maximize", study_name=study.study_name)
    for name, value in study.user_attrs.items():
        old.set_user_attr(name, value)
    for trial in study.trials:
        for name in trial.user_attrs:
            if name.startswith("split_"):
                trial.user_attrs[name].pop("files")
        old.add_trial(trial)
    return old
