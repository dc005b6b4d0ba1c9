"""A trial's settings trained again from other seeds: how much of its result is the luck of one.

Seed i trains every split as the study would have with `--seed` larger by i, so no seed is the trial's own, which won by
its luck too. Each split is kept in `trial_<n>/seed_<i>/split_<k>/` as the study keeps its own, `result.json` last: what
is there, of this code version and of the same settings and data, is not trained again, and a run that was stopped goes
on from the next split.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from train.config import TrainConfig
from train.findings.backtest import spread
from train.findings.stored_trial import StoredTrial
from train.records.account import LEAST_EXPOSURE
from train.records.provenance import code_version
from train.records.record_files import read_record
from train.records.seals import OF_A_SPLIT
from train.records.stored import SplitResult
from train.store.artifact_files import fetch_set, send_set
from train.study.folds import Fold
from train.study.holdout_figures import hardly_traded
from train.study.objective import SPLIT_ERRORS, SplitRunner, score, split_seed
from train.study.progress import duration_text, env_steps_bar
from train.study.search_space import Resolved
from train.study.split import run_split
from train.study.split_files import settings_sha256
from train.study.venue import policy_origin

logger = logging.getLogger(__name__)

RESULT = "result.json"
MISSING, OTHER, SAME = "missing", "of other code, settings or data", "the same"
FIGURES = ("sharpe", "total_return", "max_drawdown", "turnover", "fees", "exposure")

Row = dict[str, Any]


def seed_folder(trial: StoredTrial, seed: int, fold: int) -> Path:
    """`trial_<n>/seed_<i>/split_<k>`."""
    return trial.folder / f"seed_{seed}" / f"split_{fold}"


def settings_for(trial: StoredTrial, study_seed: int, fold: int, gpu_id: int = -1) -> Resolved:
    """The trial's settings with the seed that a study of `study_seed` gives to the split."""
    train = dict(trial.settings.train) | {"seed": split_seed(study_seed, fold), "gpu_id": gpu_id}
    return Resolved(train, trial.env, trial.settings.timeframe)


def retrain(
    trial: StoredTrial, study_seed: int, n_seeds: int, gpu_id: int = -1, runner: SplitRunner = run_split
) -> list[Row]:
    """Train what is missing of seeds 1 to `n_seeds` on every split; a row for each of them.

    A split that was trained by another version of the code, under other settings or on other data is trained again, so
    that seeds which are averaged differ by nothing else. One that cannot be trained has its reason under "failed" and
    is tried again by the next call.

    Raises:
        StudyError: a damaged result; names the file.
    """
    jobs = [(seed, fold) for seed in range(1, n_seeds + 1) for fold in trial.data.folds]
    for seed, fold in jobs:
        fetch_set(trial.stored.study, trial.folder, _set_name(trial, seed, fold.index))
    found = {(seed, fold.index): _found(trial, seed, fold.index) for seed, fold in jobs}
    missing = [job for job in jobs if found[job[0], job[1].index] != SAME]
    n_other = sum(state == OTHER for state in found.values())
    if n_other:
        logger.info("%d of %d splits were trained by another code version than %s, under other settings or on other "
                    "data, and are trained again", n_other, len(jobs), code_version())  # fmt: skip
    if missing:
        logger.info("%d of %d splits are to be trained, %d environment steps each", len(missing), len(jobs),
                    trial.settings.train["total_env_steps"])  # fmt: skip
    failed: dict[tuple[int, int], str] = {}
    started = time.monotonic()
    for done, (seed, fold) in enumerate(missing, start=1):
        try:
            _train(trial, study_seed, seed, fold, gpu_id, runner)
        except SPLIT_ERRORS as error:
            failed[seed, fold.index] = f"{type(error).__name__}: {str(error).strip() or 'no message'}"
            logger.error("seed %d split %d failed: %s", seed, fold.index, failed[seed, fold.index])
            continue
        left_s = (time.monotonic() - started) / done * (len(missing) - done)
        logger.info("seed %d split %d trained; %d of %d left, ETA %s", seed, fold.index, len(missing) - done,
                    len(missing), duration_text(left_s))  # fmt: skip
    return [_row(trial, seed, fold.index, failed.get((seed, fold.index))) for seed, fold in jobs]


def _found(trial: StoredTrial, seed: int, fold: int) -> str:
    """What is there of a split."""
    path = seed_folder(trial, seed, fold) / RESULT
    if not path.exists():
        return MISSING
    kept = read_record(path, SplitResult)
    settings_hash = settings_sha256(TrainConfig(**settings_for(trial, 0, fold).train), trial.env)
    wanted = (code_version(), trial.data.dataset.sha256, settings_hash)
    return SAME if (kept.code_version, kept.data_sha256, kept.settings_sha256) == wanted else OTHER


def _train(trial: StoredTrial, study_seed: int, seed: int, fold: Fold, gpu_id: int, runner: SplitRunner) -> None:
    settings = settings_for(trial, study_seed + seed, fold.index, gpu_id)
    origin = policy_origin(
        trial.data.dataset,
        study=trial.settings.study,
        uuid=trial.stored.uuid,
        trial=trial.number,
        split=fold.index,
        reseeded=seed,
        venue=trial.settings.venue,
        seed=settings.train["seed"],
        code_version=code_version(),
    )
    total = settings.train["total_env_steps"]
    with env_steps_bar(total, f"seed {seed} split {fold.index}") as advance:
        runner(settings, trial.data, fold, seed_folder(trial, seed, fold.index), origin, advance)
    files = [seed_folder(trial, seed, fold.index) / name for name in OF_A_SPLIT]
    send_set(trial.stored.study, trial.folder, _set_name(trial, seed, fold.index), files)


def _set_name(trial: StoredTrial, seed: int, fold: int) -> str:
    """Of a split's files in the artifact store."""
    return f"trial_{trial.number}/seed_{seed}/split_{fold}"


def _row(trial: StoredTrial, seed: int, fold: int, failure: str | None) -> Row:
    path = seed_folder(trial, seed, fold) / RESULT
    if failure is not None or not path.exists():
        return {"seed": seed, "split": fold, "failed": failure or "not trained"}
    return {"seed": seed, "split": fold, **figures_of(path)}


def figures_of(path: Path) -> Row:
    """Figures of a split's result file; what is not defined is nan.

    Raises:
        StudyError: missing or damaged; names the file.
    """
    result = read_record(path, SplitResult)
    excess = math.nan if result.excess_sharpe is None else result.excess_sharpe
    return {name: float(getattr(result.agent, name)) for name in FIGURES} | {"excess_sharpe": excess}


def own_rows(trial: StoredTrial) -> list[Row]:
    """The trial's own splits, as seed 0."""
    folds = range(len(trial.data.folds))
    return [{"seed": 0, "split": k, **figures_of(trial.folder / f"split_{k}" / RESULT)} for k in folds]


def seed_rows(rows: Sequence[Row]) -> list[Row]:
    """One row a seed: the study's objective, and means over the splits; nothing where a split failed.

    Where a split hardly traded, Sharpe ratios say nothing: objective and excess Sharpe are nan, as the study prunes.
    """
    out: list[Row] = []
    for seed in sorted({row["seed"] for row in rows}):
        mine = [row for row in rows if row["seed"] == seed]
        failed, idle = (
            sum("failed" in row for row in mine),
            sum(hardly_traded(row.get("exposure", math.nan)) for row in mine),
        )
        figures: Mapping[str, float] = {}
        if not failed:
            names = ("excess_sharpe", *FIGURES)
            figures = {"objective": score([row["excess_sharpe"] for row in mine])}
            figures |= {name: float(np.mean([row[name] for row in mine])) for name in names}
            figures |= dict.fromkeys(("objective", "excess_sharpe", "sharpe"), np.nan) if idle else {}
        out.append({"seed": seed, "splits": len(mine), "failed": failed, "hardly_traded": idle, **figures})
    return out


def spread_rows(by_seed: Sequence[Row]) -> list[Row]:
    """Mean, standard deviation and worst over the new seeds, and the trial's own, of every figure.

    Where a seed failed, mean and deviation are those of the others, and the worst is nan: that one may be it.
    """
    own = next((row for row in by_seed if row["seed"] == 0), {})
    new = [row for row in by_seed if row["seed"] != 0 and not row["failed"]]
    has_failed = any(row["failed"] for row in by_seed if row["seed"] != 0)
    names = ("objective", "excess_sharpe", *FIGURES) if new else ()
    return [
        {"figure": name, "trial": own.get(name, np.nan), **spread(name, [row[name] for row in new])}
        | ({"worst": np.nan} if has_failed else {})
        for name in names
    ]


def seeds_text(by_seed: Sequence[Row]) -> str:
    """How many of the new seeds failed, and how many hardly traded."""
    new = [row for row in by_seed if row["seed"] != 0]
    failed, idle = (sum(row[name] > 0 for row in new) for name in ("failed", "hardly_traded"))
    text = f"{failed} of {len(new)} new seeds failed" + (", so the worst is not known" if failed else "")
    if idle:
        text += f"; {idle} hardly traded (mean exposure under {LEAST_EXPOSURE:.0%}): no Sharpe ratio is taken from them"
    return text
