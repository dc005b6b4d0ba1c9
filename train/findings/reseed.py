"""Retraining of a trial with additional seeds, to measure how strongly its result depends on the seed.

Seed i trains every split as the study would with i added to `--seed`. The trial's own seed is never repeated, because
the trial also won by the luck of that seed. Each split is stored in `trial_<n>/seed_<i>/split_<k>/` like a split of the
study, with `result.json` written last. Splits with the same code version, settings and data are not trained again. An
interrupted run resumes at the next split.
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
MISSING, OTHER, SAME = "missing", "from different code, settings or data", "the same"
FIGURES = ("sharpe", "total_return", "max_drawdown", "turnover", "fees", "exposure")

Row = dict[str, Any]


def seed_folder(trial: StoredTrial, seed: int, fold: int) -> Path:
    """Return the path `trial_<n>/seed_<i>/split_<k>`."""
    return trial.folder / f"seed_{seed}" / f"split_{fold}"


def settings_for(trial: StoredTrial, study_seed: int, fold: int, gpu_id: int = -1) -> Resolved:
    """Return the trial's settings with the seed that a study with seed `study_seed` gives to the split."""
    train = dict(trial.settings.train) | {"seed": split_seed(study_seed, fold), "gpu_id": gpu_id}
    return Resolved(train, trial.env, trial.settings.timeframe)


def retrain(
    trial: StoredTrial, study_seed: int, n_seeds: int, gpu_id: int = -1, runner: SplitRunner = run_split
) -> list[Row]:
    """Train the missing splits of seeds 1 to `n_seeds` and return one row per split.

    A split that was trained with different code, settings or data is trained again, so that the averaged results differ
    only in their seeds. If a split cannot be trained, the reason is stored under "failed", and the next call tries
    again.

    Raises:
        StudyError: a result is damaged; the message names the file.
    """
    jobs = [(seed, fold) for seed in range(1, n_seeds + 1) for fold in trial.data.folds]
    for seed, fold in jobs:
        fetch_set(trial.stored.study, trial.folder, _set_name(trial, seed, fold.index))
    found = {(seed, fold.index): _found(trial, seed, fold.index) for seed, fold in jobs}
    missing = [job for job in jobs if found[job[0], job[1].index] != SAME]
    n_other = sum(state == OTHER for state in found.values())
    if n_other:
        logger.info("%d of %d splits were trained with different code (now %s), settings or data; training them again",
                    n_other, len(jobs), code_version())  # fmt: skip
    if missing:
        logger.info("training %d of %d splits, %d environment steps each", len(missing), len(jobs),
                    trial.settings.train["total_env_steps"])  # fmt: skip
    failed: dict[tuple[int, int], str] = {}
    started = time.monotonic()
    for done, (seed, fold) in enumerate(missing, start=1):
        try:
            _train(trial, study_seed, seed, fold, gpu_id, runner)
        except SPLIT_ERRORS as error:
            failed[seed, fold.index] = f"{type(error).__name__}: {str(error).strip() or 'no details'}"
            logger.error("seed %d split %d failed: %s", seed, fold.index, failed[seed, fold.index])
            continue
        left_s = (time.monotonic() - started) / done * (len(missing) - done)
        logger.info("seed %d split %d trained; %d of %d left, ETA %s", seed, fold.index, len(missing) - done,
                    len(missing), duration_text(left_s))  # fmt: skip
    return [_row(trial, seed, fold.index, failed.get((seed, fold.index))) for seed, fold in jobs]


def _found(trial: StoredTrial, seed: int, fold: int) -> str:
    """Return the state of a split's stored result."""
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
    """Return the name of a split's files in the artifact store."""
    return f"trial_{trial.number}/seed_{seed}/split_{fold}"


def _row(trial: StoredTrial, seed: int, fold: int, failure: str | None) -> Row:
    path = seed_folder(trial, seed, fold) / RESULT
    if failure is not None or not path.exists():
        return {"seed": seed, "split": fold, "failed": failure or "not trained"}
    return {"seed": seed, "split": fold, **figures_of(path)}


def figures_of(path: Path) -> Row:
    """Return the metrics in a split's result file. Undefined metrics are nan.

    Raises:
        StudyError: the file is missing or damaged; the message names it.
    """
    result = read_record(path, SplitResult)
    excess = math.nan if result.excess_sharpe is None else result.excess_sharpe
    return {name: float(getattr(result.agent, name)) for name in FIGURES} | {"excess_sharpe": excess}


def own_rows(trial: StoredTrial) -> list[Row]:
    """Return the rows of the trial's own splits, as seed 0."""
    folds = range(len(trial.data.folds))
    return [{"seed": 0, "split": k, **figures_of(trial.folder / f"split_{k}" / RESULT)} for k in folds]


def seed_rows(rows: Sequence[Row]) -> list[Row]:
    """Return one row per seed with the objective and the mean metrics over the splits; no metrics if a split failed.

    If a split is inactive, objective and excess Sharpe ratio are nan, because the study prunes such trials.
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
    """Return mean, standard deviation and worst value of every metric over the new seeds, and the trial's own value.

    If a seed failed, the mean and standard deviation cover the other seeds. The worst value is nan, because the failed
    seed may be the worst.
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
    """Return how many of the new seeds failed and how many were inactive."""
    new = [row for row in by_seed if row["seed"] != 0]
    failed, idle = (sum(row[name] > 0 for row in new) for name in ("failed", "hardly_traded"))
    text = f"{failed} of {len(new)} new seeds failed" + (", so the worst is unknown" if failed else "")
    if idle:
        text += f"; {idle} inactive (mean exposure under {LEAST_EXPOSURE:.0%}), so without a Sharpe ratio"
    return text
