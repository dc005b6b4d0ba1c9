"""Outcome of a trial, stored in its results folder before it is written to the database.

The database can be unreachable for hours, and the process can be killed in the meantime. The next start then writes the
stored outcome to the database and does not repeat the trial.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from train.records.attributes import SPLIT
from train.records.record_files import write_json
from train.records.results import trial_folder

logger = logging.getLogger(__name__)

VALUE = "value.json"
KEPT_STATES = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass(frozen=True)
class TrialEnd:
    """Final state and value of a trial."""

    state: TrialState
    value: float | None = None  # only if COMPLETE


def keep(study_folder: Path, trial: FrozenTrial, end: TrialEnd) -> None:
    """Write a trial's outcome into its folder. A failed write is only logged; the database may still accept it."""
    path = trial_folder(study_folder, trial.number) / VALUE
    try:
        write_json(
            path, {"state": end.state.name, "value": end.value, "params": trial.params, "splits": _n_splits(trial)}
        )
    except OSError as error:
        logger.warning("could not write %s: %s; if this process is killed before the result is in the database, the "
                       "trial is repeated", path, error.strerror)  # fmt: skip


def kept(study_folder: Path, trial: FrozenTrial) -> TrialEnd | None:
    """Return the stored outcome of this trial, or None if it is missing, damaged, or belongs to different settings."""
    path = trial_folder(study_folder, trial.number) / VALUE
    try:
        content = json.loads(path.read_text())
        end = TrialEnd(TrialState[content["state"]], content["value"])
        is_same = content["params"] == _as_json(trial.params)
        is_same = is_same and content.get("splits", _n_splits(trial)) == _n_splits(trial)  # else of a restored database
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("ignoring %s, because it cannot be read: %s: %s", path, type(error).__name__, error)
        return None
    return end if is_same and end.state in KEPT_STATES else None


def tell(study: Study, number: int, end: TrialEnd) -> None:
    """Write the outcome of a RUNNING trial to the database.

    Raises:
        ValueError, UpdateFinishedTrialError: the trial is no longer RUNNING.
    """
    study.tell(number, values=end.value, state=end.state)


def _n_splits(trial: FrozenTrial) -> int:
    return sum(name.startswith(SPLIT) for name in trial.user_attrs)


def _as_json(params: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(params))
