"""Refit of the best trial: its settings are retrained on all bars before the hold-out.

A trial leaves one policy per split, and none of them saw all the data. The refit trains on every bar before the
hold-out and the purge in front of it. Its checkpoint is selected on the last part of each training segment, as in every
split, because the study's results were earned with that procedure.

An interrupted refit resumes from its last checkpoint (`train.checkpoint`). A finished refit is reused, because the same
settings, data, seed and code give the same weights.
"""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from drl_agents.policy import Policy
from drl_agents.policy_file import PolicyFileError, load_policy, weights_sha256
from train.checkpoint import Checkpoints
from train.config import TrainConfig
from train.findings.stored_trial import StoredTrial
from train.records.keys import REFIT
from train.records.provenance import code_version, trial_code_sha256
from train.records.record_files import write_json
from train.records.seals import BEST_POLICY, LAST_POLICY, file_sha256
from train.run import train_policy
from train.store.artifact_files import fetch_set, send_set
from train.study.folds import LEAST_TRADED_BARS, VALIDATION_FRACTION, Fold, FoldedData, purge_bars_of
from train.study.objective import split_seed
from train.study.progress import duration_text, env_steps_bar
from train.study.search_space import LEAST_EPISODE_BARS, MAX_LOOKBACK
from train.study.venue import policy_origin
from train.validation.splits import bars_in, validation_cut, with_warmup

logger = logging.getLogger(__name__)

FINISHED = "refit.json"  # written last, after the policy files


def refit_seed(study_seed: int, n_folds: int, seed: int) -> int:
    """Return the seed of the split after the study's last one. `seed` is added to it, like --seed in a study."""
    return split_seed(study_seed + seed, n_folds)


def refit_folder(trial: StoredTrial, seed: int) -> Path:
    """Return the path `trial_<n>/refit_<seed>`."""
    return trial.folder / f"refit_{seed}"


def refit_fold(data: FoldedData) -> Fold:
    """Return a fold of all the study's bars without test bars; validation bars are at the ends of the segments."""
    fit, validation = validation_cut(
        data.dataset.segments,
        VALIDATION_FRACTION,
        purge_bars_of(data.dataset),
        MAX_LOOKBACK + LEAST_EPISODE_BARS,
        LEAST_TRADED_BARS,
    )
    return Fold(len(data.folds), fit, validation, (), ())


def refit(trial: StoredTrial, study_seed: int, seed: int, gpu_id: int = -1, keep: bool = True) -> Policy:
    """Train, resume or read the refitted policy.

    Args:
        trial: the best trial, with its data.
        study_seed: seed of the study.
        seed: 0 for the first refit. A different seed gives a different policy and a new candidate.
        gpu_id: GPU number; -1 is the CPU.
        keep: store the refit in `refit_folder`; if False, an existing refit is read but nothing is written.

    Raises:
        TrainingDiverged, ValueError, RuntimeError, MemoryError, OSError: see `train_policy`.
    """
    fold, folder = refit_fold(trial.data), refit_folder(trial, seed)
    own: dict[str, Any] = {"seed": refit_seed(study_seed, len(trial.data.folds), seed), "gpu_id": gpu_id}
    config = TrainConfig(**(dict(trial.settings.train) | own))
    identity = _identity(trial, fold, config)
    kept, study = f"{REFIT}{trial.number}_{seed}", trial.stored.study
    in_store = f"trial_{trial.number}/{folder.name}"
    fetch_set(study, trial.folder, in_store)
    finished = _finished(folder, identity, study.user_attrs.get(kept))
    if finished is not None:
        logger.info("refit: trial %d, seed %d has already been trained", trial.number, seed)
        return finished
    if not keep:
        with tempfile.TemporaryDirectory(prefix="refit_") as scratch:
            return _train(trial, fold, config, _metadata(trial, fold, seed), Path(scratch))
    checkpoints = Checkpoints(folder)
    policy = _train(trial, fold, config, _metadata(trial, fold, seed), folder, checkpoints)
    write_json(folder / FINISHED, identity | {"weights_sha256": weights_sha256(policy)})
    send_set(study, trial.folder, in_store, [folder / name for name in (FINISHED, BEST_POLICY, LAST_POLICY)])
    study.set_user_attr(kept, _hashes(folder, policy))
    checkpoints.discard()
    return policy


def _train(
    trial: StoredTrial,
    fold: Fold,
    config: TrainConfig,
    metadata: Mapping[str, Any],
    folder: Path,
    checkpoints: Checkpoints | None = None,
) -> Policy:
    dataset = trial.data.dataset
    blocks = with_warmup(fold.validation, dataset.segments, trial.env["lookback"], MAX_LOOKBACK)
    logger.info("refit: training trial %d on %d bars, %d validation bars, %d environment steps",
                trial.number, bars_in(fold.fit), bars_in(blocks), config.total_env_steps)  # fmt: skip
    started = time.monotonic()
    with env_steps_bar(config.total_env_steps, f"refit of trial {trial.number}") as advance:
        train_policy(
            config,
            dataset.env_config(fold.fit),
            trial.env,
            folder,
            validation_config=dataset.env_config(blocks) if blocks else None,
            metadata=metadata,
            on_progress=advance,
            checkpoints=checkpoints,
        )
    logger.info("refit: finished in %s", duration_text(time.monotonic() - started))
    return load_policy(folder / BEST_POLICY)


def _identity(trial: StoredTrial, fold: Fold, config: TrainConfig) -> dict[str, Any]:
    """Return everything that determines the weights, as plain JSON values."""
    content = {
        "train": vars(config),
        "env": trial.env,
        "data_sha256": trial.data.dataset.sha256,
        "fit": fold.fit,
        "validation": fold.validation,
        "code_sha256": trial_code_sha256(),
        "torch": torch.__version__,
    }
    return json.loads(json.dumps(content))


def _metadata(trial: StoredTrial, fold: Fold, seed: int) -> dict[str, Any]:
    """Return the provenance for the policy file, without the settings, layout and seed that training adds."""
    origin = policy_origin(
        trial.data.dataset,
        study=trial.settings.study,
        trial=trial.number,
        refit_seed=seed,
        venue=trial.settings.venue,
        validation_segments=fold.validation,
        code_version=code_version(),
    )
    return origin.to_metadata()


def _hashes(folder: Path, policy: Policy) -> dict[str, str]:
    """Return the hashes of a finished refit that are stored in the study."""
    return {"weights_sha256": weights_sha256(policy), "policy_sha256": file_sha256(folder / BEST_POLICY)}


def _finished(folder: Path, identity: Mapping[str, Any], hashes: Any) -> Policy | None:
    """Return the policy of a finished refit with this identity and these hashes, or None."""
    try:
        kept = json.loads((folder / FINISHED).read_text())
        policy = load_policy(folder / BEST_POLICY)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, PolicyFileError) as error:
        logger.warning("refit: %s cannot be used (%s); training again", folder, error)
        return None
    if kept != dict(identity) | {"weights_sha256": weights_sha256(policy)}:
        logger.info("refit: %s was trained with different settings, data or code; training again", folder)
        return None
    if hashes != _hashes(folder, policy):
        logger.warning("refit: %s does not match the hashes in the database; training again", folder)
        return None
    return policy
