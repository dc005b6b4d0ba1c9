"""Sampler of a study. It is reseeded for each trial number, so samples do not depend on worker or order."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial


@contextmanager
def experimental_allowed() -> Iterator[None]:
    """Suppress Optuna's experimental warnings for heartbeats, the Wilcoxon pruner and TPE options."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


class SamplerByNumber(BaseSampler):
    """TPE sampler that is reseeded for every trial from the trial's number.

    A resumed study continues as if it had not been interrupted. A sampler seeded only once would restart its random
    sequence and repeat its first trials. For the same reason, parallel workers do not sample duplicates, and queued
    trials that fix some settings differ in all others. RUNNING trials count as bad ones (`constant_liar`), so that the
    neighborhood of a running trial is avoided.

    Args:
        seed: seed of the study.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Create the TPE sampler of this trial."""
        with experimental_allowed():
            self._tpe = TPESampler(
                seed=(self._seed * 1_000_003 + trial.number) % 2**32, multivariate=True, group=True, constant_liar=True
            )
        self._tpe.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """See `optuna.samplers.BaseSampler`."""
        return self._tpe.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """See `optuna.samplers.BaseSampler`."""
        return self._tpe.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """See `optuna.samplers.BaseSampler`."""
        return self._tpe.sample_independent(study, trial, param_name, param_distribution)
