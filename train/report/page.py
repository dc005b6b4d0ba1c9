"""The page about a study: what was found, how sure that is, and how it was made. One HTML text, complete in itself.

Pure: plain values in, text out. No script, no font, no picture and no address is loaded (the page says so to the
browser, which then refuses any); charts are inline SVG (`train.report.charts` says why). All text from a study is
escaped. An undefined figure reads "undefined", with the reason, and never 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from train.report.band_picture import BandView, band_charts
from train.report.charts import Band, Dots, Line, chart, count_axis, number_axis
from train.report.figures import COLUMNS, NOT_UNDER_A_YEAR, Column, escape, figure, paragraphs
from train.report.paths import PathView, path_figure
from train.report.style import GLOSSARY, STYLE
from train.report.trials import MANY_DOTS, dot, trials_body

KINDS = {
    "REAL": "REAL DATA: prices of real coins",
    "SYNTHETIC": "SYNTHETIC DATA: a generated market; nothing here says anything about real coins",
    "UNKNOWN": "DATA OF UNKNOWN ORIGIN: neither real nor synthetic is written down",
}

LONG_TEXT = 60  # characters; longer facts get twice the room

Figures = Mapping[str, float | None]


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
    kind = f"{page.kind}, {page.law}" if page.law else page.kind
    text = KINDS[page.kind].replace(" DATA", f", {page.law}", 1) if page.law else KINDS[page.kind]
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


def _header(page: Page) -> str:
    return (
        f'<header id="about"><h1>{escape(page.name)}</h1><p class="small">{escape(page.made)}</p>'
        f"{_pairs(page.facts, 'facts')}</header>"
    )


def _verdict(page: Page) -> str:
    body = f'<div class="verdict">{paragraphs(page.verdict.sentences)}</div>'
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
        return _section("equity", "Equity on bars not trained on", paragraphs([why], "empty"))
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
    body = paragraphs([intro]) + switch + f'<ul class="legend">{keys}</ul>'
    body += '<div class="paths">' + "".join(path_figure(p, page.bar_seconds) for p in page.paths) + "</div>"
    return _section("equity", "Equity on bars not trained on", body)


def _starts_text(paths: Sequence[PathView]) -> str:
    """How often the accounts of a path begin."""
    counts = sorted({len(p.starts_s) for p in paths})
    return f"{counts[0]} to {counts[-1]} times a path" if len(counts) > 1 else f"{counts[0]} times on each path"


def _band(page: Page) -> list[str]:
    """The band, where there is one."""
    if page.band is None:
        return []
    intro = (
        f"{page.band.title}. The policy names a band of weights for each coin and bar. If the held weight is outside, "
        "an order moves it to the nearest edge; inside nothing is traded. The edges are those that the bar's orders "
        "aimed at. They were chosen a bar before, so the held weight misses an edge by what prices moved meanwhile."
    )
    return [_section("band", "The band", paragraphs([intro]) + band_charts(page.band))]


# -------------------------------------------------------------------------------------------------------------- figures
def _figures(page: Page) -> str:
    if not page.rows:
        return _section("figures", "Figures", paragraphs(["There is no best trial to show figures of."], "empty"))
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
    return _section("figures", "Figures of every split and path", paragraphs([intro]) + (
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
        return _section("splits", "Distribution over splits", paragraphs(["No trial has a scored split."], "empty"))
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
    return _section("splits", "Distribution over splits", paragraphs([text]) + drawn)


# -------------------------------------------------------------------------------------------------- settings and trials
def _importances(page: Page) -> str:
    body = paragraphs([page.importances_note]) if page.importances_note else ""
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
    body = body or paragraphs(["There is no best trial to show settings of."], "empty")
    return _section("settings", "Which settings mattered", body)


def _reading(page: Page) -> str:
    body = f"<h3>What was left out</h3>{_list(page.left_out)}<h3>Words</h3>{_pairs(GLOSSARY, 'words')}"
    if page.command:
        body += "<h3>How it was made</h3>"
        body += paragraphs(["The study's last command; repeated, it continues the study or ends at once."], "small")
        body += f"<pre>{escape(page.command)}</pre>"
    return _section("reading", "How to read it", body)


def _list(texts: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>"
