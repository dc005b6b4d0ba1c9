"""From a study to a decision about its winner: early gates, refit, one look at the hold-out, late gates, deployment."""

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
    "dry run: nothing refuses it so far; the held-out bars were not looked at, for a look that is not counted makes "
    "every later one worth less"
)


@dataclass(frozen=True)
class Verdict:
    """What a look at the study came to."""

    kind: str
    text: str


CHANGED = Verdict(WAITING, "what is deployed changed meanwhile; the candidate is judged again")


@dataclass(frozen=True)
class _Compared:
    """What the held-out bars said."""

    scored: Scored
    test: int  # its number
    present: Deployment | None  # what was deployed then


def look(request: Request, deployments: Deployments, interruption: Interruption) -> Verdict:
    """Look at the study once; judge its winner if there is one that was not judged before.

    Raises:
        StudyError, DatasetError, SplitError, DeploymentError: something that its user can mend; nothing was decided.
        Interrupted: a signal, while it trained.
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
    """The study that is asked for.

    Raises:
        StudyError: it, its results or the folder of --data-dir are not there.
    """
    if request.data_dir is not None and not request.data_dir.is_dir():
        raise StudyError(f"--data-dir {request.data_dir}: no such dataset folder")
    return open_stored(request.storage, request.study_name, request.results)


def _events(request: Request, deployments: Deployments) -> list[dict[str, Any]]:
    if request.dry_run:  # takes no lock, which would make a file
        return deployments.log.read()
    with deployments.locked():
        return deployments.log.read()


def _not_ready(stored: StoredStudy, request: Request) -> str:
    """Why the study is not judged yet: held-out bars can be looked at a few times only, so not every best trial is."""
    study, n = stored.study, n_finished(stored.study)
    if request.while_running:
        return ""
    if request.min_trials is not None:
        return "" if n >= request.min_trials else f"{n} of --min-trials {request.min_trials} trials finished"
    target = study.user_attrs.get(TARGET)
    if target is not None:
        return "" if n >= target else f"{n} of {target} trials finished"
    if HOLDOUT_SCORE in study.user_attrs:  # written when it first reached its target
        return ""
    return f"{n} trials finished, and it has not reached its --n-trials; --min-trials or --while-running judges it now"


def _nothing_new(known: Event, deployments: Deployments) -> Verdict:
    trial = Candidate(**known["candidate"]).trial
    return Verdict(NOTHING_NEW, f"trial {trial} is still the best; {_told(known, deployments)}")


def _lookahead_refusal(known: Event) -> dict[str, Any] | None:
    """The gate that refused the candidate's features: a check or a declaration since then judges it again."""
    gates = (Gate(**content) for content in known["gates"])
    return next((gate.to_json() for gate in gates if gate.name == LOOKAHEAD and gate.verdict == FAILED), None)


def _told(known: Event, deployments: Deployments) -> str:
    if known["event"] == "accepted":
        present = deployments.current_name()
        since = "" if present == known["deployment"] else f", and since then current leads to {present}"
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
        return _refuse(case, deployments, gates, "the held-out bars were not looked at")
    try:
        policy = _refitted(case, interruption)
    except TrainingDiverged as error:  # with these settings, bars and seed it always does
        gates.append(Gate("refit", str(error), "trains to its end", FAILED))
        return _refuse(case, deployments, gates, "the held-out bars were not looked at")
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
        return _refuse(case, deployments, gates, f"test {test} of these bars", _Compared(scored, test, present))
    return _accept(case, deployments, gates, policy, scored, rows, present, test)


def _held_out(case: Case, data_dir: Path) -> HoldoutRows | None:
    """The held-out bars, checked against what the study wrote down; None where it held nothing out."""
    if case.trial.data.holdout is None:
        return None
    known, tickers = case.stored.identity.holdout, case.trial.settings.data.tickers
    timeframe = case.trial.data.timeframe
    folder = data_folder(case.stored, timeframe, data_dir)
    return load_holdout(folder, None, tickers, case.stored.plan, known)[timeframe]


def _assessed(case: Case) -> Assessment | None:
    """What the report says of the winner's lead; None where that is not defined.

    Raises:
        StudyError: another trial became the best.
    """
    study = case.stored.study
    try:
        returns = read_returns(study, case.stored.folder)
    except StudyError as error:
        logger.warning("the study cannot be judged: %s", error)
        return None
    winner = returns.numbers[returns.winner]
    if winner != case.best.number:
        raise StudyError(f"trial {winner} became the best while trial {case.best.number} was judged")
    return assess(returns, "lead", holdout=is_passed(holdout_score_in(study.user_attrs), winner))


def _refitted(case: Case, interruption: Interruption) -> Policy:
    study_seed, request = case.stored.seed, case.request
    try:
        with interruption.interruptible():
            return refit(case.trial, study_seed, request.seed, request.gpu_id, keep=not request.dry_run)
    except ValueError as error:
        raise StudyError(f"trial {case.trial.number} cannot be trained again: {error}") from error


def _test_number(case: Case, deployments: Deployments, policy: Policy) -> int:
    """Of the candidate among all that were scored on these bars, from any study and any folder that is known of.

    Other studies of the database whose own score on these bars was seen count as well, unless their winners are among
    the tests: whoever chooses among studies by those scores has chosen by these bars.
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
    """Whether a look in the database saw some of these bars; one that does not say which counts."""
    return "bars" not in look or bars.overlap(look["bars"])


def _record_look(case: Case, deployments: Deployments, policy: Policy) -> tuple[Deployment | None, int]:
    """Write the look down before it happens, in the log and in the study; what is deployed, and the test's number."""
    digest = weights_sha256(policy)
    # Other folders of deployments count looks under the study's lock, too.
    with study_lock(case.request.storage, "counting looks at held-out bars"), deployments.locked():
        present = deployments.current()
        test = _test_number(case, deployments, policy)
        look = {"weights_sha256": digest, "test": test, "bars": case.bars.to_json()}
        deployments.log.append("look", **case.about(), **look)
        case.stored.study.set_user_attr(f"{LOOKED}{digest[:16]}", look)
    return present, test


def _score(case: Case, rows: HoldoutRows, policy: Policy, present: Deployment | None) -> tuple[Scored, Present | None]:
    """The candidate on the held-out bars, and beside it what is deployed, where that can be."""
    if present is None:
        return score_policies([policy], [case.trial.env], rows, case.request.gpu_id)[0], None
    why = _why_incomparable(present, case)
    if why:
        (scored,) = score_policies([policy], [case.trial.env], rows, case.request.gpu_id)
        return scored, Present(present.name, present.proven, why)
    params = [case.trial.env, present.env_params]
    scored, theirs = score_policies([policy, present.policy], params, rows, case.request.gpu_id)
    has_seen = present.facts.data.last_time_s >= case.bars.first_time_s
    remark = "; it was trained on some of these bars, which favours it" if has_seen else ""
    return scored, Present(present.name, present.proven, "", remark, theirs)


def _why_incomparable(present: Deployment, case: Case) -> str:
    dataset = case.trial.data.dataset
    pairs: tuple[tuple[str, Any, Any], ...] = (
        ("coins", present.tickers, dataset.tickers),
        ("features", present.feature_names, dataset.feature_names),
        ("bars in seconds", present.bar_seconds, dataset.bar_seconds),
        ("generated market", present.synthetic, dataset.synthetic),
    )
    return ", ".join(f"it has other {what}" for what, theirs, ours in pairs if theirs != ours)


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
    """Whether something else is deployed than what the candidate was compared with."""
    return deployments.deployed_name() != (present.folder.name if present else None)


def _log_gates(gates: Sequence[Gate]) -> None:
    for gate in gates:
        logger.info("  %s", gate.line)
