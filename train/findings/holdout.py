"""The hold-out: the last bars of the data, scored once, for the study's winner.

No trial saw these bars, so the winner's figures on them are not biased by the choice among trials. That holds for the
first look only: a second trial scored on them would be chosen by them. So `<study>/holdout.json` is written once and
never again, the study keeps a copy in its database, and another winner is refused.
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

NOT_KNOWN = "whether the hold-out was scored is not known"
CURVES = "holdout"  # folder of one equity file per policy
# A full disk, a missing or foreign policy, changed data. A mistake in the program is not here.
SCORING_ERRORS = (ValueError, ArithmeticError, RuntimeError, MemoryError, OSError)


def load_holdout(
    data_dir: Path,
    timeframe: str | None,
    tickers: Sequence[str] | None,
    plan: SplitPlan,
    known: Mapping[str, Holdout | None],
) -> dict[str, HoldoutRows]:
    """Timeframe -> the held-out bars, with the bars before them that an observation reaches back to.

    Args:
        data_dir: as for `load_study_data`, like the next three.
        timeframe: of the data set to use.
        tickers: coins to keep.
        plan: how the study divides its data.
        known: timeframe -> what the study wrote down of its hold-out.

    Raises:
        StudyError, DatasetError: no such data, or not the bars that the study held out.
    """
    found = {}
    for _, rows, _ in cut_data(data_dir, timeframe, tickers, plan):
        name = timeframe_name(rows.dataset.bar_seconds) if rows else "the data"
        if rows is None or known.get(name) != rows.about:
            raise StudyError(f"{data_dir}: the bars held out of {name} are not those that the study held out")
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
    """Score policies of the study's winner on the held-out bars, as `run_split` scores test blocks. Once.

    The result is in `holdout.json` whole or not at all. Asked again for the same policies of the same trial, what was
    written is returned and nothing is evaluated.

    Args:
        study: whose winner it is.
        folder: the study's results.
        rows: of the timeframe that the trial traded.
        trial_number: the winner.
        policies: its policy files, in the order of the result.
        env_params: rules and settings of the environment, as in training.
        gpu_id: -1 is the CPU.

    Raises:
        StudyError: the hold-out was scored for another trial or other policies.
        PolicyFileError, OSError: a policy that cannot be used, or nothing can be written.
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
        scored = read_score(study, folder)  # another worker's, where that was first
    assert scored is not None
    if scored.trial != trial_number:
        raise StudyError(
            f"the hold-out of study {study.study_name} was scored for trial {scored.trial}, so it cannot check "
            f"trial {trial_number}: it would be a choice by these bars. New bars, under another --study-name, can"
        )
    if [policy.sha256 for policy in scored.policies] != hashes:
        raise StudyError(
            f"the hold-out of study {study.study_name} was scored for other policies of trial {trial_number}; it is "
            "scored once"
        )
    return scored


def _begin(study: optuna.Study, look: Begun) -> None:
    """Write the look down before it happens, so that a kill cannot hide it.

    Raises:
        StudyError: one of another trial or of other policies was begun.
    """
    begun = study.user_attrs.get(HOLDOUT_BEGUN)
    if begun is None:
        study.set_user_attr(HOLDOUT_BEGUN, plain(look))
        return
    earlier = decode(begun, Begun, "the study's look at the held-out bars", advice=NOT_KNOWN)
    if (earlier.trial, earlier.policies) != (look.trial, look.policies):
        raise StudyError(
            f"the hold-out of study {study.study_name} was being scored for trial {earlier.trial} when the process "
            f"ended, so it cannot check trial {look.trial}: whoever saw those scores would choose by these bars"
        )


def read_score(study: optuna.Study, folder: Path) -> HoldoutScore | None:
    """What was scored, as the database has it; None before that. A file that is missing is written anew.

    Only of a study from before the database kept hashes is a file believed that the database knows nothing of.

    Raises:
        StudyError: the file was damaged or is another study's.
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
        raise StudyError(f"{path}: belongs to another study; move it away")
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
    """Score the best policy of each of the winner's splits, once, and log it; a failure is logged with its reason.

    Args:
        study: that reached its target.
        best: the winner.
        folder: the study's results.
        data: of the study.
        load_rows: reads the held-out bars, by timeframe; not called when they were scored before.
        gpu_id: -1 is the CPU.
    """
    by_timeframe = {d.timeframe: d for d in data}
    mine = by_timeframe.get(best.params.get("timeframe", ""), data[0])
    if mine.holdout is None:
        logger.warning("hold-out: none (--holdout 0), so nothing checks the best trial")
        return
    try:
        fetch_set(study, folder, CURVES)
        scored = read_score(study, folder)
        if scored is None:
            fetch_splits(study, folder, [best])
            # What the trial itself was run with, to the letter: fees, rules, lookback.
            settings = read_settings(folder, best)
            policies = [check_policy(folder, best, settings, fold.index) for fold in mine.folds]
            scored = score_holdout(
                study, folder, load_rows()[mine.timeframe], best.number, policies, settings.env, gpu_id
            )
        send_set(study, folder, CURVES, [folder / SCORE_FILE, *sorted((folder / CURVES).glob("equity_*.npz"))])
    except SCORING_ERRORS as error:
        logger.error("hold-out: not scored: %s: %s", type(error).__name__, str(error).strip() or "no message")
        return
    if scored.trial != best.number:
        logger.warning("hold-out: scored for trial %d, when that was the best; trial %d, the best now, cannot be "
                       "checked on the same bars", scored.trial, best.number)  # fmt: skip
    logger.info("hold-out: %s", score_text(scored))
    if looks_text(scored):
        logger.warning("hold-out: %s", looks_text(scored))


def score_text(scored: HoldoutScore) -> str:
    """The result in one line."""
    about, excess = scored.holdout, [policy.excess_sharpe for policy in scored.policies]
    span = f"{utc_text(about.first_time_s)} .. {utc_text(about.last_time_s)} UTC"
    shown = " ".join("undefined" if value is None else f"{value:+.2f}" for value in excess)
    mean, error = scored.mean_excess_sharpe, error_of(scored)
    idle = idle_text(scored)
    return (
        f"trial {scored.trial} on {about.bars} bars that no trial saw, {span}: excess Sharpe of its "
        f"{len(excess)} policies {shown}, mean {'undefined' if mean is None else f'{mean:+.2f}'}; the standard "
        f"error of that mean is {'undefined' if error is None else f'about {error:.1f}'}"
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
    """Evaluate policies, given with their hashes, in one batch; curves are written, the result is not."""
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
    """Other studies of the same database that looked at some of these bars, by name.

    A study looks at the bars that its winner is scored on, from the moment that begins, and at those that its trials
    are tested on, which are all where it held nothing out. Each was a look: somebody who runs studies until one passes
    chooses by these bars. Real bars of one period are one market, whichever file or coins they came from; a synthetic
    market is known by its hash.
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
    """Whether a score in the database was a look at some of these bars by another study.

    One that cannot be read counts as a look: uncounted, it would make the verdict laxer.
    """
    try:
        look = decode(content, Look, "the score of another study")
    except StudyError as error:
        logger.warning("hold-out: counted as an earlier look at these bars: %s", error)
        return True
    return look.uuid != own_uuid and _meets(look.holdout, look.synthetic, about, is_synthetic)


def _was_handed_over(attributes: Mapping[str, Any], about: Holdout, is_synthetic: bool) -> bool:
    """Whether a policy of another study was scored on some of these bars for a deployment."""
    looks = [value.get("bars") for name, value in attributes.items() if name.startswith(LOOKED)]
    seen = (TestedBars(b["first_time_s"], b["last_time_s"], b["synthetic"], "") for b in looks if b)
    return any(_meets(bars, bars.synthetic, about, is_synthetic) for bars in seen)


def _has_tested(attributes: Mapping[str, Any], about: Holdout, is_synthetic: bool) -> bool:
    """Whether another study tested its trials on some of these bars: it held out fewer, or none."""
    if TESTED_BARS in attributes:
        known = decode(attributes[TESTED_BARS], tuple[TestedBars, ...], "the tested bars of another study")
    else:
        known = tuple(filter(None, map(_tested_of_label, labels_in(attributes))))
    return any(_meets(bars, bars.synthetic, about, is_synthetic) for bars in known)


def _tested_of_label(label: str) -> TestedBars | None:
    """What the label of a data set says, of a study that did not write `tested_bars`."""
    times = re.search(r"(\S+ \S+) \.\. (\S+ \S+) UTC", label)
    if times is None:
        return None
    first, last = (int(datetime.fromisoformat(f"{text}+00:00").timestamp()) for text in times.groups())
    return TestedBars(first, last, label.startswith("SYNTHETIC"), "")


def _meets(theirs: Holdout | TestedBars, theirs_synthetic: bool, about: Holdout, is_synthetic: bool) -> bool:
    """Whether two ranges share a bar of one market; a synthetic market is known by its hash, "" may be any."""
    overlaps = theirs.first_time_s <= about.last_time_s and about.first_time_s <= theirs.last_time_s
    is_same = not is_synthetic or theirs.parent_sha256 in (about.parent_sha256, "")
    return overlaps and is_synthetic == theirs_synthetic and is_same


def looks_text(scored: HoldoutScore) -> str:
    """A warning where other studies looked at these bars before; empty where none did."""
    names = scored.earlier_looks
    if not names:
        return ""
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    several = len(names) > 1
    return (
        f"{len(names)} other stud{'ies' if several else 'y'} of this database ({shown}) looked at some of these bars "
        "before, so a good result may be the luckiest of several looks: it must be "
        f"{errors_asked(scored):.1f} standard errors above 0 instead of 2"
    )
