"""The sampler of a study: every trial samples from its own number, whoever runs it and in whatever order."""

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
    """Heartbeats, the Wilcoxon pruner and what TPE is told are marked experimental in Optuna 5; tests hold them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


class SamplerByNumber(BaseSampler):
    """TPE that is seeded anew for every trial, by the trial's number.

    A study that was stopped goes on as if it had not been, where a sampler seeded once would begin the same random
    sequence again and repeat its first trials. Workers together do not sample duplicates for the same reason, and
    trials that were queued with a few of their settings differ in all others. RUNNING trials count as bad ones
    (`constant_liar`), so that what is being tried is not tried again nearby.

    Args:
        seed: of the study.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Seed."""
        with experimental_allowed():
            self._tpe = TPESampler(
                seed=(self._seed * 1_000_003 + trial.number) % 2**32, multivariate=True, group=True, constant_liar=True
            )
        self._tpe.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """As TPE."""
        return self._tpe.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """As TPE."""
        return self._tpe.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """As TPE."""
        return self._tpe.sample_independent(study, trial, param_name, param_distribution)
