"""Collection of everything on the report page from the study and its results folder.

Only complete files are read and no lock is taken, so the report also works while the study is running. Missing or
damaged parts are omitted, and the page lists them.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import optuna
from msgspec import UNSET
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from market.files import write_whole
from market.names import counted, timeframe_seconds
from market.planted import recipe_of
from market.times import utc_text
from train.findings.captured import Captured, captured, planted_recipe
from train.findings.holdout import CURVES
from train.findings.returns import read_returns, timeframe_of
from train.findings.yardsticks import YARDSTICKS, read_yardsticks
from train.records.account import Metrics
from train.records.attributes import holdout_score_in, identity_in, splits_in, uuid_in
from train.records.errors import StudyError
from train.records.keys import CODE_VERSION, COMMAND, OWNER_FILE, SCORE_FILE, SETTINGS
from train.records.provenance import code_version
from train.records.record_files import read_record, with_null
from train.records.results import split_folder, trial_folder
from train.records.seals import check_seal
from train.records.stored import (
    FoldBars,
    HoldoutScore,
    Identity,
    PolicyScore,
    Rules,
    SplitFigures,
    StudyFile,
    TrialSettings,
    VenueTerms,
)
from train.report.band_picture import BandView
from train.report.curves import read_market, read_split, tested_paths
from train.report.page import FigureRow, Page, Verdict, render
from train.report.paths import PathView
from train.report.trials import STATES, trial_views
from train.report.verdict import ALPHA_PBO, DEFLATED_ALPHA, TRIALS_DIFFER, holdout_text, judge, unjudged
from train.store.artifact_files import STUDY_SET, TO_SHOW, fetch_set, fetch_splits
from train.store.database import experimental_allowed
from train.study.band_file import BAND_FILE, read_band
from train.study.eligibility import NO_SIGNAL, best_trial, has_no_signal, why_no_best
from train.study.holdout_figures import is_passed
from train.study.progress import shown
from train.study.split import ATTAINABLE, RESULT, kept_of_equal_weight
from train.study.split_plan import COMBINATORIAL_MODES
from train.validation.splits import bars_in

logger = logging.getLogger(__name__)

T = TypeVar("T")

REPORT_FILE = "report.html"
UNKNOWN = "not recorded"
DAY_S = 86_400
TRAINS_ON_LATER_BARS = (*COMBINATORIAL_MODES, "kfold")
SHARE = "share of attainable growth captured"
LOGGED = (SHARE, DEFLATED_ALPHA, ALPHA_PBO, TRIALS_DIFFER)  # numbers of the verdict
LEAST_FOR_IMPORTANCE = 30  # completed trials: the evaluator compares the best tenth with the rest
# The results are already on disk. A failure to write the page must not change how the study ends.
REPORT_ERRORS = (
    OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, MemoryError,
    AssertionError, SQLAlchemyError, optuna.exceptions.OptunaError,
)  # fmt: skip


def report_ended_study(study: optuna.Study, folder: Path) -> None:
    """Write the report page and log its path. A failure is logged with its reason and not raised."""
    try:
        page = collect(study, folder)
        write_whole(folder / REPORT_FILE, render(page).encode())
        for line in verdict_lines(page):
            logger.info("%s", line)
        logger.info("report: %s", folder / REPORT_FILE)
    except REPORT_ERRORS as error:
        logger.error("could not write the report: %s: %s", type(error).__name__, str(error).strip() or "no details")
        logger.debug("report", exc_info=True)


def verdict_lines(page: Page) -> list[str]:
    """Return the log lines of the verdict: the conclusion, the main numbers and the hold-out result."""
    figures = "; ".join(f"{name} {number}" for name, number, _ in page.verdict.numbers if name in LOGGED)
    said = [page.verdict.sentences[0], figures, f"Hold-out: {page.holdout}"]
    return [f"verdict: {text}" for text in said if text]


def write_report(study: optuna.Study, folder: Path, out: Path | None = None) -> Path:
    """Write the page atomically and return its path.

    Args:
        study: study in any state.
        folder: results folder of the study.
        out: file to write; None writes `report.html` into the results folder.
    """
    path = folder / REPORT_FILE if out is None else out
    write_whole(path, render(collect(study, folder)).encode())
    return path


def _settings_of(folder: Path, best: FrozenTrial) -> TrialSettings | None:
    """Return the settings that the best trial was scored with, or None if the file is missing, damaged or changed."""
    try:
        check_seal(folder, best, min(best.intermediate_values, default=0), SETTINGS)
    except StudyError as error:
        logger.warning("report: file ignored: %s", error)
        return None
    return found(trial_folder(folder, best.number) / SETTINGS, TrialSettings)


def collect(study: optuna.Study, folder: Path) -> Page:
    """Return everything that the report page shows."""
    trials = study.get_trials(deepcopy=False)
    best = best_trial(study)
    _fetch(study, folder, best or next((t for t in trials if t.intermediate_values), None))
    settings = None if best is None else _settings_of(folder, best)
    base = Page(
        name=study.study_name,
        kind=_kind(folder, trials),
        law=_law(study),
        facts=_facts(study, folder, trials, settings),
        verdict=_no_verdict(study, trials),
        holdout=holdout_text(study, score_of(study, folder), best, (folder / SCORE_FILE).exists()),
        best=None if best is None else best.number,
        trials=trial_views(trials),
        yardsticks=tuple(read_yardsticks(study, folder)),
        left_out=_left_out(study, trials),
        command=str(study.user_attrs.get(COMMAND, "")),
        made=f"Written {utc_text(time.time())} UTC by code version {code_version()}. This file is self-contained.",
    )
    return base if best is None else _with_best(base, study, folder, trials, best, settings)


def _fetch(study: optuna.Study, folder: Path, shown_trial: FrozenTrial | None) -> None:
    """Fetch the files that the page needs and this machine lacks. `read_returns` fetches the other trials' curves."""
    for name in (STUDY_SET, YARDSTICKS, CURVES):
        fetch_set(study, folder, name)
    fetch_splits(study, folder, [shown_trial] if shown_trial else [], TO_SHOW)


def _with_best(
    base: Page,
    study: optuna.Study,
    folder: Path,
    trials: Sequence[FrozenTrial],
    best: FrozenTrial,
    settings: TrialSettings | None,
) -> Page:
    timeframe = timeframe_of(study, best)
    seconds = timeframe_seconds(timeframe)
    per_year = 365.0 * 86_400.0 / seconds
    folds = settings.folds if settings else ()
    known = {i: read_split(folder, best.number, i) for i in sorted(best.intermediate_values)}
    splits = {i: columns for i, columns in known.items() if columns is not None}
    note, paths = "The best trial's settings.json is missing or damaged, so its paths are unknown.", []
    market = read_market(folder, timeframe, settings) if settings and splits else None
    if folds and splits:
        paths, note = tested_paths(splits, folds, market, per_year)
    verdict = _verdict(study, folder, best, is_whole=len(splits) == (len(folds) or len(known)) > 0)
    recipe = planted_recipe(study.user_attrs.get("data", []))
    if recipe is not None and market is not None:
        bars = market.bars
        verdict = _with_captured(verdict, captured(splits, bars.close, bars.costs, recipe, seconds))
    importances, importances_note = importances_of(study, trials)
    return Page(
        **vars(base)
        | {
            "verdict": _with_path_mean(verdict, paths),
            "paths": tuple(paths),
            "paths_note": note,
            "rows": (
                *_split_rows(folder, best, folds, seconds),
                *_path_rows(paths, seconds),
                *_holdout_rows(study, folder, best, seconds),
            ),
            "band": _band_view(folder, best, settings, sorted(splits)),
            "importances": importances,
            "importances_note": importances_note,
            "settings": tuple((name, shown(value)) for name, value in best.params.items()),
            "bar_seconds": seconds,
        }
    )


def _band_view(
    folder: Path, best: FrozenTrial, settings: TrialSettings | None, splits: Sequence[int]
) -> BandView | None:
    """Return the band of the first split that has one, or None."""
    for i in splits:
        path = split_folder(folder, best.number, i) / BAND_FILE
        if settings is not None and path.is_file():
            try:
                return BandView(f"Trial {best.number}, split {i}", read_band(folder, path, settings))
            except StudyError as error:
                logger.warning("report: band chart omitted: %s", error)
    return None


def found(path: Path, type_: type[T]) -> T | None:
    """Return the record in a file, or None if the file is missing or damaged. Damage is logged."""
    if not path.exists():
        return None
    try:
        return read_record(path, type_)
    except StudyError as error:
        logger.warning("report: file ignored: %s", error)
        return None


def score_of(study: optuna.Study, folder: Path) -> HoldoutScore | None:
    """Return the hold-out score from the database, or from holdout.json if the database has none."""
    try:
        kept = holdout_score_in(study.user_attrs)
    except StudyError as error:
        logger.warning("report: file ignored: %s", error)
        kept = None
    return kept or found(folder / SCORE_FILE, HoldoutScore)


# --------------------------------------------------------------------------------------------------------------- header
def _kind(folder: Path, trials: Sequence[FrozenTrial]) -> str:
    said = [t.user_attrs["synthetic"] for t in trials if "synthetic" in t.user_attrs]
    written = found(folder / OWNER_FILE, StudyFile)
    said += [written.synthetic] if written and written.synthetic is not None else []
    if not said:
        return "UNKNOWN"
    return "SYNTHETIC" if any(said) else "REAL"


def _law(study: optuna.Study) -> str:
    """Return the law of the sample market that the study uses, or an empty string for any other data."""
    recipes = [recipe_of(label) for label in study.user_attrs.get("data", [])]
    return next((recipe.law.value for recipe in recipes if recipe is not None), "")


def _facts(
    study: optuna.Study, folder: Path, trials: Sequence[FrozenTrial], settings: TrialSettings | None
) -> tuple[tuple[str, str], ...]:
    identity, about = identity_in(study.user_attrs), found(folder / OWNER_FILE, StudyFile)
    rules = (settings and settings.env_resolved) or (identity and identity.simulator_rules)
    labels = study.user_attrs.get("data") or [d.data_label for d in (about.data if about else ())]
    states = Counter(STATES[t.state] for t in trials)
    versions = sorted({t.user_attrs[CODE_VERSION] for t in trials if CODE_VERSION in t.user_attrs})
    hashes = identity.data_sha256 if identity else {}
    facts = [("data", label) for label in labels]
    facts += [(f"sha256 of the {name} data", digest) for name, digest in hashes.items()]
    facts += [
        ("coins", ", ".join(settings.data.tickers if settings else _coins(folder)) or UNKNOWN),
        ("timeframe", ", ".join(hashes) or UNKNOWN),
        ("trials", ", ".join(f"{states[s]} {s}" for s in STATES.values() if states[s]) or "none"),
        ("splits", _plan_text(identity)),
        ("fees for buying and selling", _fees_text(rules)),
        ("slippage", f"{rules.slippage_rate:.2%} of every order" if rules else UNKNOWN),
        ("venue", _venue_text(identity.venue if identity else None)),
        ("capital", f"{rules.initial_capital:,.0f} at each start" if rules else UNKNOWN),
        ("seeds", _seeds_text(identity, settings)),
        ("environments", str(identity.run.n_envs) if identity else UNKNOWN),
        ("code version", ", ".join(versions) or UNKNOWN),
    ]  # fmt: skip
    return tuple((name, str(text)) for name, text in facts)


def _coins(folder: Path) -> tuple[str, ...]:
    """Return the tickers from the first readable trial settings."""
    read = (found(path, TrialSettings) for path in sorted(folder.glob("trial_*/settings.json")))
    return next((settings.data.tickers for settings in read if settings), ())


def _plan_text(identity: Identity | None) -> str:
    if identity is None:
        return UNKNOWN
    plan = identity.plan
    if plan.mode not in COMBINATORIAL_MODES:
        return f"{plan.mode}, {plan.num_paths} splits"
    return f"{plan.mode}, {plan.num_paths} paths, {counted(plan.k_test_groups, 'test fold')} per split"


def _fees_text(rules: Rules | None) -> str:
    if rules is None:
        return UNKNOWN
    return f"{rules.buy_fee_rate:.3%} and {rules.sell_fee_rate:.3%} of notional"


def _venue_text(venue: VenueTerms | None) -> str:
    if venue is None:
        return UNKNOWN
    return (
        f"{venue.name}, {venue.volume_30d:,.0f} USD traded in 30 days; order rules as of {venue.order_rules_as_of}, "
        f"fees as of {venue.fees_as_of}"
    )


def _seeds_text(identity: Identity | None, settings: TrialSettings | None) -> str:
    of_splits = settings.split_seeds if settings else ()
    text = f"study {identity.run.seed if identity else UNKNOWN}"
    return text + (f"; splits {', '.join(map(str, of_splits))}" if of_splits else "")


def _left_out(study: optuna.Study, trials: Sequence[FrozenTrial]) -> tuple[str, ...]:
    identity, texts = identity_in(study.user_attrs), []
    for name, part in (identity.purges if identity else {}).items():
        texts.append(
            f"{name}: {part.purge_bars} bars are purged on both sides of every test fold, and {part.embargo_bars} more "
            "are embargoed after it. The split neither trains nor tests on these bars."
        )
    pruned = sum(t.state == TrialState.PRUNED for t in trials)
    if pruned:
        texts.append(
            f"Pruned trials ({pruned}) have no value. The deflated Sharpe ratio counts them as trials; PBO does not."
        )
    failed = sum(t.state == TrialState.FAIL for t in trials)
    if failed:
        texts.append(f"Failed trials ({failed}) are not counted in any statistic.")
    if identity is not None and identity.plan.mode in TRAINS_ON_LATER_BARS:
        texts.append(
            f"In mode {identity.plan.mode} a policy also trains on bars later than its test fold. A live trader "
            "cannot. Modes rolling and expanding train on earlier bars only, and the hold-out is later than all of "
            "them."
        )
    return tuple(texts)


# --------------------------------------------------------------------------------------------------- trials and figures
def _split_rows(folder: Path, best: FrozenTrial, folds: Sequence[FoldBars], bar_seconds: int) -> list[FigureRow]:
    """Return one row per split, from its result.json or from the copy in the database."""
    rows, kept = [], splits_in(best.user_attrs)
    days = {f.index: bars_in(f.test) * bar_seconds / DAY_S for f in folds}
    for i in sorted(best.intermediate_values):
        try:
            check_seal(folder, best, i, RESULT)
            file = found(split_folder(folder, best.number, i) / RESULT, SplitFigures)
        except StudyError as error:
            logger.warning("report: file ignored: %s", error)
            file = None
        figures = file or kept.get(i)
        if figures is not None:
            rows.append(FigureRow(f"split {i}", *_figures(figures), days.get(i, 0.0)))
    return rows


def _figures(scored: SplitFigures | PolicyScore) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the agent's metrics, including excess Sharpe ratio and share of hindsight, and those of equal weight."""
    beside = {"excess_sharpe": scored.excess_sharpe}
    beside |= {name: getattr(scored, name) for name in ATTAINABLE if getattr(scored, name) is not UNSET}
    return with_null(asdict(scored.agent)) | beside, _kept(asdict(scored.equal_weight))


def _kept(equal_weight: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics of equal weight without trades and exposure, which are not recorded for it."""
    return with_null({name: v for name, v in kept_of_equal_weight(equal_weight).items() if name != "exposure"})


def _path_rows(paths: Sequence[PathView], bar_seconds: int) -> list[FigureRow]:
    def plain(m: Metrics) -> dict[str, Any]:
        return asdict(m)

    rows = []
    for p in paths:
        excess = p.agent_figures.sharpe - p.equal_weight_figures.sharpe
        other = plain(p.equal_weight_figures)
        if not p.coins:  # then the trades of equal weight are unknown
            other = {name: v for name, v in other.items() if name not in ("turnover", "fees", "trades", "exposure")}
        name, days = p.title.lower().partition(" of ")[0], len(p.time_s) * bar_seconds / DAY_S
        reached = {n: getattr(p, n) for n in ATTAINABLE} if p.coins else {}
        rows.append(FigureRow(name, plain(p.agent_figures) | {"excess_sharpe": excess} | reached, other, days))
    return rows


def _holdout_rows(study: optuna.Study, folder: Path, best: FrozenTrial, bar_seconds: int) -> list[FigureRow]:
    scored = score_of(study, folder)
    if scored is None or (scored.uuid, scored.trial) != (uuid_in(study.user_attrs), best.number):
        return []
    days = scored.holdout.bars * bar_seconds / DAY_S
    return [FigureRow(f"hold-out {i}", *_figures(policy), days) for i, policy in enumerate(scored.policies)]


# -------------------------------------------------------------------------------- what the study as a whole says
def _no_verdict(study: optuna.Study, trials: Sequence[FrozenTrial]) -> Verdict:
    """Return the verdict of a study without a best trial."""
    said = unjudged(why_no_best(trials))
    if has_no_signal(study):
        return replace(said, sentences=(f"{NO_SIGNAL[0].upper()}{NO_SIGNAL[1:]}.", *said.sentences))
    return said


def _verdict(study: optuna.Study, folder: Path, best: FrozenTrial, is_whole: bool) -> Verdict:
    if not is_whole:
        return unjudged(f"equity files of trial {best.number}, the best, are missing or damaged")
    try:
        returns = read_returns(study, folder)
        return judge(returns, is_passed(holdout_score_in(study.user_attrs), best.number))
    except StudyError as error:
        return unjudged(str(error))


def _with_captured(verdict: Verdict, found: Captured) -> Verdict:
    what = (
        "log growth of the best trial on its test bars, divided by that of the best policy for the planted signal; "
        "that policy sees the signal itself, whereas a trial sees only features"
    )
    first, *others = verdict.sentences
    numbers = ((SHARE, found.share_text, what), *verdict.numbers)
    return replace(verdict, sentences=(first, found.text, *others), numbers=numbers)


def _with_path_mean(found: Verdict, paths: Sequence[PathView]) -> Verdict:
    """Return the verdict with the mean Sharpe ratio of the single paths added to its numbers."""
    ratios = [p.agent_figures.sharpe for p in paths]
    if not (found.numbers and ratios):
        return found
    mean = float(np.mean(ratios))
    said = f"{mean:.2f}" if np.isfinite(mean) else "undefined"
    what = (
        f"mean annual Sharpe ratio of the {len(ratios)} single paths; the judged account (Sharpe of the best) is "
        "diversified over all policies and rebalanced every bar at no cost"
    )
    return replace(found, numbers=(*found.numbers, ("Sharpe of the paths", said, what)))


def importances_of(study: optuna.Study, trials: Sequence[FrozenTrial]) -> tuple[tuple[tuple[str, float], ...], str]:
    """Return (name, share) of each hyperparameter, largest first, and a note for the reader.

    The shares are PED-ANOVA importances (Watanabe et al. 2023). PED-ANOVA needs no additional library and no seed, so
    the same trials give the same shares on every machine.
    """
    values = [t.value for t in trials if t.state == TrialState.COMPLETE]
    n = len(values)
    if n < LEAST_FOR_IMPORTANCE:
        return (), (
            f"Too few trials to tell which settings mattered: {counted(n, 'trial')} completed, and at least "
            f"{LEAST_FOR_IMPORTANCE} are needed."
        )
    if len(set(values)) == 1:
        return (), f"No setting can be said to matter, because all {n} completed trials have the same value."
    # Imported here because it also imports scikit-learn, if installed, and that import draws random numbers.
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    try:
        with experimental_allowed():
            shares = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(), normalize=True)
    except (ValueError, RuntimeError, ArithmeticError) as error:
        return (), f"The importance of the settings could not be computed: {error}"
    ordered = tuple(sorted(((name, float(v)) for name, v in shares.items()), key=lambda pair: -pair[1]))
    return ordered, (
        f"The share of each setting in deciding whether a trial is among the best tenth of {n} (PED-ANOVA). Settings "
        "interact, and small shares may be due to chance."
    )
