"""The test paths on the page about a study: curves, what everybody ended with, and what to say of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from train.records.account import Metrics
from train.report.charts import Axis, Band, Line, chart, number_axis, time_axis
from train.report.figures import NO_VARIATION, escape, figure, paragraphs, written

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)  # of random orders; the outer ones are the band


@dataclass(frozen=True)
class RandomOrders:
    """Accounts that trade the notional the policy traded, in random coins and directions."""

    time_s: np.ndarray  # (R,)
    quantiles: np.ndarray  # (5, R) of the compounded accounts, `QUANTILES`
    sharpe: np.ndarray  # (K,) of each account, nan where undefined
    exposure: float  # mean; it is not matched to the policy's
    traded_share: float  # mean of what they traded, over what the policy did: none has room for more than its money
    returns_less: float  # share of the accounts that return less than the policy
    sharpe_below: float  # share of those with a lower Sharpe ratio


@dataclass(frozen=True)
class PathView:
    """One test path of the best trial; curves begin at 1 and are compounded over its blocks."""

    title: str
    origin: str
    time_s: np.ndarray  # (M,) UTC
    starts_s: np.ndarray  # of its blocks
    agent: np.ndarray  # (M,)
    equal_weight: np.ndarray  # (M,)
    agent_figures: Metrics
    equal_weight_figures: Metrics
    coins: Mapping[str, np.ndarray] = field(default_factory=dict)  # ticker -> (M,) buy and hold
    coin_figures: Mapping[str, Metrics] = field(default_factory=dict)
    random: RandomOrders | None = None
    hindsight_growth: float = math.nan  # log growth of a trader who knows every later price, after costs
    of_hindsight: float = math.nan  # the agent's share of it
    break_even_cost: float = math.nan  # of one side, a fraction of notional, at which the excess return is 0


def path_figure(p: PathView, bar_seconds: int) -> str:
    """Curves on both scales, drawdown, and the table of what everybody ended with."""
    x = time_axis(float(p.time_s[0]), float(p.time_s[-1]))
    marks: list[Any] = []
    if p.random is not None:
        marks += [Band("random", p.random.time_s, p.random.quantiles[0], p.random.quantiles[-1])]
        marks += [Line("middle", p.random.time_s, p.random.quantiles[2])]
    marks += [Line("coin", p.time_s, curve, ticker) for ticker, curve in p.coins.items()]
    marks += [
        Line("cash", p.time_s[[0, -1]], np.ones(2), "cash"),
        Line("equal", p.time_s, p.equal_weight, "equal w."),
        Line("agent", p.time_s, p.agent, "agent"),
    ]
    values = [np.concatenate([np.ravel(m.y) for m in marks if isinstance(m, Line)])]
    values += [p.random.quantiles[[0, -1]]] if p.random is not None else []
    charts = ""
    for name, is_log in (("linear", False), ("log", True)):
        y = number_axis(values, is_log=is_log)
        drawn = chart(marks, x, y, height_px=260, said=f"{p.title}: equity, {name} scale", y_title="equity, start = 1",
                      lines_at=p.starts_s.tolist())  # fmt: skip
        charts += f'<div class="on-{name}">{drawn}</div>'
    losses = [Line("equal", p.time_s, drawdown(p.equal_weight)), Line("agent", p.time_s, drawdown(p.agent))]
    depth = min(float(np.nanmin(line.y)) for line in losses)
    y = _percent_axis(depth)
    charts += chart(losses, x, y, height_px=110, said=f"{p.title}: drawdown", y_title="drawdown, %",
                    lines_at=p.starts_s.tolist())  # fmt: skip
    share = f"; {written(p.of_hindsight, 'fine percent')} of hindsight" if math.isfinite(p.of_hindsight) else ""
    caption = f"<figcaption><b>{escape(p.title)}</b> {escape(p.origin + share)}</figcaption>"
    return f"<figure>{caption}{charts}{_benchmarks(p, bar_seconds)}</figure>"


def drawdown(curve: np.ndarray) -> np.ndarray:
    """Loss from the running maximum in percent, 0 or negative."""
    return (curve / np.maximum.accumulate(curve) - 1.0) * 100.0


def _percent_axis(depth: float) -> Axis:
    axis = number_axis([np.array([depth, 0.0])])
    return Axis(axis.low, 0.0, tuple(t for t in axis.ticks if t[0] <= 0.0))


def _benchmarks(p: PathView, bar_seconds: int) -> str:
    """What everybody ended with, as a small table."""
    rows = [("agent", p.agent_figures), ("equal weight", p.equal_weight_figures), *p.coin_figures.items()]
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(
            f"<td>{figure(getattr(m, key), form, NO_VARIATION, bar_seconds)}</td>"
            for key, form in (("total_return", "percent"), ("sharpe", "ratio"), ("max_drawdown", "percent"))
        )
        + "</tr>"
        for name, m in rows
    )
    body += '<tr><th scope="row">cash</th><td><data value="0.0">0.0 %</data></td>'
    body += f"<td>{figure(None, 'ratio', 'its returns do not vary')}</td>"
    body += '<td><data value="0.0">0.0 %</data></td></tr>'
    head = "<tr><td></td><th>total return</th><th>Sharpe</th><th>max drawdown</th></tr>"
    return f'<table class="plain ends">{head}{body}</table>{_hindsight_sentence(p)}{_random_sentence(p)}'


def _hindsight_sentence(p: PathView) -> str:
    """What a clairvoyant would have made of the same bars, and the cost at which the agent breaks even."""
    texts = []
    if math.isfinite(p.of_hindsight):
        texts.append(
            f"A trader who knew every later price and paid the same costs would have multiplied the account by "
            f"{_factor(p.hindsight_growth)}. The agent's log growth is {written(p.of_hindsight, 'fine percent')} of "
            "that trader's. Nobody can come near it: it is an upper bound, and no target."
        )
    if math.isfinite(p.break_even_cost):
        texts.append(
            f"At a cost of {written(p.break_even_cost, 'bp')} a side (fee and slippage) the agent's orders would have "
            "earned what equal weight did. Below 0 it is behind even without costs."
        )
    return paragraphs([" ".join(texts)], "small") if texts else ""


def _factor(log_growth: float) -> str:
    """`3.2`, `41,000`, or a power of ten."""
    power = log_growth / math.log(10.0)
    return f"{math.exp(log_growth):,.3g}" if power < 3 else f"10 to the power of {power:,.1f}"


def _random_sentence(p: PathView) -> str:
    r = p.random
    if r is None:
        return ""
    low, middle, high = (written(r.quantiles[i][-1] - 1.0, "percent") for i in (0, 2, 4))
    known = r.sharpe[np.isfinite(r.sharpe)]
    ratio = f", median Sharpe {written(float(np.median(known)), 'ratio')}" if known.size else ""
    room = "" if r.traded_share >= 0.995 else f", of which they had room for {r.traded_share:.0%},"
    return paragraphs(
        [
            f"{len(r.sharpe)} accounts with random orders of the same turnover, whenever the agent trades{room}, ended "
            f"between {low} and {high} (middle 90 %), median {middle}{ratio}. The agent returned more than "
            f"{written(r.returns_less, 'percent')} of these accounts, and its Sharpe ratio is higher than that of "
            f"{written(r.sharpe_below, 'percent')} of them.{_exposures(r.exposure, p.agent_figures.exposure)} "
            "Random orders spread over all coins, so they are less concentrated than an agent may be. And the agent is "
            "the best of all trials: these shares are not corrected for that choice."
        ],
        "small",
    )


def _exposures(theirs: float, agents: float) -> str:
    if not (math.isfinite(theirs) and math.isfinite(agents)):
        return ""
    return (
        f" They were {written(theirs, 'percent')} in coins on average, the agent {written(agents, 'percent')}: that is "
        "not matched, and whoever holds more coins looks worse where prices fall."
    )
