"""Best trial of a study, reasons for ineligible trials, and detection of policies that stayed in cash.

The log, the dashboard, the report and every error take their text from this module.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from market.names import counted
from train.records.account import Metrics
from train.records.attributes import splits_in
from train.records.keys import FAILURE, TARGET
from train.store.database import FINISHED
from train.study.holdout_figures import hardly_traded

MAX_DRAWDOWN, MIN_TRADES = "max_drawdown", "min_trades"  # names of the constraints
PRUNED = "pruned"  # user attribute: why the trial was pruned
NO_SIGNAL = "no tradable signal found at these costs"
NO_SIGNAL_CODE = 5  # exit code of a study without a signal; other programs use 3 and 4
NO_REASON = "no reason given"
# Fees of at least this fraction are reported as a reason for a lost account.
NOTABLE_FEES = 0.05


def best_trial(study: optuna.Study) -> FrozenTrial | None:
    """Return the eligible trial with the largest finite value, or None if there is none."""
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    scored = [t for t in done if t.value is not None and math.isfinite(t.value) and not broken_bounds(t.constraints)]
    return max(scored, key=lambda t: t.value or 0.0, default=None)


def broken_bounds(constraints: Mapping[str, float]) -> dict[str, float]:
    """Return the violated bounds, name -> amount of the violation."""
    return {name: beyond for name, beyond in constraints.items() if beyond > 0.0}


def why_ineligible(trial: FrozenTrial) -> str:
    """Return why a finished trial is not eligible to be best, or "" if it is eligible."""
    if trial.state == TrialState.PRUNED:
        return str(trial.user_attrs.get(PRUNED, NO_REASON))
    if trial.state == TrialState.FAIL:
        return str(trial.user_attrs.get(FAILURE, NO_REASON))
    return beyond_bounds(trial.constraints, trial.user_attrs)


def ineligible_text(trial: FrozenTrial) -> str:
    """Return `trial 7 is not eligible to be best: it lost 62 % of ...`, or "" if the trial is eligible."""
    why = why_ineligible(trial)
    return f"trial {trial.number} is not eligible to be best: {why}" if why else ""


def beyond_bounds(constraints: Mapping[str, float], attributes: Mapping[str, Any]) -> str:
    """Return which bounds a completed trial violates, with its metrics and the bounds, or "" if it violates none.

    Args:
        constraints: name -> violation of the bound on the worst split. 0 or less means no violation.
        attributes: user attributes of the trial, including the metrics of its splits.
    """
    broken, agents = broken_bounds(constraints), agents_of(attributes)
    texts = [_beyond_text(name, beyond, agents) for name, beyond in broken.items()]
    fees = max((_known(a.fees) for a in agents), default=0.0)
    if MAX_DRAWDOWN in broken and fees >= NOTABLE_FEES:
        texts.append(f"{fees:.0%} of the account went to fees")
    return ", ".join(texts).replace("%", " %")


def _beyond_text(name: str, beyond: float, agents: Sequence[Metrics]) -> str:
    if name == MAX_DRAWDOWN and agents:
        worst = max(_known(a.max_drawdown) for a in agents)
        return f"it lost {worst:.0%} of the account (bound {worst - beyond:.0%})"
    if name == MIN_TRADES and agents:
        fewest = min(_known(a.trades) for a in agents)
        return f"it traded {counted(int(fewest), 'time')} on a split (minimum {fewest + beyond:.0f})"
    return f"it violates --{name.replace('_', '-')}"


def _known(value: float) -> float:
    """Return the value, or 0 if it is nan."""
    return 0.0 if math.isnan(value) else value


def agents_of(attributes: Mapping[str, Any]) -> list[Metrics]:
    """Return the account's metrics on every split that the trial was scored on."""
    return [split.agent for split in splits_in(attributes).values()]


# ------------------------------------------------------------------------------------------------------- a whole study
def why_no_best(trials: Sequence[FrozenTrial]) -> str:
    """Return why a study has no best trial, as a sentence without a final period."""
    states = [t.state for t in trials]
    return no_best_text(
        states.count(TrialState.COMPLETE), states.count(TrialState.PRUNED), states.count(TrialState.FAIL),
        [name for t in trials for name in broken_bounds(t.constraints) if t.state == TrialState.COMPLETE],
        sum(stayed_in_cash(t) for t in trials),
    )  # fmt: skip


def no_best_text(n_complete: int, n_pruned: int, n_failed: int, broken: Sequence[str], n_in_cash: int = 0) -> str:
    """Return the text of `why_no_best` from counts. `broken` lists the bounds that completed trials violate."""
    others = [f"{n} {what}" for n, what in ((n_pruned, "pruned"), (n_failed, "failed")) if n]
    ended = f" ({', '.join(others)})" if others else ""
    in_cash = f"; {n_in_cash} stayed in cash" if n_in_cash else ""
    if not n_complete:
        return f"no trial completed{ended}{in_cash}"
    names = dict.fromkeys(broken)
    flags = [f"--{name.replace('_', '-')} violated by {broken.count(name)}" for name in names]
    what = "the completed trial is not" if n_complete == 1 else f"none of {n_complete} completed trials is"
    return f"{what} eligible to be best: {', '.join(flags) or 'no finite value'}{ended}{in_cash}"


def stayed_in_cash(trial: FrozenTrial) -> bool:
    """Return True if a finished trial was inactive on one of its splits and within the drawdown bound.

    The test uses exposure and not the number of trades, because an account that buys once and holds is in the market.
    """
    if trial.state not in FINISHED or MAX_DRAWDOWN in broken_bounds(trial.constraints):
        return False
    return any(a.trades == 0 or hardly_traded(a.exposure) for a in agents_of(trial.user_attrs))


def has_no_signal(study: optuna.Study) -> bool:
    """Return True if all trials finished and none is eligible, because the policies stayed in cash.

    At least half of the finished trials must have stayed in cash. Trials that violate the drawdown bound do not count.
    """
    finished = study.get_trials(deepcopy=False, states=FINISHED)
    if len(finished) < max(study.user_attrs.get(TARGET, 1), 1) or best_trial(study) is not None:
        return False
    return 2 * sum(stayed_in_cash(t) for t in finished) >= len(finished)
