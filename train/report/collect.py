"""The report of a study: everything the page says, collected from the study and its folder.

Reads only files that are whole and takes no lock, so a study that runs can be reported on; what is missing or damaged
is left out and the page says so.
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
from train.report.verdict import holdout_text, judge, unjudged
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
UNKNOWN = "not written down"
DAY_S = 86_400
TRAINS_ON_LATER_BARS = (*COMBINATORIAL_MODES, "kfold")
SHARE = "share of the attainable captured"
LOGGED = (SHARE, "deflated lead", "PBO of the lead", "difference of trials")  # numbers of the verdict
LEAST_FOR_IMPORTANCE = 30  # completed trials: the evaluator looks at the best tenth of them
# The page is about results that are safe on the disk: whatever stops it must not take the study's own ending with it.
REPORT_ERRORS = (
    OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, MemoryError,
    AssertionError, SQLAlchemyError, optuna.exceptions.OptunaError,
)  # fmt: skip


def report_ended_study(study: optuna.Study, folder: Path) -> None:
    """Write the page and say where; a failure is logged with its reason and raises nothing."""
    try:
        page = collect(study, folder)
        write_whole(folder / REPORT_FILE, render(page).encode())
        for line in verdict_lines(page):
            logger.info("%s", line)
        logger.info("report: %s", folder / REPORT_FILE)
    except REPORT_ERRORS as error:
        logger.error("report: not written: %s: %s", type(error).__name__, str(error).strip() or "no message")
        logger.debug("report", exc_info=True)


def verdict_lines(page: Page) -> list[str]:
    """What the page says first, for a log: the conclusion, the captured share of a planted signal, the hold-out."""
    figures = "; ".join(f"{name} {number}" for name, number, _ in page.verdict.numbers if name in LOGGED)
    said = [page.verdict.sentences[0], figures, f"Hold-out: {page.holdout}"]
    return [f"verdict: {text}" for text in said if text]


def write_report(study: optuna.Study, folder: Path, out: Path | None = None) -> Path:
    """Write the page, whole or not at all; returns where.

    Args:
        study: in any state.
        folder: its results.
        out: file to write; `report.html` beside the results without it.
    """
    path = folder / REPORT_FILE if out is None else out
    write_whole(path, render(collect(study, folder)).encode())
    return path


def _settings_of(folder: Path, best: FrozenTrial) -> TrialSettings | None:
    """The settings that the best trial was scored with; None where they are missing, damaged or others."""
    try:
        check_seal(folder, best, min(best.intermediate_values, default=0), SETTINGS)
    except StudyError as error:
        logger.warning("report: not used: %s", error)
        return None
    return found(trial_folder(folder, best.number) / SETTINGS, TrialSettings)


def collect(study: optuna.Study, folder: Path) -> Page:
    """Everything the page says."""
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
        made=f"Written {utc_text(time.time())} UTC by code version {code_version()}; one file, complete in itself.",
    )
    return base if best is None else _with_best(base, study, folder, trials, best, settings)


def _fetch(study: optuna.Study, folder: Path, shown_trial: FrozenTrial | None) -> None:
    """Fetch what the page shows and this machine does not have; `read_returns` fetches the other trials' curves."""
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
    note, paths = "The best trial's settings.json is missing or damaged, so its paths are not known.", []
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
    """The band of the first split that has one."""
    for i in splits:
        path = split_folder(folder, best.number, i) / BAND_FILE
        if settings is not None and path.is_file():
            try:
                return BandView(f"Trial {best.number}, split {i}", read_band(folder, path, settings))
            except StudyError as error:
                logger.warning("report: no picture of the band: %s", error)
    return None


def found(path: Path, type_: type[T]) -> T | None:
    """A record of ours; None where the file is missing, or damaged, which is logged."""
    if not path.exists():
        return None
    try:
        return read_record(path, type_)
    except StudyError as error:
        logger.warning("report: not used: %s", error)
        return None


def score_of(study: optuna.Study, folder: Path) -> HoldoutScore | None:
    """The score on the held-out bars, as the database has it; where it has none, that of holdout.json."""
    try:
        kept = holdout_score_in(study.user_attrs)
    except StudyError as error:
        logger.warning("report: not used: %s", error)
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
    """The law of the sample market that the study stands on; empty for any other data."""
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
        ("fee, buying and selling", _fees_text(rules)),
        ("slippage", f"{rules.slippage_rate:.2%} of every order" if rules else UNKNOWN),
        ("venue", _venue_text(identity.venue if identity else None)),
        ("capital", f"{rules.initial_capital:,.0f} at each start" if rules else UNKNOWN),
        ("seeds", _seeds_text(identity, settings)),
        ("environments", str(identity.run.n_envs) if identity else UNKNOWN),
        ("code version", ", ".join(versions) or UNKNOWN),
    ]  # fmt: skip
    return tuple((name, str(text)) for name, text in facts)


def _coins(folder: Path) -> tuple[str, ...]:
    """Of the first trial that says it."""
    read = (found(path, TrialSettings) for path in sorted(folder.glob("trial_*/settings.json")))
    return next((settings.data.tickers for settings in read if settings), ())


def _plan_text(identity: Identity | None) -> str:
    if identity is None:
        return UNKNOWN
    plan = identity.plan
    if plan.mode not in COMBINATORIAL_MODES:
        return f"{plan.mode}, {plan.num_paths} splits"
    return f"{plan.mode}, {plan.num_paths} paths, {counted(plan.k_test_groups, 'group')} tested together"


def _fees_text(rules: Rules | None) -> str:
    if rules is None:
        return UNKNOWN
    return f"{rules.buy_fee_rate:.3%} and {rules.sell_fee_rate:.3%} of notional"


def _venue_text(venue: VenueTerms | None) -> str:
    if venue is None:
        return UNKNOWN
    return (
        f"{venue.name}, {venue.volume_30d:,.0f} USD traded in 30 days; order rules of {venue.order_rules_as_of}, fees "
        f"of {venue.fees_as_of}"
    )


def _seeds_text(identity: Identity | None, settings: TrialSettings | None) -> str:
    of_splits = settings.split_seeds if settings else ()
    text = f"study {identity.run.seed if identity else UNKNOWN}"
    return text + (f"; splits {', '.join(map(str, of_splits))}" if of_splits else "")


def _left_out(study: optuna.Study, trials: Sequence[FrozenTrial]) -> tuple[str, ...]:
    identity, texts = identity_in(study.user_attrs), []
    for name, part in (identity.purges if identity else {}).items():
        texts.append(
            f"{name}: {part.purge_bars} bars are purged on both sides of every test block, and {part.embargo_bars} "
            "more are embargoed after it; they neither train nor test that split."
        )
    pruned = sum(t.state == TrialState.PRUNED for t in trials)
    if pruned:
        texts.append(
            f"Pruned trials ({pruned}) have no value; they count as tried in the deflated Sharpe, and not in PBO."
        )
    failed = sum(t.state == TrialState.FAIL for t in trials)
    if failed:
        texts.append(f"Failed trials ({failed}) count nowhere.")
    if identity is not None and identity.plan.mode in TRAINS_ON_LATER_BARS:
        texts.append(
            f"In mode {identity.plan.mode} a policy also trains on bars after its test block, which nobody can who "
            "trades; rolling and expanding train on earlier bars only, and the hold-out comes after all of them."
        )
    return tuple(texts)


# --------------------------------------------------------------------------------------------------- trials and figures
def _split_rows(folder: Path, best: FrozenTrial, folds: Sequence[FoldBars], bar_seconds: int) -> list[FigureRow]:
    """From each split's result.json, or the study's copy of it."""
    rows, kept = [], splits_in(best.user_attrs)
    days = {f.index: bars_in(f.test) * bar_seconds / DAY_S for f in folds}
    for i in sorted(best.intermediate_values):
        try:
            check_seal(folder, best, i, RESULT)
            file = found(split_folder(folder, best.number, i) / RESULT, SplitFigures)
        except StudyError as error:
            logger.warning("report: not used: %s", error)
            file = None
        figures = file or kept.get(i)
        if figures is not None:
            rows.append(FigureRow(f"split {i}", *_figures(figures), days.get(i, 0.0)))
    return rows


def _figures(scored: SplitFigures | PolicyScore) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of the agent, with what stands beside it, and of equal weight; what was not kept is left out."""
    beside = {"excess_sharpe": scored.excess_sharpe}
    beside |= {name: getattr(scored, name) for name in ATTAINABLE if getattr(scored, name) is not UNSET}
    return with_null(asdict(scored.agent)) | beside, _kept(asdict(scored.equal_weight))


def _kept(equal_weight: Mapping[str, Any]) -> dict[str, Any]:
    """Without trades and exposure, which are not kept for it; as undefined they would look like a finding."""
    return with_null({name: v for name, v in kept_of_equal_weight(equal_weight).items() if name != "exposure"})


def _path_rows(paths: Sequence[PathView], bar_seconds: int) -> list[FigureRow]:
    def plain(m: Metrics) -> dict[str, Any]:
        return asdict(m)

    rows = []
    for p in paths:
        excess = p.agent_figures.sharpe - p.equal_weight_figures.sharpe
        other = plain(p.equal_weight_figures)
        if not p.coins:  # its trades are then not known
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
    """What is said of a study without a best trial."""
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
        "log growth of the best trial on its test bars, over that of the best policy for the planted signal on the "
        "same bars; that policy sees the signal, a trial sees features only"
    )
    first, *others = verdict.sentences
    numbers = ((SHARE, found.share_text, what), *verdict.numbers)
    return replace(verdict, sentences=(first, found.text, *others), numbers=numbers)


def _with_path_mean(found: Verdict, paths: Sequence[PathView]) -> Verdict:
    """The verdict with the single paths' mean Sharpe beside that of the judged account."""
    ratios = [p.agent_figures.sharpe for p in paths]
    if not (found.numbers and ratios):
        return found
    mean = float(np.mean(ratios))
    said = f"{mean:.2f}" if np.isfinite(mean) else "undefined"
    what = (
        f"a year, mean of the {len(ratios)} single paths; the judged account (Sharpe of the best) holds all policies "
        "at once, which spreads their risk, and is made equal again every bar for nothing"
    )
    return replace(found, numbers=(*found.numbers, ("Sharpe of the paths", said, what)))


def importances_of(study: optuna.Study, trials: Sequence[FrozenTrial]) -> tuple[tuple[tuple[str, float], ...], str]:
    """Share of each setting, largest first, and what has to be said; PED-ANOVA (Watanabe et al. 2023).

    It needs no further library and no seed: the same trials give the same shares everywhere.
    """
    values = [t.value for t in trials if t.state == TrialState.COMPLETE]
    n = len(values)
    if n < LEAST_FOR_IMPORTANCE:
        return (), (
            f"With {n} completed trials, which settings mattered cannot be told: at least {LEAST_FOR_IMPORTANCE} are "
            "needed, and more are better."
        )
    if len(set(values)) == 1:
        return (), f"Which settings mattered cannot be told: all {n} completed trials are of the same value."
    # Here, because it brings scikit-learn along where that is installed, whose import draws random numbers.
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    try:
        with experimental_allowed():
            shares = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(), normalize=True)
    except (ValueError, RuntimeError, ArithmeticError) as error:
        return (), f"Which settings mattered cannot be told: {error}"
    ordered = tuple(sorted(((name, float(v)) for name, v in shares.items()), key=lambda pair: -pair[1]))
    return ordered, (
        f"How much a setting decides whether a trial is among the best tenth of {n} (PED-ANOVA, shares of the sum). "
        "Settings act together, and small shares may be chance."
    )
