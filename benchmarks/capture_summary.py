"""Table, targets and picture of the capture curve."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.capture_points import LEARNERS, POINTS, Run
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
TITLES = {
    "base": "alpha 1.0 bp, 30 bp, 1 coin, fresh bars", "alpha 0.7": "alpha 0.7 bp", "alpha 1.5": "alpha 1.5 bp",
    "cost 5": "cost 5 bp", "cost 15": "cost 15 bp", "coins 2": "2 coins", "coins 7": "7 coins",
    "one history": "one history of 30,000 bars", "announced 15": "announced trend, 15 bp",
    "announced 8": "announced trend, 8 bp", "announced 4": "announced trend, 4 bp", SILENT: "no signal",
}  # fmt: skip
TARGETS = {
    "alpha 0.7": 0.75, "base": 0.90, "alpha 1.5": 0.95, "announced 15": 0.90, "announced 8": 0.90, "announced 4": 0.90,
    "one history": 0.60,
}  # fmt: skip
MOST_CPU_S = 20.0
MOST_TRADED, MOST_COST_SHARE = 0.5, 0.002
LOWEST_SHOWN = -0.5  # shares below are drawn at the edge
COLOURS = dict(zip(LEARNERS, ("tab:gray", "tab:cyan", "tab:blue", "tab:orange", "tab:red"), strict=True))
MARKERS = dict(zip(LEARNERS, "v^osD", strict=True))

Results = Mapping[tuple[str, str], Sequence[Run]]  # by point and learner


def by_point(runs: Sequence[Run]) -> Results:
    """Runs in the order of their seeds."""
    return {
        (name, learner): [r for r in sorted(runs, key=lambda r: r.seed) if (r.point, r.learner) == (name, learner)]
        for name in POINTS
        for learner in LEARNERS
    }


def columns() -> dict[str, str]:
    """Of the table."""
    return {"point": "point", "yardstick": "1 is"} | {learner: learner for learner in LEARNERS}


def table_rows(runs: Sequence[Run], yardsticks: Mapping[str, str]) -> list[dict[str, Any]]:
    """One row a point, one of the points without a signal, one of CPU seconds."""
    results = by_point(runs)
    rows = []
    for name in TITLES:
        cells = {learner: _cell(results[name, learner]) for learner in LEARNERS}
        if any(cells.values()):
            rows.append({"point": TITLES[name], "yardstick": yardsticks.get(name, ""), **cells})
    seconds = {learner: [run.cpu_s for run in runs if run.learner == learner] for learner in LEARNERS}
    cells = {learner: _spread(values, "{:.1f}") for learner, values in seconds.items() if values}
    return [*rows, {"point": "CPU seconds per run", "yardstick": "", **cells}]


def _cell(runs: Sequence[Run]) -> str:
    """Median and range of the shares; without a signal, what is traded and what it costs."""
    shares = [run.share for run in runs if run.share is not None]
    if shares:
        return _spread(shares, "{:.2f}")
    if not runs:
        return ""
    return f"{max(run.traded for run in runs):.2f} accounts, {max(run.cost_share for run in runs):.2%}"


def _spread(values: Sequence[float], form: str) -> str:
    """`0.90 (0.85 to 0.93)`."""
    return f"{form} ({form} to {form})".format(statistics.median(values), min(values), max(values))


def checks(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Targets: medians of the better learner, stillness of every seed without a signal, CPU seconds."""
    results = by_point(runs)
    found = []
    for name, least in TARGETS.items():
        medians = {learner: statistics.median(run.share for run in results[name, learner] if run.share is not None)
                   for learner in LEARNERS if results[name, learner]}  # fmt: skip
        if medians:
            best = max(medians, key=lambda learner: medians[learner])
            found.append(check(f"median share, {TITLES[name]} ({best})", medians[best], least=least))
    for learner in [learner for learner in LEARNERS if results[SILENT, learner]]:
        still = results[SILENT, learner]
        found.append(check(f"accounts traded in 10,000 bars without a signal, worst seed ({learner})",
                           max(run.traded for run in still), most=MOST_TRADED))  # fmt: skip
        found.append(check(f"share of the account paid in fees and slippage there, worst seed ({learner})",
                           max(run.cost_share for run in still), most=MOST_COST_SHARE))  # fmt: skip
    return [*found, check("CPU seconds of the longest run", max(run.cpu_s for run in runs), most=MOST_CPU_S)]


def draw(runs: Sequence[Run], path: Path) -> None:
    """Medians as marks, the range over the seeds as lines."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    results = by_point(runs)
    figure, axes = plt.subplots(2, 3, figsize=(12.5, 7.4), layout="constrained")
    for axis, (title, (label, ticks)) in zip(axes.flat, PANELS.items(), strict=False):
        for number, learner in enumerate(LEARNERS):
            _marks(axis, [results[name, learner] for name in ticks.values()], learner, number)
        for place, name in enumerate(ticks.values()):
            if name in TARGETS:
                axis.plot([place - 0.4, place + 0.4], [TARGETS[name]] * 2, color="tab:green", lw=1.2, ls="--")
        axis.axhline(1.0, color="black", lw=0.8)
        axis.axhline(0.0, color="black", lw=0.8, ls=":")
        axis.set(title=title, xlabel=label, ylim=(LOWEST_SHOWN - 0.03, 1.08), xlim=(-0.5, len(ticks) - 0.5))
        axis.set_xticks(range(len(ticks)), list(ticks))
        axis.grid(axis="y", alpha=0.25)
    for axis in axes[:, 0]:
        axis.set_ylabel("share of the optimum")
    _draw_stillness(axes.flat[-1], results)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(LEARNERS), frameon=False)
    figure.suptitle("Share of the attainable log growth on unseen bars, costs paid. Marks: median of the seeds; lines: "
                    "their whole range;\ndashed: targets; open marks: below the panel.", fontsize=10)  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _marks(axis: Any, columns_of_runs: Sequence[Sequence[Run]], learner: str, number: int) -> None:
    """One learner's marks of a panel; those below the panel are drawn at its lower edge as open marks."""
    style = {"color": COLOURS[learner], "marker": MARKERS[learner], "ls": "none", "ms": 6}
    axis.plot([], [], label=learner, **style)
    shift = 0.17 * (number - (len(LEARNERS) - 1) / 2.0)
    for place, runs in enumerate(columns_of_runs):
        shares = [max(run.share, LOWEST_SHOWN) for run in runs if run.share is not None]
        if not shares:
            continue
        middle = statistics.median(shares)
        axis.plot([place + shift] * 2, [min(shares), max(shares)], color=COLOURS[learner], lw=1.6, alpha=0.7)
        is_below = middle <= LOWEST_SHOWN
        axis.plot(place + shift, middle, **style, mfc="white" if is_below else COLOURS[learner])


def _draw_stillness(axis: Any, results: Results) -> None:
    """What is traded where nothing can be earned, every seed."""
    for number, learner in enumerate(LEARNERS):
        traded = [run.traded for run in results[SILENT, learner]]
        if not traded:
            continue
        xs = [number + 0.12 * (i - (len(traded) - 1) / 2.0) for i in range(len(traded))]
        axis.plot(xs, traded, MARKERS[learner], color=COLOURS[learner], ms=6)
    axis.axhline(MOST_TRADED, color="tab:green", lw=1.2, ls="--")
    axis.set_yscale("symlog", linthresh=0.1)
    axis.set(title="No signal, every seed", ylabel="accounts traded in 10,000 bars", xlim=(-0.5, len(LEARNERS) - 0.5))
    axis.set_ylim(bottom=-0.02)
    axis.set_xticks(range(len(LEARNERS)), [name.replace("PPO, ", "PPO,\n") for name in LEARNERS], fontsize=8)
    axis.grid(axis="y", alpha=0.25)
