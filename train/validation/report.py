"""The page about a study: what was found, how sure that is, and how it was made. One HTML text, complete in itself.

Pure: plain values in, text out. No script, no font, no picture and no address is loaded (the page says so to the
browser, which then refuses any); charts are inline SVG (`train.validation.charts` says why). All text from a study is
escaped. An undefined figure reads "undefined", with the reason, and never 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from train.validation.band_picture import BandView, band_charts
from train.validation.charts import Axis, Band, Dots, Line, chart, count_axis, number_axis, time_axis
from train.validation.metrics import Metrics
from train.validation.report_figures import COLUMNS, NO_VARIATION, NOT_UNDER_A_YEAR, Column, escape, figure, written
from train.validation.report_style import GLOSSARY, STYLE
from train.validation.report_trials import MANY_DOTS, dot, trials_body

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)  # of random orders; the outer ones are the band
KINDS = {
    "REAL": "REAL DATA: prices of real coins",
    "SYNTHETIC": "SYNTHETIC DATA: a generated market; nothing here says anything about real coins",
    "UNKNOWN": "DATA OF UNKNOWN ORIGIN: neither real nor synthetic is written down",
}

LONG_TEXT = 60  # characters; longer facts get twice the room

Figures = Mapping[str, float | None]


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


@dataclass(frozen=True)
class FigureRow:
    """One line of the table of figures; None is undefined, an absent name was not kept."""

    name: str
    agent: Figures
    equal_weight: Figures
    days: float = 0.0  # that it covers


@dataclass(frozen=True)
class TrialView:
    """One trial."""

    number: int
    state: str  # complete, pruned, failed, running, waiting
    value: float | None  # of a complete one
    splits: Mapping[int, float]  # excess Sharpe of each split that was scored
    turnover: float | None  # mean over its splits, times equity
    fees: float | None  # mean over its splits, share of equity
    reason: str = ""  # why it cannot be the best: pruned, failed, or beyond a bound


@dataclass(frozen=True)
class Verdict:
    """Sentences, and the numbers behind them: (name, number, what it means)."""

    sentences: tuple[str, ...]
    numbers: tuple[tuple[str, str, str], ...] = ()


@dataclass(frozen=True)
class Page:
    """Everything on the page."""

    name: str
    kind: str  # a key of KINDS
    facts: tuple[tuple[str, str], ...]
    verdict: Verdict
    holdout: str
    best: int | None
    trials: tuple[TrialView, ...]
    # (name, mean return and mean Sharpe ratio over the splits, completed trials that earned more)
    yardsticks: tuple[tuple[str, float, float, str], ...] = ()
    paths: tuple[PathView, ...] = ()
    paths_note: str = ""
    rows: tuple[FigureRow, ...] = ()
    importances: tuple[tuple[str, float], ...] = ()
    importances_note: str = ""
    settings: tuple[tuple[str, str], ...] = ()
    left_out: tuple[str, ...] = ()
    command: str = ""
    made: str = ""
    bar_seconds: int = 0
    band: BandView | None = None  # of a band policy
    law: str = ""  # of a sample market that was made for a demonstration: "planted signal", "no signal"


UNDER_A_YEAR = "not annualised: less than a year"


# ----------------------------------------------------------------------------------------------------------------- page
def render(page: Page) -> str:
    """The page as HTML."""
    sections = (
        _verdict(page),
        _equity(page),
        *_band(page),
        _figures(page),
        _distribution(page),
        _importances(page),
        _section("trials", "Trials over time", trials_body(page)),
        _reading(page),
    )
    kind, text = page.kind, KINDS[page.kind]
    if page.law:
        kind, text = f"{kind}, {page.law}", text.replace(" DATA", f", {page.law}", 1)
    banner = f'<p class="banner {page.kind.lower()}" role="note">{escape(text)}</p>'
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(page.name)} ({escape(kind)})</title>\n"
        f"<style>{STYLE}</style>\n</head>\n<body>\n{banner}\n<main>\n"
        f"{_header(page)}\n" + "\n".join(sections) + f"\n</main>\n{banner}\n</body>\n</html>\n"
    )


def _section(name: str, title: str, body: str) -> str:
    return f'<section id="{name}">\n<h2>{escape(title)}</h2>\n{body}\n</section>'


def _pairs(pairs: Sequence[tuple[str, str]], kind: str) -> str:
    inner = "".join(
        f"<div{' class=wide' if len(text) > LONG_TEXT else ''}><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>"
        for name, text in pairs
    )
    return f'<dl class="{kind}">{inner}</dl>'


def _paragraphs(texts: Sequence[str], kind: str = "") -> str:
    return "".join(f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>" for text in texts)


def _header(page: Page) -> str:
    return (
        f'<header id="about"><h1>{escape(page.name)}</h1><p class="small">{escape(page.made)}</p>'
        f"{_pairs(page.facts, 'facts')}</header>"
    )


def _verdict(page: Page) -> str:
    body = f'<div class="verdict">{_paragraphs(page.verdict.sentences)}</div>'
    body += f'<div class="verdict holdout"><p><b>Hold-out.</b> {escape(page.holdout)}</p></div>'
    if page.verdict.numbers:
        rows = "".join(
            f'<tr><th scope="row">{escape(name)}</th><td class="number">{escape(number)}</td>'
            f"<td>{escape(text)}</td></tr>"
            for name, number, text in page.verdict.numbers
        )
        body += f'<h3>The numbers behind it</h3><table class="plain three">{rows}</table>'
    return _section("verdict", "Is it skill?", body)


# ------------------------------------------------------------------------------------------------------------- equity
LEGEND = (
    ("agent", "the trial's policies"),
    ("equal", "equal weight, bought at the start of each block and after each gap in the data"),
    ("coin", "buy and hold of each coin"),
    ("cash", "cash"),
    ("random", "random orders of the same turnover: middle 90 %"),
)


def _equity(page: Page) -> str:
    if not page.paths:
        why = page.paths_note or "There are no curves: there is no best trial, or its files are missing."
        return _section("equity", "Equity on bars not trained on", _paragraphs([why], "empty"))
    shown = {"agent", "equal", "cash"}
    shown |= {"coin"} if any(p.coins for p in page.paths) else set()
    shown |= {"random"} if any(p.random for p in page.paths) else set()
    keys = "".join(f'<li class="{kind}"><i></i>{escape(text)}</li>' for kind, text in LEGEND if kind in shown)
    switch = (
        '<input type="radio" name="scale" id="linear" checked><label for="linear">linear scale</label>'
        '<input type="radio" name="scale" id="log"><label for="log">logarithmic scale</label>'
    )
    intro = (
        f"Trial {page.best}, the best, on its test paths: {page.paths_note}. It was chosen by its results on these "
        "very blocks, so these curves flatter it; the hold-out does not. Accounts begin every block, and again after "
        f"every gap in the data, afresh (faint vertical lines): {_starts_text(page.paths)}. A curve goes on where the "
        "last one ended. Equal weight buys, and pays its fee, as often: a drag that buying once would not have. Fees "
        "are paid on buying and on selling by everybody, slippage by the agent and by random orders only, so that who "
        "just holds has it a little easier; nobody sells at the end. Drawdown is the loss from the highest point so "
        "far."
    )
    if "random" not in shown:
        intro += (
            " Buy and hold of coins and random orders are not shown: closing prices are not kept beside the results."
        )
    body = _paragraphs([intro]) + switch + f'<ul class="legend">{keys}</ul>'
    body += '<div class="paths">' + "".join(_path(p, page.bar_seconds) for p in page.paths) + "</div>"
    return _section("equity", "Equity on bars not trained on", body)


def _starts_text(paths: Sequence[PathView]) -> str:
    """How often the accounts of a path begin."""
    counts = sorted({len(p.starts_s) for p in paths})
    return f"{counts[0]} to {counts[-1]} times a path" if len(counts) > 1 else f"{counts[0]} times on each path"


def _path(p: PathView, bar_seconds: int) -> str:
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
    return _paragraphs([" ".join(texts)], "small") if texts else ""


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
    return _paragraphs(
        [
            f"{len(r.sharpe)} accounts with random orders of the same turnover, whenever the agent trades{room}, ended "
            f"between {low} and {high} (middle 90 %), median {middle}{ratio}. The agent returned more than "
            f"{written(r.returns_less, 'percent')} of them, and its Sharpe ratio is above that of "
            f"{written(r.sharpe_below, 'percent')}.{_exposures(r.exposure, p.agent_figures.exposure)} "
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


def _band(page: Page) -> list[str]:
    """The band, where there is one."""
    if page.band is None:
        return []
    intro = (
        f"{page.band.title}. The policy names a band of weights for each coin and bar. If the held weight is outside, "
        "an order moves it to the nearest edge; inside nothing is traded. The edges are those that the bar's orders "
        "aimed at. They were chosen a bar before, so the held weight misses an edge by what prices moved meanwhile."
    )
    return [_section("band", "The band", _paragraphs([intro]) + band_charts(page.band))]


# -------------------------------------------------------------------------------------------------------------- figures
def _figures(page: Page) -> str:
    if not page.rows:
        return _section("figures", "Figures", _paragraphs(["There is no best trial to show figures of."], "empty"))
    head = "".join(f'<th scope="col">{escape(c.title)}</th>' for c in COLUMNS)
    rows = "".join(
        f'<tr><th scope="row">{escape(row.name)}</th>'
        + "".join(_cell(c, row, page.bar_seconds) for c in COLUMNS)
        + "</tr>"
        for row in page.rows
    )
    intro = (
        f"Trial {page.best}. First the agent, beneath it equal weight on the same bars with the same fees. Splits are "
        "scored one by one; paths join their blocks. Ratios and volatility are per year; a return of less than a year "
        "is not annualised. Turnover and fees are over mean equity, for the whole split or path."
    )
    return _section("figures", "Figures of every split and path", _paragraphs([intro]) + (
        f'<table class="figures"><thead><tr><td></td>{head}</tr></thead><tbody>{rows}</tbody></table>'
    ))  # fmt: skip


def _cell(column: Column, row: FigureRow, bar_seconds: int) -> str:
    parts = []
    for who, figures in (("agent", row.agent), ("equal", row.equal_weight)):
        if column.key in NOT_UNDER_A_YEAR and row.days < 365.0:
            inner = f'<span class="none" title="{UNDER_A_YEAR}">\N{EN DASH}</span>'
        elif column.key in figures:
            inner = figure(figures[column.key], column.form, column.why_undefined, bar_seconds)
        else:
            inner = '<span class="none" title="not kept for this account">\N{EN DASH}</span>'
        parts.append(f'<span class="{who}">{inner}</span>')
    return f'<td data-title="{escape(column.title)}">{"".join(parts)}</td>'


def _distribution(page: Page) -> str:
    scored = [t for t in page.trials if t.splits and t.state in ("complete", "pruned")]
    if not scored:
        return _section("splits", "Distribution over splits", _paragraphs(["No trial has a scored split."], "empty"))
    indices = sorted({i for t in scored for i in t.splits})
    values = [np.array([t.splits[i] for t in scored if i in t.splits]) for i in indices]
    y = number_axis(values, include=(0.0,))
    x = count_axis(indices[0], indices[-1])
    marks: list[Any] = [Line("zero", np.array([x.low, x.high]), np.zeros(2))]
    medians: list[Any] = []
    for i, v in zip(indices, values, strict=True):
        q1, middle, q3 = np.quantile(v, (0.25, 0.5, 0.75))
        sides = np.array([i - 0.3, i + 0.3])
        marks.append(Band("box", sides, np.full(2, q1), np.full(2, q3)))
        medians.append(Line("median", sides, np.full(2, middle)))
    others = [(i, t) for t in scored if t.number != page.best for i in t.splits]
    spread = np.array([i + ((t.number * 0.618) % 1 - 0.5) * 0.4 for i, t in others])
    titles = [f"trial {t.number}, split {i}: {t.splits[i]:+.2f}" for i, t in others] if len(others) < MANY_DOTS else []
    marks.append(Dots(dot(others), spread, np.array([t.splits[i] for i, t in others]), titles))
    marks += medians
    for t in (t for t in scored if t.number == page.best):
        own = sorted(t.splits)
        said = [f"best trial {t.number}, split {i}: {t.splits[i]:+.2f}" for i in own]
        marks.append(Dots("best", np.array(own, float), np.array([t.splits[i] for i in own]), said))
    text = (
        "Sharpe ratio minus equal weight's, per year, on every split: small dots are all completed trials and the "
        "splits that pruned ones reached, large dots the best trial, boxes the middle half with the median."
    )
    drawn = chart(marks, x, y, height_px=260, said="excess Sharpe of every split", y_title="excess Sharpe, by split")
    return _section("splits", "Distribution over splits", _paragraphs([text]) + drawn)


# -------------------------------------------------------------------------------------------------- settings and trials
def _importances(page: Page) -> str:
    body = _paragraphs([page.importances_note]) if page.importances_note else ""
    if page.importances:
        most = max(share for _, share in page.importances) or 1.0
        bars = "".join(
            f'<tr><th scope="row">{escape(name)}</th><td class="bar"><i style="width:{share / most:.1%}"></i></td>'
            f"<td>{figure(share, 'percent', '')}</td></tr>"
            for name, share in page.importances
        )
        body += f'<table class="plain bars">{bars}</table>'
    if page.settings:
        body += f"<h3>Settings of trial {page.best}, the best</h3>{_pairs(page.settings, 'settings')}"
    body = body or _paragraphs(["There is no best trial to show settings of."], "empty")
    return _section("settings", "Which settings mattered", body)


def _reading(page: Page) -> str:
    body = f"<h3>What was left out</h3>{_list(page.left_out)}<h3>Words</h3>{_pairs(GLOSSARY, 'words')}"
    if page.command:
        body += "<h3>How it was made</h3>"
        body += _paragraphs(["The study's last command; repeated, it continues the study or ends at once."], "small")
        body += f"<pre>{escape(page.command)}</pre>"
    return _section("reading", "How to read it", body)


def _list(texts: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>"
