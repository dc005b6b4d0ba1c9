"""Log lines of a running study, and a progress bar on a terminal."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.pruners import NopPruner
from optuna.trial import FrozenTrial, TrialState
from tqdm import tqdm

from market.names import counted
from train.messages import brief
from train.records.attributes import holdout_score_in, identity_in
from train.records.errors import StudyError
from train.records.keys import SETTINGS
from train.records.results import trial_folder
from train.store.database import n_finished
from train.store.worker_status import StatusFile
from train.study.eligibility import NO_SIGNAL, best_trial, has_no_signal, why_ineligible, why_no_best
from train.study.folds import Fold, FoldedData
from train.study.holdout_figures import idle_text
from train.study.search_space import Resolved, Space, expected_env_steps
from train.validation.splits import Segments, bars_in

if TYPE_CHECKING:
    from train.run import Progress
    from train.study.split import SplitOutcome

logger = logging.getLogger(__name__)


class Reporter:
    """Log of one worker, with an estimate of the remaining time.

    Rates are averages over the splits that this process finished. If `status` is given, progress is also written to it.
    """

    hides_bars: bool | None = None  # None: hidden if standard error is not a terminal

    def __init__(
        self, study: optuna.Study, space: Space, n_folds: int, target: int, status: StatusFile | None = None
    ) -> None:
        self._study, self._n_folds, self._target, self._status = study, n_folds, target, status
        self._expected_env_steps = expected_env_steps(space)
        self._wall_s = 0.0
        self._env_steps = 0
        self._trial_started_s = 0.0
        self._own: int | None = None  # number of the current or latest trial of this process
        self._rates: dict[str, float] = {}

    def trial_started(self, number: int, values: Mapping[str, Any]) -> None:
        """Log the start of a trial. Its settings are in its settings.json and in the log at level debug."""
        self._trial_started_s, self._own = time.monotonic(), number
        logger.info("trial %d: started, %d settings in %s", number, len(values), settings_path(number))
        logger.debug("trial %d: %s", number, ", ".join(f"{name}={shown(value)}" for name, value in values.items()))

    def split_finished(self, number: int, outcome: SplitOutcome) -> None:
        """Log the metrics of a split. After the first split, also log the estimated duration of the study."""
        logger.info("trial %d split %d: %s", number, outcome.fold, outcome_text(outcome))
        is_first = self._env_steps == 0
        self._rates = {
            "explore_steps_per_s": outcome.explore_steps_per_s,
            "update_samples_per_s": outcome.update_samples_per_s,
        }
        self._wall_s += outcome.wall_s
        self._env_steps += outcome.env_steps
        if is_first:
            logger.info("ETA: about %s", self.eta_text())

    def trial_finished(self, trial: FrozenTrial) -> None:
        """Log how the trial ended, the best trial so far, and the remaining time."""
        if self._status is not None:
            self._status.write()
        took = f", {duration_text(self._trial_s())}" if trial.number == self._own else ""  # else it never started
        logger.info("trial %d: %s%s", trial.number, ending_text(trial), took)
        left = f"{n_finished(self._study)} of {self._target} trials finished"
        eta = f", ETA {self.eta_text()}" if self._env_steps and n_finished(self._study) < self._target else ""
        logger.info("%s; %s%s", best_text(self._study), left, eta)

    def eta_text(self) -> str:
        """Return the estimated time for the remaining trials at this worker's pace, shared among the active workers."""
        left = max(self._target - n_finished(self._study), 0)
        running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        n_workers = min(len({self._own, *(trial.number for trial in running)}), max(left, 1))
        split_s = self._expected_env_steps * self._wall_s / max(self._env_steps, 1)
        total_s = math.ceil(left / n_workers) * self._n_folds * split_s
        by = f" by {n_workers} workers" if n_workers > 1 else ""
        pruning = "" if isinstance(self._study.pruner, NopPruner) else "; pruning may shorten it"
        return (
            f"{duration_text(total_s)} for {counted(left, 'trial')} of {self._n_folds} splits{by}, {split_s:.1f} s per "
            f"average split{pruning}"
        )

    @contextmanager
    def progress_bar(self, number: int, settings: Resolved, fold: Fold) -> Iterator[Callable[[Progress], None]]:
        """Yield a function to call after every update of a split.

        The function draws a bar of environment steps if standard error is a terminal, and updates the status file.
        """
        total = settings.train["total_env_steps"]
        title = f"trial {number} split {fold.index}"
        tell = self._status_teller(number, settings, fold)
        # Without a terminal, tqdm is disabled and prints nothing.
        with tqdm(total=total, unit="step", unit_scale=True, desc=title, leave=False, disable=self.hides_bars) as bar:

            def advance(progress: Progress) -> None:
                bar.update(min(progress.env_steps, total) - bar.n)
                tell(progress)

            yield advance

    def _status_teller(self, number: int, settings: Resolved, fold: Fold) -> Callable[[Progress], None]:
        """Return a function that writes the status file when it is due."""
        status = self._status
        if status is None:
            return lambda progress: None
        at = {"trial": number, "split": fold.index, "n_splits": self._n_folds}
        at["total_env_steps"] = settings.train["total_env_steps"]
        last_score: float | None = None
        status.write(**at, **self._rates, env_steps=0)  # starts with the rates of the previous split

        def tell(progress: Progress) -> None:
            nonlocal last_score
            if progress.validation_score is not None and math.isfinite(progress.validation_score):
                last_score = progress.validation_score
            if not status.is_due:
                return
            rollout = settings.train["horizon_len"] * settings.train["n_envs"]  # a band's gradient step uses all of it
            learned = progress.gradient_steps * settings.train.get("batch_size", rollout)
            self._rates = {
                "explore_steps_per_s": progress.env_steps / max(progress.explore_s, 1e-9),
                "update_samples_per_s": learned / max(progress.update_s, 1e-9),
            }
            status.write(**at, **self._rates, env_steps=progress.env_steps, validation_score=last_score)

        return tell

    def _trial_s(self) -> float:
        return time.monotonic() - self._trial_started_s


@contextmanager
def env_steps_bar(total: int, title: str) -> Iterator[Callable[[Progress], None] | None]:
    """Yield a function that advances a bar of environment steps, or None if standard error is not a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    with tqdm(total=total, unit="step", unit_scale=True, desc=title, leave=False) as bar:

        def advance(progress: Progress) -> None:
            bar.update(min(progress.env_steps, total) - bar.n)

        yield advance


def log_data(data: Sequence[FoldedData]) -> None:
    """Log the shape, dates, origin and splits of each dataset."""
    for d in data:
        set_ = d.dataset
        logger.info("data: %s", set_.label)
        logger.info(
            "data: price %s, features %s, tickers %s, sha256 %s",
            set_.price.shape, set_.tech.shape, brief(", ".join(set_.tickers), 100), set_.sha256[:16],
        )  # fmt: skip
        if set_.synthetic:
            logger.warning("data: %s: a generated market, so results do not apply to real coins", set_.kind_text)
        _log_holdout(d)
        logger.info("splits: %d of %s, purge of %d bars before and after each test fold, then embargo of %d bars",
                    len(d.folds), d.timeframe, d.purge_bars, d.embargo_bars)  # fmt: skip
        logger.info("splits: %s", precision_text(d))
        for fold in d.folds:
            if not fold.validation:
                logger.warning(
                    "split %d: no training segment is long enough for a validation fold, so the last checkpoint is "
                    "used. Provide more data, or a smaller --num-paths", fold.index,
                )  # fmt: skip
            logger.info("split %d: fit %s | validation %s | test %s", fold.index, span_text(fold.fit, d),
                        span_text(fold.validation, d), span_text(fold.test, d))  # fmt: skip


def _log_holdout(data: FoldedData) -> None:
    about = data.holdout
    if about is None:
        logger.warning("hold-out: none (--holdout 0), so the best trial cannot be checked on unseen bars")
        return
    logger.info(
        "hold-out: the last %d bars of %s, %s..%s (sha256 %s), after %d purged bars; no trial sees them. The best "
        "trial is evaluated on them once, at the end",
        about.bars, data.timeframe, _date(about.first_time_s), _date(about.last_time_s), about.sha256[:16],
        about.purged_bars,
    )  # fmt: skip


def precision_text(data: FoldedData) -> str:
    """Return the standard error of a split's Sharpe ratio. For small ratios it is sqrt(1 / years) (Lo 2002)."""
    fewest = min(bars_in(fold.test) for fold in data.folds)
    error = math.sqrt(data.dataset.bars_per_year / fewest)
    return (
        f"an annual Sharpe ratio over the {fewest} test bars of the smallest split has a standard error of about "
        f"{error:.1f}; smaller differences may be chance"
    )


def span_text(blocks: Segments, data: FoldedData) -> str:
    """Return `34000 bars, 2024-01-01..2024-02-03 + 2024-05-01..2024-06-07`; more than two ranges are only counted."""
    time_s, n_bars, pieces = data.dataset.time, bars_in(blocks), ""
    if len(blocks) > 2:
        blocks, pieces = ((blocks[0][0], blocks[-1][1]),), f" in {len(blocks)} ranges"
    dates = [f"{_date(time_s[first])}..{_date(time_s[last - 1])}" for first, last in blocks]
    return f"{n_bars} bars" + (", " + " + ".join(dates) if dates else "") + pieces


def outcome_text(outcome: SplitOutcome) -> str:
    """Return the metrics of a split as one line."""
    agent, other = outcome.agent, outcome.equal_weight
    parts = (
        f"Sharpe {agent.sharpe:.2f}, equal weight {other.sharpe:.2f}, excess {outcome.excess_sharpe:+.2f}",
        f"return {agent.total_return:+.2%}, drawdown {agent.max_drawdown:.1%}",
        f"turnover {agent.turnover:.1f}, fees {agent.fees:.2%}, {agent.trades} trades, exposure {agent.exposure:.1%}",
        f"{outcome.explore_steps_per_s:,.0f} env-steps/s, {outcome.update_samples_per_s:,.0f} samples/s",
        f"{outcome.wall_s:.1f} s",
    )
    return " | ".join(parts)


def ending_text(trial: FrozenTrial) -> str:
    """Return how a trial ended, with the reason if it is not eligible."""
    why = brief(why_ineligible(trial))
    if trial.state == TrialState.COMPLETE:
        return f"value {trial.value:+.4f}" + (f", not eligible to be best: {why}" if why else "")
    return f"{'pruned' if trial.state == TrialState.PRUNED else 'FAILED'}: {why}"


def best_text(study: optuna.Study) -> str:
    """Return the number and value of the best trial so far."""
    best = best_trial(study)
    return "best: none yet" if best is None else f"best: {best.value:+.4f} (trial {best.number})"


def summary_lines(study: optuna.Study) -> list[str]:
    """Return the final summary: counts, data, the best value and the location of its settings."""
    counts = {state.name.lower(): 0 for state in TrialState}
    for trial in study.get_trials(deepcopy=False):
        counts[trial.state.name.lower()] += 1
    lines = [f"study {study.study_name}: " + ", ".join(f"{n} {name}" for name, n in counts.items() if n)]
    lines += [f"data: {label}" for label in study.user_attrs.get("data", [])]
    best = best_trial(study)
    if best is None:
        lines.append(f"there is no best trial: {why_no_best(study.get_trials(deepcopy=False))}")
        return [*lines, NO_SIGNAL] if has_no_signal(study) else lines
    lines.append(f"best value {best.value:+.4f}, trial {best.number}: excess Sharpe {splits_text(best)}; settings in "
                 f"{settings_path(best.number)}")  # fmt: skip
    return [*lines, selection_text(study)]


def selection_text(study: optuna.Study) -> str:
    """Return the warning that the best value is biased, and the result of the hold-out."""
    n = len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
    best = best_trial(study)
    return caution_text(study.user_attrs, n, best.number if best else None)


def caution_text(user_attrs: Mapping[str, Any], n_completed: int, best_number: int | None) -> str:
    """Return the text of `selection_text` from a study's attributes and trial counts."""
    checked = check_text(user_attrs, best_number)
    if n_completed == 1:
        return f"only one trial completed; {checked}"
    return (
        f"the best value is the largest of {n_completed} completed trials on the same test folds, so it is biased "
        f"upward; {checked}"
    )


def check_text(user_attrs: Mapping[str, Any], best_number: int | None) -> str:
    """Return the result of the hold-out for the best trial."""
    try:
        scored, identity = holdout_score_in(user_attrs), identity_in(user_attrs)
    except StudyError as error:
        return f"the result of the hold-out cannot be read: {error}"
    if scored is not None and best_number is not None:
        if scored.trial != best_number:
            return f"the hold-out was used for trial {scored.trial} and cannot check this one"
        idle = idle_text(scored)
        if idle:
            return f"on the hold-out, {idle}"
        mean = scored.mean_excess_sharpe
        value = "is undefined for some policies" if mean is None else f"is {mean:+.2f} on average"
        return f"on the hold-out, the excess Sharpe ratio of its {len(scored.policies)} policies {value}"
    if identity is not None and identity.holds_out:
        return "it has not been checked on the hold-out yet"
    return "there is no hold-out to check it on"


def splits_text(trial: FrozenTrial) -> str:
    """Return the range of a trial's excess Sharpe ratios over its splits."""
    values = trial.intermediate_values.values()
    if not values:
        return "unknown"
    return f"{min(values):+.2f} to {max(values):+.2f} over {counted(len(values), 'split')}"


def settings_path(number: int) -> str:
    """Return the path of a trial's settings in the folder of the study's results."""
    return str(trial_folder(Path(), number) / SETTINGS)


def duration_text(seconds: float) -> str:
    """Return a duration such as `45 s`, `12 min` or `3 h 05 min`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def shown(value: Any) -> str:
    """Return a setting as short text."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _date(time_s: Any) -> str:
    return datetime.fromtimestamp(int(time_s), tz=UTC).strftime("%Y-%m-%d")
