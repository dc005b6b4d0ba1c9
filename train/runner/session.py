"""From a request to trials: check everything, open the study, run its workers."""

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
from train.records.attributes import uuid_in
from train.records.errors import StudyError
from train.records.keys import COMMAND, DATA_DIR, OWNER_FILE, TARGET, TESTED_BARS, WORKER
from train.records.provenance import code_version
from train.records.record_files import decode, plain
from train.records.results import closes_file, refuse_unwritable, study_folder, trial_folder
from train.records.stored import Identity, StudyFile, TestedBars, WorkerIdentity
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
from train.store.address import command_text, shown_url
from train.store.artifact_files import STUDY_SET, artifacts_of, send_set, url_in
from train.store.artifact_store import open_artifacts
from train.store.database import experimental_allowed, n_finished, open_study, stored_identity
from train.store.worker_identity import is_this_machine
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

OTHER_NAME = "another --study-name starts afresh"
# One-sided, over at most a dozen splits: 4 splits that are all worse than the best trial's have p = 1/16.
PRUNING_P = 0.1


@dataclass(frozen=True)
class OpenedStudy:
    """A study with everything its trials need."""

    study: optuna.Study
    data: tuple[FoldedData, ...]
    space: Space
    n_envs: int
    folder: Path  # results


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
    held = {d.timeframe: d.holdout for d in data}
    about = StudyFile(
        study.study_name, uuid_in(study.user_attrs), data[0].dataset.synthetic, tuple(d.origin for d in data), held
    )
    folder = study_folder(request.results_dir, about, is_renewed=is_first)
    return OpenedStudy(study, data, space, n_envs, folder)


def _open_store(asked: str | None, own: Identity | None, name: str, is_first: bool) -> str | None:
    """The address of the study's artifact store, which answered; None without one.

    Args:
        asked: `--artifacts`, None where it was not given.
        own: identity of the study of that name, None where there is none.
        name: of the study.
        is_first: whether the store is to answer; a worker's answered the process that started it.

    Raises:
        StudyError: the study has another store or none, or it cannot be used.
    """
    known = None if own is None else own.run.artifacts
    if own is not None and asked not in (None, known):
        kept = f"keeps its files in {known}" if known else "was begun without --artifacts"
        raise StudyError(f"--artifacts {asked}: study {name} {kept}; leave the flag out, or give another --study-name")
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
    """Run trials in this process until the study has its number."""
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
    """Run the trials: with one worker in this process, with several in processes of their own.

    Args:
        opened: the study.
        request: what was asked for.
        interruption: must be in use.
        around_trial: entered around every trial (`train.runner.worker`), with one worker.
        program: the module that a worker process runs, with several.
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
    """Say what is run, and write down what the study's page shows of it."""
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
    logger.info("agent: %s, %d settings are searched", opened.space.agent, len(opened.space.ranges))
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
    """Say where the study's files go; without a store, which trials of other machines have theirs elsewhere."""
    url = url_in(study.user_attrs)
    if url is not None:
        logger.info("artifacts: files of every split are also kept in %s", url)
        return
    away = missing_here(study, folder)
    if away:
        logger.warning(
            "%s ran on %s and left no files in %s: the report, the hold-out, retries and deployments here will lack "
            "them; share --results-dir, or begin a study with --artifacts", counted(sum(away.values()), "trial"),
            ", ".join(sorted(away)), folder,
        )  # fmt: skip


def missing_here(study: optuna.Study, folder: Path) -> Counter[str]:
    """Host -> trials that ran there, on another machine, and have no folder in the results of this one."""
    signed = {t.number: t.user_attrs[WORKER] for t in study.get_trials(deepcopy=False) if WORKER in t.user_attrs}
    hosts: Counter[str] = Counter()
    for number, content in signed.items():
        worker = decode(content, WorkerIdentity, f"the worker of trial {number}")
        if not is_this_machine(worker.host, worker.machine) and not trial_folder(folder, number).exists():
            hosts[worker.host] += 1
    return hosts


def tested_bars(d: FoldedData) -> TestedBars:
    """Which bars the study's trials are tested on: all but the held-out ones."""
    time = d.dataset.time
    return TestedBars(int(time[0]), int(time[-1]), d.dataset.synthetic, d.parent_sha256)


def log_lookahead(data: tuple[FoldedData, ...]) -> None:
    """Say whether the features were checked; columns that others made are tested now where that was never done."""
    for d in data:
        dataset, record = d.dataset, d.dataset.record
        is_ours = dataset.feature_set in FEATURE_SET_NAMES
        found = dataset.standing if is_ours or record.suspects is not None else tested(dataset)[0].standing
        level = logging.INFO if found.kind == CLEAN else logging.WARNING
        logger.log(level, "%s: %s", d.timeframe, found.line)


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
