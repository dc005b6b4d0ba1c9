"""From a request to an ended study: check everything, open the study, run trials, say what came of it."""

from __future__ import annotations

import logging
import math
import re
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.exceptions import StorageInternalError
from sqlalchemy.engine import URL

from train.provenance import code_version
from train.rocm import apply_rocm_settings
from train.study.attainable import log_power
from train.study.data import FoldedData, HoldoutRows, SplitPlan, StudyError, load_study_data
from train.study.eligibility import NO_SIGNAL_CODE, best_trial, has_no_signal
from train.study.holdout import load_holdout, score_winner
from train.study.interruption import Interruption
from train.study.objective import DEFAULT_BOUNDS, Bounds, Objective, RunSettings
from train.study.patience import patient_storage, reason_of
from train.study.plot import plot_study
from train.study.preparation import automatic_n_envs, check_environments, choose_agent, make_space, warn_of_small_budget
from train.study.progress import Reporter, log_data, summary_lines
from train.study.report import COMMAND, command_text, report_ended_study
from train.study.results import refuse_unwritable, study_folder, write_closes
from train.study.rules import absent_values, study_identity, warn_of_other_code
from train.study.search_space import LEAST_EPISODE_BARS, Space
from train.study.search_tables import TABLES
from train.study.sharing import SharedData, shared_data
from train.study.storage import (
    DATA_DIR,
    TARGET,
    experimental_allowed,
    n_finished,
    open_study,
    stored_identity,
    study_lock,
)
from train.study.venue import venue_env
from train.study.worker import Ending, Limits, run_worker
from train.study.worker_status import StatusFile
from train.study.workers import Supervisor
from train.study.yardsticks import read_yardsticks, write_yardsticks, yardstick_lines

logger = logging.getLogger(__name__)

PRUNERS = ("wilcoxon", "none")
# One-sided, over at most a dozen splits: 4 splits that are all worse than the best trial's have p = 1/16.
PRUNING_P = 0.1
LEAST_BREAK_STEP = 256


@dataclass(frozen=True)
class StudyRequest:
    """What the command line asks for, checked as far as it can be without looking at any file."""

    n_trials: int
    study_name: str | None  # None: named by the timeframe
    storage: URL
    results_dir: Path
    data_dir: Path
    plan: SplitPlan
    agent: str | None = None  # None: the study's own, or the default of a new study
    timeframe: str | None = None  # None: the data set's own
    tickers: tuple[str, ...] | None = None
    gpu_id: int = -1
    gpu_ids: tuple[int, ...] = ()  # several: workers take them in turn, and gpu_id is the first
    workers: int = 1  # processes on this machine
    n_envs: int | None = 1  # None: the study's own, or chosen for a new one
    break_step: int | None = None
    episode_bars: int | None = None
    use_best_ranges: bool = False
    pruner: str = "wilcoxon"
    seed: int = 0
    volume_30d: float | None = None  # USD; None: not said, so 0 where the venue sets the fee
    bounds: Bounds = DEFAULT_BOUNDS
    timeout_s: float | None = None
    resume: bool = False
    rocm_settings: bool = True  # `train.rocm`, on AMD GPUs

    def __post_init__(self) -> None:
        """Refuse values by the name of their flag."""
        for flag, value, least in (
            ("--n-trials", self.n_trials, 1),
            ("--n-envs", self.n_envs, 1),
            ("--break-step", self.break_step, LEAST_BREAK_STEP),
            ("--episode-bars", self.episode_bars, LEAST_EPISODE_BARS),
            ("--seed", self.seed, 0),
            ("--gpu", min((self.gpu_id, *self.gpu_ids)), -1),
            ("--workers", self.workers, 1),
            ("--min-trades", self.bounds.min_trades, 0),
        ):
            if value is not None and value < least:
                raise StudyError(f"{flag} must be at least {least}; received {value}")
        if self.agent is not None and self.agent not in TABLES:
            raise StudyError(f"--agent must be one of {', '.join(TABLES)}; received {self.agent}")
        if self.timeout_s is not None and not self.timeout_s > 0:
            raise StudyError(f"--timeout is in seconds and must be above 0; received {self.timeout_s}")
        if not 0.0 < self.bounds.max_drawdown <= 1.0:
            raise StudyError(
                f"--max-drawdown is a fraction, above 0 and at most 1; received {self.bounds.max_drawdown:g}"
            )
        if self.volume_30d is not None and not 0.0 <= self.volume_30d < math.inf:
            raise StudyError(f"--volume-30d is in USD and must be at least 0; received {self.volume_30d:g}")
        if self.study_name is not None and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", self.study_name):
            raise StudyError(
                f"--study-name {self.study_name!r} names a folder too: up to 100 letters, digits, _ - and ."
            )
        self._check_gpu()

    def _check_gpu(self) -> None:
        n_gpus = torch.cuda.device_count()
        for gpu_id in (self.gpu_id, *self.gpu_ids):
            if gpu_id >= n_gpus:
                seen = f"numbers 0 to {n_gpus - 1}" if n_gpus else "none"
                raise StudyError(f"--gpu {gpu_id}: torch sees GPUs: {seen}; pass --gpu -1 for the CPU")
        if len(self.gpu_ids) > self.workers:
            raise StudyError(
                f"--gpu {','.join(map(str, self.gpu_ids))} names more GPUs than there are workers; a worker uses one: "
                f"pass --workers {len(self.gpu_ids)}"
            )

    @property
    def given(self) -> dict[str, Any]:
        """Settings fixed on the command line, not sampled."""
        given = {"total_env_steps": self.break_step, "episode_bars": self.episode_bars}
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class OpenedStudy:
    """A study with everything its trials need."""

    study: optuna.Study
    data: tuple[FoldedData, ...]
    space: Space
    n_envs: int
    folder: Path  # results


def run_study(request: StudyRequest) -> int:
    """Run or continue a study; returns the exit code.

    0: the study has a best trial and this run ended as it should; 1: none, or the same failure came again and again;
    5: none, because its policies stayed in cash (`train.study.eligibility`); 128 + n: stopped by signal n.

    Raises:
        StudyError, DatasetError, SplitError: the request cannot be carried out; nothing was written.
    """
    opened = open_request(request)
    study, folder, data = opened.study, opened.folder, opened.data
    _log_opened(opened, request)
    with Interruption() as interruption:
        ending = _run_workers(opened, request, interruption)
        is_over = ending == Ending() and n_finished(study) >= request.n_trials
        best = best_trial(study)
        if is_over and best is not None:
            with study_lock(request.storage, f"hold-out of {study.study_name}"):  # once, on however many machines
                score_winner(study, best, folder, data, lambda: _holdout_rows(request, data), request.gpu_id)
        if is_over:
            with study_lock(request.storage, f"yardsticks of {study.study_name}"):
                write_yardsticks(study, folder, data, request.volume_30d, request.gpu_id)
    return _conclude(study, ending, folder, request)


def open_request(request: StudyRequest, data: tuple[FoldedData, ...] | None = None) -> OpenedStudy:
    """Open the study, and load its data where that has not been done.

    Args:
        request: what is asked for.
        data: in a worker, what the process that started it has loaded and checked; else None.

    Raises:
        StudyError, DatasetError, SplitError: as `run_study`.
    """
    is_first = data is None
    apply_rocm_settings(request.gpu_id, request.rocm_settings)
    if is_first:
        refuse_unwritable(request.results_dir)
    data = data or load_study_data(request.data_dir, request.timeframe, request.tickers, request.plan)
    name = request.study_name or f"cappuccino_{data[0].timeframe}"
    stored = stored_identity(request.storage, name)
    space = make_space(request, data, choose_agent(request.agent, stored, name), stored)
    n_envs = request.n_envs or automatic_n_envs(request, data, space, name, stored)
    if is_first:
        check_environments(n_envs, request.gpu_id, data)
    run = {"n_envs": n_envs, "seed": request.seed, "volume_30d": request.volume_30d, "bounds": request.bounds}
    identity = study_identity(data, request.plan, space, **run)
    absent = absent_values(stored) if stored is not None else None
    study = open_study(request.storage, name, identity, request.resume, make_pruner(request.pruner), absent)
    about = {"synthetic": data[0].dataset.synthetic, "data": [d.origin for d in data]}
    about |= {"holdout": {d.timeframe: d.holdout.to_json() if d.holdout else None for d in data}}
    folder = study_folder(request.results_dir, study.study_name, study.user_attrs["uuid"], about if is_first else None)
    return OpenedStudy(study, data, space, n_envs, folder)


def work_on(
    opened: OpenedStudy, request: StudyRequest, interruption: Interruption, reporter_class: type[Reporter] = Reporter
) -> Ending:
    """Run trials in this process until the study has its number."""
    run = RunSettings(opened.n_envs, request.seed, request.gpu_id, opened.folder, code_version(), request.volume_30d,
                      bounds=request.bounds, rocm_settings=request.rocm_settings)  # fmt: skip
    limits = Limits(request.n_trials, request.timeout_s)
    with StatusFile(opened.folder) as status:
        reporter = reporter_class(opened.study, opened.space, len(opened.data[0].folds), request.n_trials, status)
        objective = Objective(opened.space, opened.data, run, reporter, interruption)
        return run_worker(opened.study, objective, request.storage, limits, interruption)


def _run_workers(opened: OpenedStudy, request: StudyRequest, interruption: Interruption) -> Ending:
    """One in this process, several in processes of their own."""
    with shared_data(opened.data) as shared:
        if request.workers == 1:
            return work_on(replace(opened, data=shared.open()), request, interruption)
        return _run_processes(opened, request, interruption, shared)


def _run_processes(
    opened: OpenedStudy, request: StudyRequest, interruption: Interruption, shared: SharedData
) -> Ending:
    patient_storage(opened.study).gives_up = lambda: interruption.received is not None
    devices = request.gpu_ids or (request.gpu_id,)
    common = replace(request, workers=1, gpu_ids=(), n_envs=opened.n_envs, study_name=opened.study.study_name,
                     agent=opened.space.agent, resume=True)  # fmt: skip

    def request_of(number: int, left_s: float | None) -> StudyRequest:
        return replace(common, gpu_id=devices[number % len(devices)], timeout_s=left_s)

    logger.info("starting %d workers", request.workers)
    return Supervisor(request_of, shared, request.workers, interruption, request.timeout_s).run()


def _log_opened(opened: OpenedStudy, request: StudyRequest) -> None:
    """Say what is run, and write down what the study's page shows of it."""
    study, data = opened.study, opened.data
    for d in data:
        write_closes(opened.folder, d)
    log_data(data)
    log_venue(data[0], request.volume_30d)
    log_power(data, request.volume_30d)
    warn_of_small_budget(opened.space)
    logger.info("agent: %s, %d settings are searched", opened.space.agent, len(opened.space.ranges))
    logger.info("study %s: %d of %d trials finished, database %s, results in %s", study.study_name, n_finished(study),
                request.n_trials, request.storage.render_as_string(), opened.folder)  # fmt: skip
    warn_of_other_code(study, code_version())
    study.set_user_attr("data", [d.dataset.label for d in data])
    study.set_user_attr("results", str(opened.folder))
    study.set_user_attr(DATA_DIR, str(request.data_dir))
    study.set_user_attr(COMMAND, command_text(sys.orig_argv))
    study.set_user_attr(TARGET, request.n_trials)


def log_venue(d: FoldedData, volume_30d: float | None) -> None:
    """Say whose rules and fees every environment has."""
    venue, rate = d.dataset.venue, venue_env(d.dataset, volume_30d)["fee_rate"]
    logger.info("venue: %s; market orders pay the taker fee of an account with %s USD in 30 days, %.2f %% (fees of %s)",
                venue.label, f"{volume_30d or 0.0:,.0f}", 100.0 * rate, venue.fees_as_of)  # fmt: skip
    missing = venue.unlisted(d.dataset.tickers)
    if missing:
        logger.warning("venue: no order rule for %s; they have no minimum quantity", ", ".join(missing))


def make_pruner(name: str) -> optuna.pruners.BasePruner:
    """`wilcoxon`: stop a trial whose splits are, pair by pair, worse than the best trial's; `none`: never."""
    if name == "none":
        return optuna.pruners.NopPruner()
    with experimental_allowed():
        return optuna.pruners.WilcoxonPruner(p_threshold=PRUNING_P, n_startup_steps=2)


def _holdout_rows(request: StudyRequest, data: tuple[FoldedData, ...]) -> Mapping[str, HoldoutRows]:
    """The bars that the study held out, read anew."""
    known = {d.timeframe: d.holdout for d in data}
    return load_holdout(request.data_dir, request.timeframe, request.tickers, request.plan, known)


def _conclude(study: optuna.Study, ending: Ending, folder: Path, request: StudyRequest) -> int:
    has_best = False
    try:
        has_best = _write_pages(study, folder)
    except StorageInternalError as error:
        if ending.signal_number is None:
            raise
        logger.warning("no summary: the database cannot be used (%s)", reason_of(error))
    if ending.signal_number is not None:
        name = signal.Signals(ending.signal_number).name
        logger.info("stopped by %s; what was running is marked failed and queued again", name)
        logger.info("to continue: %s", command_text(sys.orig_argv))
        return 128 + ending.signal_number
    if ending.repeated_failure is not None:
        logger.error("stopped: trials fail again and again, the last with: %s", ending.repeated_failure)
        return 1
    if ending.error is not None:
        logger.error("stopped: %s", ending.error)
        return 1
    if ending.timed_out:
        logger.info("stopped by --timeout; the same command continues, up to %d trials", request.n_trials)
    if has_no_signal(study):
        return NO_SIGNAL_CODE
    return 0 if has_best else 1


def _write_pages(study: optuna.Study, folder: Path) -> bool:
    """Summary, picture and report -> whether there is a best trial."""
    for line in (*summary_lines(study), *yardstick_lines(read_yardsticks(study, folder))):
        logger.info("%s", line)
    best = best_trial(study)
    if best is not None:
        logger.info("picture: %s", plot_study(study, folder, folder / "study.png"))
    report_ended_study(study, folder)
    return best is not None
