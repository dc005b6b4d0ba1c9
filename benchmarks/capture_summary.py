"""Table, targets and figure of the capture curve; a run is a row of `benchmarks.capture_points.measure`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.capture_points import LEARNERS
from benchmarks.measuring import check

# Panel -> (label of its axis, points by tick).
PANELS: dict[str, tuple[str, dict[str, str]]] = {
    "Strength of the signal": ("alpha in bp", {"0.7": "alpha 0.7", "1.0": "base", "1.5": "alpha 1.5"}),
    "Cost": ("fee and slippage in bp", {"5": "cost 5", "15": "cost 15", "30": "base"}),
    "Coins": ("coins in one account", {"1": "base", "2": "coins 2", "7": "coins 7"}),
    "History": ("bars to train on", {"30,000": "one history", "500,000": "base"}),
    "Announced trend": ("rise in bp per bar", {"4": "announced 4", "8": "announced 8", "15": "announced 15"}),
}
SILENT = "no signal"
TITLES = {"base": "alpha 1.0 bp, 30 bp, 1 coin, fresh bars", "alpha 0.7": "alpha 0.7 bp", "alpha 1.5": "alpha 1.5 bp"}
TITLES |= {"cost 5": "cost 5 bp", "cost 15": "cost 15 bp", "coins 2": "2 coins", "coins 7": "7 coins"}
TITLES["one history"] = "one history of 30,000 bars"
TITLES |= {f"announced {rise}": f"announced trend, {rise} bp" for rise in (15, 8, 4)} | {SILENT: SILENT}
TARGETS = {"alpha 0.7": 0.75, "base": 0.90, "alpha 1.5": 0.95}
TARGETS |= {f"announced {rise}": 0.90 for rise in (15, 8, 4)} | {"one history": 0.60}
MOST_CPU_S = 20.0
MOST_TRADED, MOST_COST_SHARE = 0.5, 0.002
LOWEST_SHOWN = -0.5  # lower shares are drawn at the edge of the panel
# Okabe and Ito's colors, which color-blind readers can distinguish. Markers differ too.
COLOURS = dict(zip(LEARNERS, ("#6d6d6d", "#56b4e9", "#0072b2", "#e69f00", "#d55e00"), strict=True))
MARKERS = dict(zip(LEARNERS, "v^osD", strict=True))

COLUMNS = {"point": "point", "yardstick": "reference growth"} | {learner: learner for learner in LEARNERS}
Runs = Sequence[Mapping[str, Any]]


def runs_of(table: pd.DataFrame, point: str, learner: str) -> pd.DataFrame:
    """Return the runs of a learner at a point."""
    return table[(table["point"] == point) & (table["learner"] == learner)]


def table_rows(runs: Runs, yardsticks: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return one row per point, with the point without a signal last, and one row of CPU seconds."""
    table = pd.DataFrame(runs)
    rows = []
    for name in [name for name in TITLES if name in set(table["point"])]:
        cells = {learner: cell(runs_of(table, name, learner)) for learner in LEARNERS}
        rows.append({"point": TITLES[name], "yardstick": yardsticks.get(name, ""), **cells})
    cells = {learner: spread(own, "{:.1f}") for learner, own in table.groupby("learner")["cpu_s"]}
    return [*rows, {"point": "CPU seconds per run", "yardstick": "", **cells}]


def cell(runs: pd.DataFrame) -> str:
    """Format the median and range of the shares; without a signal, the turnover and its cost."""
    if runs.empty:
        return ""
    if runs["share"].notna().any():
        return spread(runs["share"].astype(float), "{:.2f}")
    return f"{runs['traded'].max():.2f} accounts, {runs['cost_share'].max():.2%}"


def spread(values: pd.Series, form: str) -> str:
    """Format a median and range as `0.90 (0.85 to 0.93)`."""
    return f"{form} ({form} to {form})".format(values.median(), values.min(), values.max())


def checks(runs: Runs) -> list[dict[str, Any]]:
    """Return the targets: medians of the best learner, turnover of every seed without a signal, and CPU seconds."""
    table = pd.DataFrame(runs).astype({"share": float})
    medians = table.groupby(["point", "learner"])["share"].median().dropna()
    found = []
    for name, least in TARGETS.items():
        if name in medians:
            best = medians[name].idxmax()
            what = f"median share of the attainable growth ({TITLES[name]}; {best})"
            found.append(check(what, float(medians[name, best]), least=least))
    for learner in LEARNERS:
        worst = runs_of(table, SILENT, learner)[["traded", "cost_share"]].max()
        if worst.notna().all():
            what = f"accounts traded in 10,000 bars (no signal, worst seed, {learner})"
            found.append(check(what, float(worst["traded"]), most=MOST_TRADED))
            what = f"fees and slippage as a share of the account (no signal, worst seed, {learner})"
            found.append(check(what, float(worst["cost_share"]), most=MOST_COST_SHARE))
    return [*found, check("CPU seconds (longest run)", float(table["cpu_s"].max()), most=MOST_CPU_S)]


def draw(part: Mapping[str, Any], path: Path) -> None:
    """Draw medians as markers and the range over the seeds as lines."""
    from matplotlib.figure import Figure

    table = pd.DataFrame(part["runs"]).astype({"share": float})
    figure = Figure(figsize=(12.5, 7.4), layout="constrained")
    axes = figure.subplots(2, 3)
    for axis, (title, (label, ticks)) in zip(axes.flat, PANELS.items(), strict=False):
        for number, learner in enumerate(LEARNERS):
            shift = 0.17 * (number - (len(LEARNERS) - 1) / 2.0)
            marks(axis, [runs_of(table, name, learner)["share"] for name in ticks.values()], learner, shift)
        for place, name in enumerate(ticks.values()):
            if name in TARGETS:
                axis.plot([place - 0.4, place + 0.4], [TARGETS[name]] * 2, color="#009e73", lw=1.2, ls="--")
        axis.axhline(1.0, color="black", lw=0.8)
        axis.axhline(0.0, color="black", lw=0.8, ls=":")
        axis.set(title=title, xlabel=label, ylim=(LOWEST_SHOWN - 0.03, 1.08), xlim=(-0.5, len(ticks) - 0.5))
        axis.set_xticks(range(len(ticks)), list(ticks))
        axis.grid(axis="y", alpha=0.25)
        axis.set_ylabel("share of the optimum (no unit)")
    draw_stillness(axes.flat[-1], table)
    labelled = axes.flat[0].get_legend_handles_labels()
    figure.legend(*labelled, loc="outside lower center", ncols=len(LEARNERS), frameon=False)
    title = (
        "Share of the attainable log growth on unseen bars, costs paid. Marks: median of the seeds; lines: their whole "
        "range;\ndashed: targets; open marks: below the panel."
    )
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=110)


def marks(axis: Any, shares: Sequence[pd.Series], learner: str, shift: float) -> None:
    """Draw one learner's markers in a panel; values below the panel are open markers at its lower edge."""
    style = {"color": COLOURS[learner], "marker": MARKERS[learner], "ls": "none", "ms": 6}
    axis.plot([], [], label=learner, **style)
    for place, own in enumerate(shares):
        shown = own.clip(lower=LOWEST_SHOWN)
        axis.plot([place + shift] * 2, [shown.min(), shown.max()], color=COLOURS[learner], lw=1.6, alpha=0.7)
        is_below = shown.median() <= LOWEST_SHOWN
        axis.plot(place + shift, shown.median(), **style, mfc="white" if is_below else COLOURS[learner])


def draw_stillness(axis: Any, table: pd.DataFrame) -> None:
    """Draw the turnover of every seed on the market without a signal."""
    for number, learner in enumerate(LEARNERS):
        traded = runs_of(table, SILENT, learner)["traded"]
        beside = [0.12 * (i - (len(traded) - 1) / 2.0) for i in range(len(traded))]
        axis.plot([number + x for x in beside], traded, MARKERS[learner], color=COLOURS[learner], ms=6)
    axis.axhline(MOST_TRADED, color="#009e73", lw=1.2, ls="--")
    axis.set_yscale("symlog", linthresh=0.1)
    axis.set(title="No signal, every seed", xlabel="learner", ylabel="accounts traded in 10,000 bars")
    axis.set(xlim=(-0.5, len(LEARNERS) - 0.5))
    axis.set_ylim(bottom=-0.02)
    axis.set_xticks(range(len(LEARNERS)), [name.replace("PPO, ", "PPO,\n") for name in LEARNERS], fontsize=8)
    axis.grid(axis="y", alpha=0.25)
