"""Decision about a study's best trial: early gates, refit, one hold-out evaluation, late gates and deployment."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drl_agents.policy import Policy
from drl_agents.policy_file import weights_sha256
from train.deploy.case import Case, Request
from train.deploy.contents import check_written, deployment_facts, write_deployment
from train.deploy.decisions import Bars, Candidate, Event, judgement_of, lookers_at, looks_at
from train.deploy.folder import Deployments
from train.deploy.gates import (
    FAILED,
    LOOKAHEAD,
    Gate,
    Present,
    early_gates,
    has_failed,
    improvement_gate,
    late_gates,
    lookahead_gate,
    reason,
    unlooked_gates,
    waived_names,
)
from train.deploy.loading import (
    Deployment,
)
from train.deploy.refit import refit
from train.deploy.scores import Scored, score_policies
from train.findings.holdout import earlier_looks, load_holdout
from train.findings.overfit import Assessment, assess
from train.findings.returns import read_returns
from train.findings.stored_trial import StoredStudy, data_folder, open_stored, own_data_dir, read_trial
from train.records.attributes import holdout_score_in, uuid_in
from train.records.errors import StudyError
from train.records.keys import HOLDOUT_SCORE, LOOKED, TARGET
from train.run import TrainingDiverged
from train.store.database import n_finished
from train.store.lock import study_lock
from train.study.eligibility import best_trial
from train.study.folds import HoldoutRows
from train.study.holdout_figures import is_passed
from train.study.interruption import Interruption

logger = logging.getLogger(__name__)

REPLACED, NOTHING_NEW, WAITING, REFUSED, WOULD_LOOK = "replaced", "nothing new", "waiting", "refused", "would look"
DRY_RUN = (
    "dry run: all gates passed so far. The hold-out was not evaluated, because an uncounted evaluation would weaken "
    "every later one."
)


@dataclass(frozen=True)
class Verdict:
    """Outcome of one check of the study."""

    kind: str
    text: str


CHANGED = Verdict(WAITING, "another policy was deployed in the meantime; the candidate will be judged again")


@dataclass(frozen=True)
class _Compared:
    """Result of the evaluation on the held-out bars."""

    scored: Scored
    test: int  # number of this evaluation of the held-out bars
    present: Deployment | None  # the policy deployed at that time


def look(request: Request, deployments: Deployments, interruption: Interruption) -> Verdict:
    """Check the study once and judge its best trial if it has not been judged before.

    Raises:
        StudyError, DatasetError, SplitError, DeploymentError: an error that the user can fix; nothing was decided.
        Interrupted: a signal arrived during training.
    """
    stored = open_asked(request)
    best = best_trial(stored.study)
    if best is None:
        return Verdict(WAITING, f"study {request.study_name} has no completed trial yet")
    waiting = _not_ready(stored, request)
    if waiting:
        return Verdict(WAITING, f"study {request.study_name}: {waiting}")
    options = request.limits.to_json()
    candidate = Candidate(stored.uuid, best.number, request.seed, options)
    known = judgement_of(_events(request, deployments), candidate)
    refused = None if known is None else _lookahead_refusal(known)
    if known is not None and refused is None:
        return _nothing_new(known, deployments)
    data_dir = request.data_dir or own_data_dir(stored)
    trial = read_trial(stored, str(best.number), data_dir)
    if known is not None and lookahead_gate(trial.data.dataset, request.limits).to_json() == refused:
        return _nothing_new(known, deployments)
    return _judge(Case(request, stored, best, trial, candidate), deployments, data_dir, interruption)


def open_asked(request: Request) -> StoredStudy:
    """Return the study named on the command line.

    Raises:
        StudyError: the study, its results or the folder of --data-dir does not exist.
    """
    if request.data_dir is not None and not request.data_dir.is_dir():
        raise StudyError(f"--data-dir {request.data_dir}: no such dataset folder")
    return open_stored(request.storage, request.study_name, request.results)


def _events(request: Request, deployments: Deployments) -> list[dict[str, Any]]:
    if request.dry_run:  # takes no lock, because the lock would create a file
        return deployments.log.read()
    with deployments.locked():
        return deployments.log.read()


def _not_ready(stored: StoredStudy, request: Request) -> str:
    """Return why the study is not judged yet, or an empty string.

    The hold-out can be evaluated only a few times, so not every new best trial is judged.
    """
    study, n = stored.study, n_finished(stored.study)
    if request.while_running:
        return ""
    if request.min_trials is not None:
        return "" if n >= request.min_trials else f"{n} of {request.min_trials} trials finished (--min-trials)"
    target = study.user_attrs.get(TARGET)
    if target is not None:
        return "" if n >= target else f"{n} of {target} trials finished"
    if HOLDOUT_SCORE in study.user_attrs:  # written when the study first reached its target
        return ""
    return f"{n} trials finished, fewer than --n-trials; pass --min-trials or --while-running to judge it now"


def _nothing_new(known: Event, deployments: Deployments) -> Verdict:
    trial = Candidate(**known["candidate"]).trial
    return Verdict(NOTHING_NEW, f"trial {trial} is still the best; {_told(known, deployments)}")


def _lookahead_refusal(known: Event) -> dict[str, Any] | None:
    """Return the look-ahead gate that refused the candidate, or None if a different gate did.

    A later check or declaration lets such a candidate be judged again.
    """
    gates = (Gate(**content) for content in known["gates"])
    return next((gate.to_json() for gate in gates if gate.name == LOOKAHEAD and gate.verdict == FAILED), None)


def _told(known: Event, deployments: Deployments) -> str:
    if known["event"] == "accepted":
        present = deployments.current_name()
        since = "" if present == known["deployment"] else f"; {present} has replaced it since"
        return f"deployed as {known['deployment']} on {known['utc']}{since}"
    return f"refused on {known['utc']}: {known['why']}"


# --------------------------------------------------------------------------------------------------------- judging
def _judge(case: Case, deployments: Deployments, data_dir: Path, interruption: Interruption) -> Verdict:
    limits = case.request.limits
    logger.info("trial %d of study %s is the best, value %+.4f: %s", case.best.number,
                case.stored.study.study_name, case.best.value, case.trial.data.dataset.label)  # fmt: skip
    rows = _held_out(case, data_dir)
    gates = early_gates(case.best, case.trial.data, _assessed(case), limits, case.stored.n_unverified)
    if has_failed(gates) or rows is None:
        return _refuse(case, deployments, gates, "the hold-out was not evaluated")
    try:
        policy = _refitted(case, interruption)
    except TrainingDiverged as error:  # diverges every time with these settings, bars and seed
        gates.append(Gate("refit", str(error), "training that does not diverge", FAILED))
        return _refuse(case, deployments, gates, "the hold-out was not evaluated")
    if case.request.dry_run:
        gates += unlooked_gates(limits, _test_number(case, deployments, policy))
        _log_gates(gates)
        return Verdict(WOULD_LOOK, DRY_RUN)
    interruption.check()
    present, test = _record_look(case, deployments, policy)
    with interruption.interruptible():
        scored, compared = _score(case, rows, policy, present)
    gates += late_gates(scored, test, limits)
    gates.append(improvement_gate(scored, compared, not waived_names(gates, limits), limits))
    if has_failed(gates):
        return _refuse(case, deployments, gates, f"test {test} on these bars", _Compared(scored, test, present))
    return _accept(case, deployments, gates, policy, scored, rows, present, test)


def _held_out(case: Case, data_dir: Path) -> HoldoutRows | None:
    """Return the held-out bars, verified against the study's record, or None if the study has no hold-out."""
    if case.trial.data.holdout is None:
        return None
    known, tickers = case.stored.identity.holdout, case.trial.settings.data.tickers
    timeframe = case.trial.data.timeframe
    folder = data_folder(case.stored, timeframe, data_dir)
    return load_holdout(folder, None, tickers, case.stored.plan, known)[timeframe]


def _assessed(case: Case) -> Assessment | None:
    """Return the assessment of the winner's alpha returns, or None if it is undefined.

    Raises:
        StudyError: a different trial became the best.
    """
    study = case.stored.study
    try:
        returns = read_returns(study, case.stored.folder)
    except StudyError as error:
        logger.warning("study cannot be judged: %s", error)
        return None
    winner = returns.numbers[returns.winner]
    if winner != case.best.number:
        raise StudyError(
            f"trial {winner} became the best while trial {case.best.number} was being judged; run the command again"
        )
    return assess(returns, "lead", holdout=is_passed(holdout_score_in(study.user_attrs), winner))


def _refitted(case: Case, interruption: Interruption) -> Policy:
    study_seed, request = case.stored.seed, case.request
    try:
        with interruption.interruptible():
            return refit(case.trial, study_seed, request.seed, request.gpu_id, keep=not request.dry_run)
    except ValueError as error:
        raise StudyError(f"trial {case.trial.number} cannot be refitted: {error}") from error


def _test_number(case: Case, deployments: Deployments, policy: Policy) -> int:
    """Return the candidate's number among all evaluations on these bars, from any study and deployments folder.

    Other studies in the database that scored their own winner on these bars are counted as well, unless that winner is
    already among the tests. Choosing between studies by these scores would be selection on these bars.
    """
    events, study, held = deployments.log.read(), case.stored.study, case.trial.data.holdout
    assert held is not None
    looks, logged, tested = looks_at(events, case.bars), lookers_at(events, case.bars), set[str]()
    for other in study._storage.get_all_studies():
        attributes = other.user_attrs.items()
        found = [value for name, value in attributes if name.startswith(LOOKED) and _is_of(value, case.bars)]
        looks |= {value["weights_sha256"]: value["test"] for value in found}
        tested |= {other.study_name} if found or uuid_in(other.user_attrs) in logged else set()
    own = looks.get(weights_sha256(policy))
    if own is not None:
        return own
    seen = set(earlier_looks(study, held, case.bars.synthetic)) - tested
    return max([len(looks) + len(seen), *looks.values()]) + 1


def _is_of(look: Mapping[str, Any], bars: Bars) -> bool:
    """Return True if a recorded evaluation used some of these bars. A record without bars counts as well."""
    return "bars" not in look or bars.overlap(look["bars"])


def _record_look(case: Case, deployments: Deployments, policy: Policy) -> tuple[Deployment | None, int]:
    """Record the evaluation before it happens, in the log and the study; return the deployed policy and test number."""
    digest = weights_sha256(policy)
    # Processes with another deployments folder also count evaluations under the study's lock.
    with study_lock(case.request.storage, "counting evaluations of held-out bars"), deployments.locked():
        present = deployments.current()
        test = _test_number(case, deployments, policy)
        look = {"weights_sha256": digest, "test": test, "bars": case.bars.to_json()}
        deployments.log.append("look", **case.about(), **look)
        case.stored.study.set_user_attr(f"{LOOKED}{digest[:16]}", look)
    return present, test


def _score(case: Case, rows: HoldoutRows, policy: Policy, present: Deployment | None) -> tuple[Scored, Present | None]:
    """Score the candidate on the held-out bars, together with the deployed policy if the two are comparable."""
    if present is None:
        return score_policies([policy], [case.trial.env], rows, case.request.gpu_id)[0], None
    why = _why_incomparable(present, case)
    if why:
        (scored,) = score_policies([policy], [case.trial.env], rows, case.request.gpu_id)
        return scored, Present(present.name, present.proven, why)
    params = [case.trial.env, present.env_params]
    scored, theirs = score_policies([policy, present.policy], params, rows, case.request.gpu_id)
    has_seen = present.facts.data.last_time_s >= case.bars.first_time_s
    remark = "; the deployed policy was trained on some of these bars, which favors it" if has_seen else ""
    return scored, Present(present.name, present.proven, "", remark, theirs)


def _why_incomparable(present: Deployment, case: Case) -> str:
    dataset = case.trial.data.dataset
    pairs: tuple[tuple[str, Any, Any], ...] = (
        ("coins", present.tickers, dataset.tickers),
        ("features", present.feature_names, dataset.feature_names),
        ("bar length", present.bar_seconds, dataset.bar_seconds),
        ("data source (real or generated)", present.synthetic, dataset.synthetic),
    )
    return ", ".join(f"different {what}" for what, theirs, ours in pairs if theirs != ours)


def _refuse(
    case: Case,
    deployments: Deployments,
    gates: Sequence[Gate],
    how: str,
    seen: _Compared | None = None,
) -> Verdict:
    _log_gates(gates)
    why = f"{reason(gates)} ({how})"
    if case.request.dry_run:
        return Verdict(REFUSED, f"dry run: {why}")
    with deployments.locked():
        if seen and _has_changed(deployments, seen.present):
            return CHANGED
        scores, test = (seen.scored.to_json(), seen.test) if seen else (None, None)
        rows = [gate.to_json() for gate in gates]
        deployments.log.append("refused", **case.about(), why=why, gates=rows, scores=scores, test=test)
    return Verdict(REFUSED, f"trial {case.best.number} refused: {why}")


def _accept(
    case: Case,
    deployments: Deployments,
    gates: Sequence[Gate],
    policy: Policy,
    scored: Scored,
    rows: HoldoutRows,
    present: Deployment | None,
    test: int,
) -> Verdict:
    _log_gates(gates)
    facts = deployment_facts(case, gates, policy, scored, test)
    decision = case.about() | {"gates": list(facts.gates), "scores": facts.scores, "test": test}
    with deployments.locked():
        if _has_changed(deployments, present):
            return CHANGED
        deployments.install(
            facts.name,
            lambda folder: write_deployment(folder, policy, facts, scored, rows),
            lambda folder: check_written(folder, scored, rows, case.request.gpu_id),
            decision,
        )
    waived = f"; UNPROVEN, waived: {', '.join(facts.waived)}" if facts.waived else ""
    return Verdict(REPLACED, f"trial {case.best.number} deployed as {facts.name}{waived}")


def _has_changed(deployments: Deployments, present: Deployment | None) -> bool:
    """Return True if the deployed policy is no longer the one that the candidate was compared with."""
    return deployments.deployed_name() != (present.folder.name if present else None)


def _log_gates(gates: Sequence[Gate]) -> None:
    for gate in gates:
        logger.info("  %s", gate.line)
