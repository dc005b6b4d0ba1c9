"""Hold-out: the last bars of the dataset, scored once for the study's best trial.

No trial saw these bars, so the winner's results on them have no selection bias. This holds only for the first
evaluation; a second trial scored on them would be selected on them. `<study>/holdout.json` is therefore written once,
the study keeps a copy in its database, and scoring another trial is an error.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from market.names import timeframe_name
from market.times import utc_text
from train.env_factory import rules_of
from train.evaluator import evaluate_policies, step_of
from train.findings.stored_trial import check_policy, read_settings
from train.records.attributes import holdout_score_in, labels_in, uuid_in
from train.records.errors import StudyError
from train.records.keys import HOLDOUT_BEGUN, HOLDOUT_SCORE, LOOKED, SCORE_FILE, TESTED_BARS
from train.records.provenance import code_version
from train.records.record_files import decode, plain, read_plain, write_json
from train.records.seals import keeps_hashes
from train.records.stored import Begun, Holdout, HoldoutScore, Look, PolicyScore, TestedBars
from train.store.artifact_files import fetch_set, fetch_splits, send_set
from train.store.database import FINISHED
from train.study.attainable import attainable_by, tradable
from train.study.folds import FoldedData, HoldoutRows, cut_data
from train.study.holdout_figures import (
    error_of,
    errors_asked,
    excess_error,
    idle_text,
    lead_sharpe,
    mean_of,
)
from train.study.search_space import MAX_LOOKBACK
from train.study.split import agent_metrics, equal_weight_metrics, figures_json
from train.study.split_files import write_equity
from train.study.split_plan import SplitPlan
from train.validation.splits import with_warmup

logger = logging.getLogger(__name__)

NOT_KNOWN = "it is unknown whether the hold-out was scored"
CURVES = "holdout"  # folder of one equity file per policy
# A full disk, a missing or unknown policy, changed data. Programming errors are not included.
SCORING_ERRORS = (ValueError, ArithmeticError, RuntimeError, MemoryError, OSError)


def load_holdout(
    data_dir: Path,
    timeframe: str | None,
    tickers: Sequence[str] | None,
    plan: SplitPlan,
    known: Mapping[str, Holdout | None],
) -> dict[str, HoldoutRows]:
    """Return {timeframe: held-out bars}, including the preceding bars that observations need.

    Args:
        data_dir: see `load_study_data`, also for the next three arguments.
        timeframe: timeframe of the dataset to use.
        tickers: coins to keep.
        plan: how the study splits its data.
        known: timeframe -> the study's record of its hold-out.

    Raises:
        StudyError, DatasetError: the data are missing or differ from the bars that the study held out.
    """
    found = {}
    for _, rows, _ in cut_data(data_dir, timeframe, tickers, plan):
        name = timeframe_name(rows.dataset.bar_seconds) if rows else "the data"
        if rows is None or known.get(name) != rows.about:
            raise StudyError(f"{data_dir}: the hold-out bars of {name} differ from those that the study held out")
        found[name] = rows
    return found


def score_holdout(
    study: optuna.Study,
    folder: Path,
    rows: HoldoutRows,
    trial_number: int,
    policies: Sequence[Path],
    env_params: Mapping[str, Any],
    gpu_id: int = -1,
) -> HoldoutScore:
    """Score policies of the study's best trial on the held-out bars, once, as `run_split` scores test folds.

    `holdout.json` is written atomically. A second call with the same trial and policies returns the stored result
    without a new evaluation.

    Args:
        study: study of the trial.
        folder: results folder of the study.
        rows: held-out bars of the timeframe that the trial traded.
        trial_number: number of the best trial.
        policies: policy files of the trial, in the order of the result.
        env_params: rules and settings of the environment, as in training.
        gpu_id: GPU number; -1 is the CPU.

    Raises:
        StudyError: the hold-out was scored for a different trial or different policies.
        PolicyFileError, OSError: a policy cannot be used, or a file cannot be written.
    """
    hashes = [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in policies]
    scored = read_score(study, folder)
    if scored is None:
        _begin(study, Begun(uuid_in(study.user_attrs), rows.about, rows.dataset.synthetic, trial_number, tuple(hashes)))
        files = dict(zip(map(Path, policies), hashes, strict=True))
        content = _score(study, folder, rows, trial_number, files, env_params, gpu_id)
        is_kept = keeps_hashes(study.get_trials(deepcopy=False))
        if is_kept:
            study.set_user_attr(HOLDOUT_SCORE, content)
        write_json(folder / SCORE_FILE, content, overwrites=is_kept)
        scored = read_score(study, folder)  # may be the score of another worker that was first
    assert scored is not None
    if scored.trial != trial_number:
        raise StudyError(
            f"the hold-out of study {study.study_name} has already been scored for trial {scored.trial}; "
            f"scoring trial {trial_number} too would be selection on these bars. Use new bars and a new --study-name"
        )
    if [policy.sha256 for policy in scored.policies] != hashes:
        raise StudyError(
            f"the hold-out of study {study.study_name} has already been scored for different policies of "
            f"trial {trial_number}; it can be scored only once"
        )
    return scored


def _begin(study: optuna.Study, look: Begun) -> None:
    """Record the evaluation before it happens, so that a kill cannot hide it.

    Raises:
        StudyError: an evaluation of a different trial or different policies was started earlier.
    """
    begun = study.user_attrs.get(HOLDOUT_BEGUN)
    if begun is None:
        study.set_user_attr(HOLDOUT_BEGUN, plain(look))
        return
    earlier = decode(begun, Begun, "the study's record of the hold-out evaluation", advice=NOT_KNOWN)
    if (earlier.trial, earlier.policies) != (look.trial, look.policies):
        raise StudyError(
            f"the hold-out of study {study.study_name} was being scored for trial {earlier.trial} when the process "
            f"ended; it cannot be scored for trial {look.trial}, because that would be selection on these bars"
        )


def read_score(study: optuna.Study, folder: Path) -> HoldoutScore | None:
    """Return the stored score, or None if the hold-out was not scored. A missing file is written again.

    A file without a copy in the database is trusted only if the study is older than the hashes in the database.

    Raises:
        StudyError: the file is damaged or belongs to a different study.
    """
    path = folder / SCORE_FILE
    kept = holdout_score_in(study.user_attrs)
    if not path.exists():
        if kept is not None:
            write_json(path, study.user_attrs[HOLDOUT_SCORE], overwrites=False)
        return kept
    content = read_plain(path, NOT_KNOWN)
    found = decode(content, HoldoutScore, str(path), advice=NOT_KNOWN)
    if found.uuid != uuid_in(study.user_attrs):
        raise StudyError(f"{path}: belongs to another study; move it elsewhere")
    if kept is not None or keeps_hashes(study.get_trials(deepcopy=False)):
        return kept
    study.set_user_attr(HOLDOUT_SCORE, content)
    return found


def score_winner(
    study: optuna.Study,
    best: FrozenTrial,
    folder: Path,
    data: Sequence[FoldedData],
    load_rows: Callable[[], Mapping[str, HoldoutRows]],
    gpu_id: int,
) -> None:
    """Score the best policy of each of the winner's splits once and log the result. Failures are logged, not raised.

    Args:
        study: study that reached its target number of trials.
        best: best trial of the study.
        folder: results folder of the study.
        data: data of the study.
        load_rows: function that reads the held-out bars by timeframe; not called if the score exists.
        gpu_id: GPU number; -1 is the CPU.
    """
    by_timeframe = {d.timeframe: d for d in data}
    mine = by_timeframe.get(best.params.get("timeframe", ""), data[0])
    if mine.holdout is None:
        logger.warning("hold-out: none (--holdout 0), so the best trial gets no final check")
        return
    try:
        fetch_set(study, folder, CURVES)
        scored = read_score(study, folder)
        if scored is None:
            fetch_splits(study, folder, [best])
            # Exactly the settings that the trial was run with: fees, rules, lookback.
            settings = read_settings(folder, best)
            policies = [check_policy(folder, best, settings, fold.index) for fold in mine.folds]
            scored = score_holdout(
                study, folder, load_rows()[mine.timeframe], best.number, policies, settings.env, gpu_id
            )
        send_set(study, folder, CURVES, [folder / SCORE_FILE, *sorted((folder / CURVES).glob("equity_*.npz"))])
    except SCORING_ERRORS as error:
        logger.error("hold-out: could not be scored: %s: %s", type(error).__name__, str(error).strip() or "no details")
        return
    if scored.trial != best.number:
        logger.warning("hold-out: used up by trial %d, which was the best at that time; trial %d, the current best, "
                       "cannot be checked on the same bars", scored.trial, best.number)  # fmt: skip
    logger.info("hold-out: %s", score_text(scored))
    if looks_text(scored):
        logger.warning("hold-out: %s", looks_text(scored))


def score_text(scored: HoldoutScore) -> str:
    """Return the result as one line."""
    about, excess = scored.holdout, [policy.excess_sharpe for policy in scored.policies]
    span = f"{utc_text(about.first_time_s)} .. {utc_text(about.last_time_s)} UTC"
    shown = " ".join("undefined" if value is None else f"{value:+.2f}" for value in excess)
    mean, error = scored.mean_excess_sharpe, error_of(scored)
    idle = idle_text(scored)
    return (
        f"trial {scored.trial} on {about.bars} bars that no trial saw, {span}: excess Sharpe ratios of its "
        f"{len(excess)} policies {shown}, mean {'undefined' if mean is None else f'{mean:+.2f}'}, standard "
        f"error of the mean {'undefined' if error is None else f'about {error:.1f}'}"
        + (f"; {idle}, and there is no verdict" if idle else "")
    )


def _score(
    study: optuna.Study,
    folder: Path,
    rows: HoldoutRows,
    trial_number: int,
    policies: Mapping[Path, str],
    env_params: Mapping[str, Any],
    gpu_id: int,
) -> dict[str, Any]:
    """Evaluate policies, given as {path: hash}, in one batch; write their curves and return the result."""
    dataset, per_year = rows.dataset, rows.dataset.bars_per_year
    segments = with_warmup(rows.blocks, dataset.segments, env_params["lookback"], MAX_LOOKBACK)
    by_policy = evaluate_policies(
        list(policies), [segments] * len(policies), dataset.env_config(segments), env_params, gpu_id=gpu_id
    )
    bars = tradable(dataset.price, dataset.filled, rules_of(env_params))
    results, n_traded = [], sum(len(record.bars) - 1 for record in by_policy[-1])
    for i, ((path, digest), records) in enumerate(zip(policies.items(), by_policy, strict=True)):
        agent, other = agent_metrics(records, per_year), equal_weight_metrics(records, per_year)
        reached = attainable_by(records, bars)
        results.append(
            PolicyScore(
                file=os.path.relpath(path, folder),
                sha256=digest,
                agent=agent,
                equal_weight=other,
                excess_sharpe=_defined(agent.sharpe - other.sharpe),
                excess_sharpe_error=_defined(excess_error(records, per_year)),
                lead_sharpe=_defined(lead_sharpe(records, per_year)),
                **reached.to_json(),
            )
        )
        write_equity(folder / CURVES / f"equity_{i}.npz", records, dataset.time)
    score = HoldoutScore(
        study=study.study_name,
        uuid=uuid_in(study.user_attrs),
        trial=trial_number,
        holdout=rows.about,
        data_label=dataset.label,
        synthetic=dataset.synthetic,
        env=dict(env_params),
        earlier_looks=tuple(earlier_looks(study, rows.about, dataset.synthetic)),
        policies=tuple(results),
        mean_excess_sharpe=mean_of([result.excess_sharpe for result in results]),
        excess_sharpe_error=mean_of([result.excess_sharpe_error for result in results]),
        mean_lead_sharpe=mean_of([result.lead_sharpe for result in results]),
        sharpe_standard_error=math.sqrt(per_year / n_traded),
        code_version=code_version(),
        stepped_by=step_of([record for records in by_policy for record in records]),
        scored_s=int(time.time()),
    )
    return plain(score) | {"policies": [figures_json(vars(result)) for result in results]}


def _defined(value: float) -> float | None:
    return value if math.isfinite(value) else None


def earlier_looks(study: optuna.Study, about: Holdout, is_synthetic: bool) -> list[str]:
    """Return the names of other studies in the same database that used some of these bars.

    A study uses the bars on which its winner is scored, from the moment the scoring begins, and the bars on which its
    trials are tested; without a hold-out these are all bars. Running studies until one passes is selection on these
    bars. Real bars of one period are one market, whichever file or coins they come from. A synthetic market is
    identified by its hash.
    """
    own, found, storage = uuid_in(study.user_attrs), [], study._storage
    for other in storage.get_all_studies():
        attributes = other.user_attrs
        looks = [attributes[name] for name in (HOLDOUT_SCORE, HOLDOUT_BEGUN) if name in attributes]
        is_look = any(_is_look(content, own, about, is_synthetic) for content in looks)
        is_look = is_look or (uuid_in(attributes) != own and _was_handed_over(attributes, about, is_synthetic))
        if not is_look and uuid_in(attributes) != own and storage.get_n_trials(other._study_id, FINISHED):
            is_look = _has_tested(attributes, about, is_synthetic)
        if is_look:
            found.append(other.study_name)
    return sorted(found)


def _is_look(content: Any, own_uuid: str, about: Holdout, is_synthetic: bool) -> bool:
    """Return True if a score in the database is an evaluation of a different study on some of these bars.

    An unreadable score counts as well, because ignoring it would weaken the verdict.
    """
    try:
        look = decode(content, Look, "the score of another study")
    except StudyError as error:
        logger.warning("hold-out: counted as an earlier evaluation on these bars: %s", error)
        return True
    return look.uuid != own_uuid and _meets(look.holdout, look.synthetic, about, is_synthetic)


def _was_handed_over(attributes: Mapping[str, Any], about: Holdout, is_synthetic: bool) -> bool:
    """Return True if a policy of a different study was scored on some of these bars for a deployment."""
    looks = [value.get("bars") for name, value in attributes.items() if name.startswith(LOOKED)]
    seen = (TestedBars(b["first_time_s"], b["last_time_s"], b["synthetic"], "") for b in looks if b)
    return any(_meets(bars, bars.synthetic, about, is_synthetic) for bars in seen)


def _has_tested(attributes: Mapping[str, Any], about: Holdout, is_synthetic: bool) -> bool:
    """Return True if a different study tested trials on some of these bars, because it held out fewer bars or none."""
    if TESTED_BARS in attributes:
        known = decode(attributes[TESTED_BARS], tuple[TestedBars, ...], "the tested bars of another study")
    else:
        known = tuple(filter(None, map(_tested_of_label, labels_in(attributes))))
    return any(_meets(bars, bars.synthetic, about, is_synthetic) for bars in known)


def _tested_of_label(label: str) -> TestedBars | None:
    """Return the bars given in a dataset label, for studies that did not store `tested_bars`."""
    times = re.search(r"(\S+ \S+) \.\. (\S+ \S+) UTC", label)
    if times is None:
        return None
    first, last = (int(datetime.fromisoformat(f"{text}+00:00").timestamp()) for text in times.groups())
    return TestedBars(first, last, label.startswith("SYNTHETIC"), "")


def _meets(theirs: Holdout | TestedBars, theirs_synthetic: bool, about: Holdout, is_synthetic: bool) -> bool:
    """Return True if two ranges share a bar of one market; an empty hash matches any synthetic market."""
    overlaps = theirs.first_time_s <= about.last_time_s and about.first_time_s <= theirs.last_time_s
    is_same = not is_synthetic or theirs.parent_sha256 in (about.parent_sha256, "")
    return overlaps and is_synthetic == theirs_synthetic and is_same


def looks_text(scored: HoldoutScore) -> str:
    """Return a warning if other studies used these bars earlier, otherwise an empty string."""
    names = scored.earlier_looks
    if not names:
        return ""
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    several = len(names) > 1
    return (
        f"{len(names)} other stud{'ies' if several else 'y'} in this database ({shown}) already used some of these "
        f"bars, so the result must be {errors_asked(scored):.1f} standard errors above 0 instead of 2, because it may "
        "be the luckiest of several evaluations"
    )
