"""Session of a study: check the request, open the study and run its workers."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import optuna

from market.defaults import FEATURE_SET_NAMES
from market.foresight import tested
from market.lookahead_record import CLEAN
from market.names import counted
from train.messages import brief
from train.records.attributes import uuid_in
from train.records.errors import StudyError
from train.records.keys import COMMAND, DATA_DIR, OWNER_FILE, TARGET, TESTED_BARS
from train.records.provenance import code_version
from train.records.record_files import decode, plain
from train.records.results import closes_file, refuse_unwritable, study_folder, trial_folder
from train.records.stored import Identity, StudyFile, TestedBars
from train.rocm import apply_rocm_settings
from train.runner.crew import Supervisor
from train.runner.preparation import (
    automatic_n_envs,
    check_environments,
    choose_agent,
    make_space,
    warn_of_small_budget,
)
from train.runner.request import StudyRequest
from train.runner.sharing import SharedData, shared_data
from train.runner.worker import AroundTrial, Ending, Limits, run_worker
from train.store.abandoned import refuse_other_code
from train.store.address import command_text, shown_url
from train.store.artifact_files import STUDY_SET, artifacts_of, send_set, url_in
from train.store.artifact_store import open_artifacts
from train.store.database import experimental_allowed, n_finished, open_study, stored_identity
from train.store.worker_identity import is_this_machine, worker_of
from train.store.worker_status import StatusFile
from train.study.attainable import log_power
from train.study.folds import FoldedData, load_study_data
from train.study.identity import absent_values, study_identity, warn_of_other_code
from train.study.interruption import Interruption
from train.study.objective import Objective, RunSettings
from train.study.progress import Reporter, log_data
from train.study.search_space import Space
from train.study.split_files import write_closes
from train.study.venue import venue_env

logger = logging.getLogger(__name__)

OTHER_NAME = "pass a different --study-name to start over"
# One-sided test on about a dozen splits or fewer: 4 splits that are all worse than the best trial's have p = 1/16.
PRUNING_P = 0.1


@dataclass(frozen=True)
class OpenedStudy:
    """An open study with everything its trials need."""

    study: optuna.Study
    data: tuple[FoldedData, ...]
    space: Space
    n_envs: int
    folder: Path  # results of the study


def open_request(request: StudyRequest, data: tuple[FoldedData, ...] | None = None) -> OpenedStudy:
    """Open the study, and load its data unless they are given.

    Args:
        request: the request of the command line.
        data: in a worker, the data that the parent process loaded and checked; otherwise None.

    Raises:
        StudyError, DatasetError, SplitError: see `run_study`.
    """
    is_first = data is None
    apply_rocm_settings(request.gpu_id, request.rocm_settings)
    if is_first:
        refuse_unwritable(request.results_dir)
    data = data or load_study_data(request.data_dir, request.timeframe, request.tickers, request.plan)
    name = request.study_name or f"cappuccino_{data[0].timeframe}"
    stored = stored_identity(request.storage, name, is_there=not is_first)
    own = None if stored is None else decode(stored, Identity, f"the identity of study {name}", advice=OTHER_NAME)
    artifacts = _open_store(request.artifacts, own, name, is_first)
    space = make_space(request, data, choose_agent(request.agent, own, name), own)
    n_envs = request.n_envs or automatic_n_envs(request, data, space, name, own)
    if is_first:
        check_environments(n_envs, request.gpu_id, data)
    run = {"n_envs": n_envs, "seed": request.seed, "volume_30d": request.volume_30d, "bounds": request.bounds,
           "artifacts": artifacts}  # fmt: skip
    identity = study_identity(data, request.plan, space, **run)
    absent = absent_values(own) if own is not None else None
    study = open_study(request.storage, name, identity, request.resume, make_pruner(request.pruner), absent)
    if is_first:
        refuse_other_code(study)
    held = {d.timeframe: d.holdout for d in data}
    about = StudyFile(
        study.study_name, uuid_in(study.user_attrs), data[0].dataset.synthetic, tuple(d.origin for d in data), held
    )
    folder = study_folder(request.results_dir, about, is_renewed=is_first)
    return OpenedStudy(study, data, space, n_envs, folder)


def _open_store(asked: str | None, own: Identity | None, name: str, is_first: bool) -> str | None:
    """Return the URL of the study's artifact store after checking that it answers, or None if the study has no store.

    Args:
        asked: value of `--artifacts`, or None.
        own: identity of the existing study, or None.
        name: name of the study.
        is_first: check that the store answers. Workers skip this, because their parent process did it.

    Raises:
        StudyError: the study uses a different store or none, or the store is unavailable.
    """
    known = None if own is None else own.run.artifacts
    if own is not None and asked not in (None, known):
        kept = f"uses {known}" if known else "was created without --artifacts"
        raise StudyError(f"--artifacts {asked}: study {name} {kept}; omit the flag, or pass a different --study-name")
    url = asked or known
    if url is not None and is_first:
        open_artifacts(url).reach()
    return url


def work_on(
    opened: OpenedStudy,
    request: StudyRequest,
    interruption: Interruption,
    around_trial: AroundTrial,
    reporter_class: type[Reporter] = Reporter,
) -> Ending:
    """Run trials in this process until the study reaches its target."""
    run = RunSettings(opened.n_envs, request.seed, request.gpu_id, opened.folder, code_version(), request.volume_30d,
                      bounds=request.bounds, rocm_settings=request.rocm_settings,
                      artifacts=artifacts_of(opened.study))  # fmt: skip
    limits = Limits(request.n_trials, request.timeout_s)
    with StatusFile(opened.folder) as status:
        reporter = reporter_class(opened.study, opened.space, len(opened.data[0].folds), request.n_trials, status)
        objective = Objective(opened.space, opened.data, run, reporter, interruption)
        return run_worker(opened.study, objective, request.storage, limits, interruption, around_trial)


def run_workers(
    opened: OpenedStudy, request: StudyRequest, interruption: Interruption, around_trial: AroundTrial, program: str
) -> Ending:
    """Run the trials: in this process if there is one worker, in separate processes if there are several.

    Args:
        opened: the study.
        request: the request of the command line.
        interruption: context manager that is already active.
        around_trial: context entered around every trial of a single worker (`train.runner.worker`).
        program: module that each of several worker processes runs.
    """
    with shared_data(opened.data) as shared:
        if request.workers == 1:
            return work_on(replace(opened, data=shared.open()), request, interruption, around_trial)
        return _run_processes(opened, request, interruption, shared, program)


def _run_processes(
    opened: OpenedStudy, request: StudyRequest, interruption: Interruption, shared: SharedData, program: str
) -> Ending:
    devices = request.gpu_ids or (request.gpu_id,)
    common = replace(request, workers=1, gpu_ids=(), n_envs=opened.n_envs, study_name=opened.study.study_name,
                     agent=opened.space.agent, resume=True)  # fmt: skip

    def request_of(number: int, left_s: float | None) -> StudyRequest:
        return replace(common, gpu_id=devices[number % len(devices)], timeout_s=left_s)

    logger.info("starting %d workers", request.workers)
    return Supervisor(request_of, shared, request.workers, interruption, request.timeout_s, program).run()


def log_opened(opened: OpenedStudy, request: StudyRequest) -> None:
    """Log the data, costs and settings of the run, and store the attributes that the study's page shows."""
    study, data = opened.study, opened.data
    for d in data:
        write_closes(opened.folder, d)
    closes = [closes_file(opened.folder, d.timeframe) for d in data]
    send_set(study, opened.folder, STUDY_SET, [opened.folder / OWNER_FILE, *closes])
    log_data(data)
    log_lookahead(data)
    log_venue(data[0], request.volume_30d)
    log_power(data, request.volume_30d)
    warn_of_small_budget(opened.space)
    logger.info("agent: %s, %d searched settings", opened.space.agent, len(opened.space.ranges))
    logger.info("study %s: %d of %d trials finished, database %s, results in %s", study.study_name, n_finished(study),
                request.n_trials, shown_url(request.storage), opened.folder)  # fmt: skip
    warn_of_other_code(study, code_version())
    _log_store(study, opened.folder)
    study.set_user_attr("data", [d.dataset.label for d in data])
    study.set_user_attr(TESTED_BARS, [plain(tested_bars(d)) for d in data])
    study.set_user_attr("results", str(opened.folder))
    study.set_user_attr(DATA_DIR, str(request.data_dir))
    study.set_user_attr(COMMAND, command_text(sys.orig_argv))
    study.set_user_attr(TARGET, request.n_trials)


def _log_store(study: optuna.Study, folder: Path) -> None:
    """Log the artifact store. Without a store, log the trials whose files are only on other machines."""
    url = url_in(study.user_attrs)
    if url is not None:
        logger.info("artifacts: files of every split are also stored in %s", url)
        return
    away = missing_here(study, folder)
    if away:
        logger.warning(
            "the files of %s that ran on %s are not in %s, so reports, the hold-out, retries and deployments cannot "
            "use them; share --results-dir, or start a study with --artifacts", counted(sum(away.values()), "trial"),
            brief(", ".join(sorted(away)), 60), folder,
        )  # fmt: skip


def missing_here(study: optuna.Study, folder: Path) -> Counter[str]:
    """Count by host the trials of other machines that have no folder in this machine's results."""
    hosts: Counter[str] = Counter()
    for trial in study.get_trials(deepcopy=False):
        worker = worker_of(trial)
        if worker is None or is_this_machine(worker.host, worker.machine):
            continue
        if not trial_folder(folder, trial.number).exists():
            hosts[worker.host] += 1
    return hosts


def tested_bars(d: FoldedData) -> TestedBars:
    """Return the bars that the study's trials are tested on: all bars before the hold-out."""
    time = d.dataset.time
    return TestedBars(int(time[0]), int(time[-1]), d.dataset.synthetic, d.parent_sha256)


def log_lookahead(data: tuple[FoldedData, ...]) -> None:
    """Log the result of the look-ahead check. Custom features that were never checked are tested now."""
    for d in data:
        dataset, record = d.dataset, d.dataset.record
        is_ours = dataset.feature_set in FEATURE_SET_NAMES
        found = dataset.standing if is_ours or record.suspects is not None else tested(dataset)[0].standing
        level = logging.INFO if found.kind == CLEAN else logging.WARNING
        logger.log(level, "%s: %s", d.timeframe, found.line)


def log_venue(d: FoldedData, volume_30d: float | None) -> None:
    """Log the venue's rules and fees, which apply to all environments."""
    venue, rate = d.dataset.venue, venue_env(d.dataset, volume_30d)["fee_rate"]
    logger.info("venue: %s; taker fee %.2f %% for a 30-day volume of %s USD (fees as of %s)",
                venue.label, 100.0 * rate, f"{volume_30d or 0.0:,.0f}", venue.fees_as_of)  # fmt: skip
    missing = venue.unlisted(d.dataset.tickers)
    if missing:
        logger.warning("venue: no order rules for %s, so these coins have no minimum quantity",
                       brief(", ".join(missing), 100))  # fmt: skip


def make_pruner(name: str) -> optuna.pruners.BasePruner:
    """Return the pruner. `wilcoxon` stops trials that are worse than the best trial on paired splits; `none` is off."""
    if name == "none":
        return optuna.pruners.NopPruner()
    with experimental_allowed():
        return optuna.pruners.WilcoxonPruner(p_threshold=PRUNING_P, n_startup_steps=2)
