"""The page by itself: plain values in, one harmless and complete HTML file out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import is_dataclass, replace
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure

from train.records.account import Metrics
from train.report.charts import name_ends, thinned
from train.report.page import FigureRow, Page, Verdict, render, template
from train.report.paths import PathView, RandomOrders, drawdown
from train.report.trials import TrialView
from train.validation.metrics import measure

SECTIONS = ["about", "verdict", "equity", "figures", "splits", "settings", "trials", "reading"]
EVIL = """<script>alert("1")</script><img src=x onerror='a()'> & "quoted" 'single'"""
EMPTY = Page("s", "SYNTHETIC", (), Verdict(("No.",)), "Not scored yet.", None, ())


def elements(html: str) -> list[ElementTree.Element]:
    """Everything on a page, which is well-formed XML as well."""
    return list(ElementTree.fromstring(html).iter())


def ids(html: str) -> list[str]:
    return [e.get("id") for e in elements(html) if e.tag in ("header", "section") and e.get("id")]


def path_view(title: str = "Path 1 of 1", ticker: str = "BTC") -> PathView:
    agent, other = np.array([1.0, 1.2, 0.9, 1.1]), np.array([1.0, 1.1, 1.0, 0.8])
    time_s = np.arange(4) * 300 + 1_700_000_000
    spread = np.array([0.8, 0.9, 1.0, 1.1, 1.2])[:, None] * np.ones(4)
    return PathView(
        title=title, origin="splits 0", time_s=time_s, starts_s=time_s[:1], agent=agent, equal_weight=other,
        agent_figures=measure([agent], 1000.0), equal_weight_figures=measure([other], 1000.0),
        coins={ticker: other * 1.1}, coin_figures={ticker: measure([other * 1.1], 1000.0)},
        random=RandomOrders(spread, np.array([0.5, np.nan]), 0.3, 0.9, 0.75, 0.5),
    )  # fmt: skip


def page(**changes) -> Page:
    trials = (
        TrialView(0, "complete", -0.5, {0: -0.5, 1: 0.5}, 10.0, 0.01),
        TrialView(1, "complete", 0.25, {0: 1.5, 1: -0.5}, 20.0, 0.02),
        TrialView(2, "pruned", None, {0: -3.0}, None, None, "too little exposure"),
        TrialView(3, "failed", None, {}, None, None, "out of memory"),
        TrialView(4, "running", None, {}, None, None),
    )
    full = Page(
        name="study", kind="REAL", facts=(("coins", "BTC, ETH"),), verdict=Verdict(("Luck.",), (("PBO", "5 %", "x"),)),
        holdout="Not scored yet.", best=1, trials=trials, paths=(path_view(),), paths_note="note",
        rows=(FigureRow("split 0", {"sharpe": 0.884284430412, "sortino": None}, {"sharpe": 1.45}),),
        importances=(("gamma", 0.75), ("width", 0.25)), settings=(("gamma", "0.9"),), left_out=("5m: 100 bars",),
        command="python x.py", made="now", bar_seconds=300,
    )  # fmt: skip
    return replace(full, **changes)


def test_the_sections_stand_in_the_order_a_sceptic_reads_them():
    assert ids(render(page())) == SECTIONS


@pytest.mark.parametrize(
    ("kind", "word"), [("REAL", "REAL DATA"), ("SYNTHETIC", "SYNTHETIC DATA"), ("UNKNOWN", "UNKNOWN")]
)
def test_the_banner_stands_first_and_last(kind, word):
    html = render(page(kind=kind))
    body = html.partition("<body>")[2]
    assert body.lstrip().startswith('<header><p class="banner')
    assert body.count('class="banner') == 2
    assert word in body


def test_nothing_is_loaded_and_nothing_can_run():
    html = render(page())
    seen = elements(html)
    tags, attributes = {e.tag for e in seen}, {name for e in seen for name in e.attrib}
    assert tags.isdisjoint({"script", "link", "img", "iframe", "object", "embed", "video", "audio", "base", "form"})
    assert attributes.isdisjoint({"src", "srcset", "action", "xlink:href", "poster", "data"})
    assert not any(name.startswith("on") for name in attributes)
    assert all(e.get("href", "#").startswith("#") for e in seen)
    assert not re.search(r"https?:|url\((?!#)|@import|//[a-z]", html)
    (policy,) = [e.get("content") for e in seen if e.get("http-equiv") == "Content-Security-Policy"]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


def spoilt(value):
    """The same with every text replaced."""
    if isinstance(value, str):
        return EVIL
    if isinstance(value, tuple):
        return tuple(map(spoilt, value))
    if isinstance(value, Mapping):
        return {spoilt(name): spoilt(v) for name, v in value.items()}
    if is_dataclass(value) and not isinstance(value, Metrics):
        return type(value)(**{name: v if name == "state" else spoilt(v) for name, v in vars(value).items()})
    return value


def test_every_text_of_a_study_is_inert():
    usual = page(importances_note="x", paths_note="x")
    html = render(replace(spoilt(usual), kind="REAL"))
    seen = elements(html)
    assert {e.tag for e in seen} <= {e.tag for e in elements(render(usual))}
    assert not any(name.startswith("on") for e in seen for name in e.attrib)
    assert "<script" not in html
    assert "".join(seen[0].itertext()).count("<script>") >= 18  # shown as what it is


def test_a_number_is_kept_whole_and_an_undefined_one_never_looks_like_0():
    figure = template().make_module(vars(replace(EMPTY, bar_seconds=300))).figure
    assert figure(0.884284430412, "ratio", "x") == '<data value="0.884284430412">0.88</data>'
    assert figure(-0.25, "percent", "x") == '<data value="-0.25">\u221225.0\u00a0%</data>'
    assert figure(11426.0, "bars", "x") == '<data value="11426.0" title="11,426 bars">39.7 d</data>'
    for missing in (None, float("nan"), float("inf")):
        html = figure(missing, "ratio", 'because "so"')
        assert html == '<span class="undefined" title="because &#34;so&#34;">undefined</span>'


def test_a_figure_that_was_not_kept_is_no_undefined_one():
    html = render(page())
    cells = re.findall(r'<td data-title="Sortino">(.*?)</td>', html)
    assert len(cells) == 1
    assert "undefined" in cells[0]
    assert "not recorded" in cells[0]


def test_a_study_without_a_completed_trial_says_so_in_every_section():
    html = render(EMPTY)
    assert ids(html) == SECTIONS
    assert html.count('class="empty"') == 5
    assert "<svg" not in html
    failed = replace(EMPTY, trials=(TrialView(0, "failed", None, {}, None, None, "disk full"),))
    assert "Trial 0 failed: disk full" in render(failed)


def test_paths_are_drawn_on_both_scales_and_only_what_is_there_is_in_the_legend():
    html = render(page())
    assert html.count('class="on-linear"') == html.count('class="on-log"') == 1
    assert "buy and hold of each coin" in html
    bare = replace(path_view(), coins={}, coin_figures={}, random=None)
    html = render(page(paths=(bare,)))
    assert "buy and hold of each coin" not in html
    assert "are not shown" in html


def test_a_ruined_account_can_be_drawn():
    ruined = replace(path_view(), agent=np.array([1.0, 0.5, 0.0, 0.0]))
    html = render(page(paths=(ruined,)))
    assert "nan" not in html.partition("</style>")[2]


def test_drawdown_by_hand():
    assert drawdown(np.array([1.0, 2.0, 1.0, 3.0])).tolist() == [0.0, 0.0, -50.0, 0.0]


# --------------------------------------------------------------------------------------------------------------- charts
def test_every_chart_is_named_and_the_same_page_has_the_same_bytes():
    html = render(page())
    charts = [e for e in elements(html) if e.tag == "svg"]
    assert [e.get("role") for e in charts] == ["img"] * 6
    assert [e.get("aria-label") for e in charts] == [
        "Path 1 of 1: equity, linear scale, and drawdown; the table below has the figures",
        "Path 1 of 1: equity, log scale, and drawdown; the table below has the figures",
        "annual excess Sharpe ratio of every trial on every split; trial 1, the best: +1.50, \N{MINUS SIGN}0.50",
        "value of every trial: 2 values from \N{MINUS SIGN}0.50 to +0.25",
        "value by turnover, one dot per trial", "value by fees, one dot per trial",
    ]  # fmt: skip
    assert html == render(page())
    names = [e.get("id") for chart in charts for e in chart.iter() if e.get("id")]
    assert len(set(names)) == len(names)  # a chart that is hidden clips no other one


def test_a_dot_answers_a_pointer_with_its_numbers_until_there_are_too_many():
    html = render(page())
    for text in ("trial 0, split 1: +0.50", "best trial 1, split 0: +1.50", "trial 0: -0.500", "trial 1: +0.250"):
        assert f"<title>{text}</title>" in html
    many = tuple(TrialView(n, "complete", 0.1, {0: 0.1}, 1.0, 0.1) for n in range(500))
    assert "<title>trial 5" not in render(page(trials=many))


def test_thousands_of_bars_and_hundreds_of_trials_make_no_large_page():
    n = 50_000
    curve, time_s = np.cumprod(1.0 + np.random.default_rng(0).normal(0.0, 1e-3, n)), 1_700_000_000 + 300 * np.arange(n)
    spread = np.array([0.8, 0.9, 1.0, 1.1, 1.2])[:, None] * curve
    random = replace(path_view().random, quantiles=spread)
    path = replace(path_view(), time_s=time_s, agent=curve, equal_weight=curve, coins={"BTC": curve}, random=random)
    trials = tuple(TrialView(i, "complete", i * 0.1, dict.fromkeys(range(6), i * 0.1), 1.0, 0.1) for i in range(900))
    assert len(render(page(paths=(path,), trials=trials))) < 500_000


def test_thinning_keeps_the_ends_and_the_extremes():
    y = np.sin(np.arange(100_000.0))
    y[77_777], y[5] = 9.0, -9.0
    x, kept = thinned(np.arange(100_000.0), y, 200)
    assert len(kept) <= 202
    assert (x[0], x[-1], kept.max(), kept.min()) == (0.0, 99_999.0, 9.0, -9.0)


@pytest.mark.parametrize("values", [[0.5] * 7, [1.0] * 7, [0.0] * 7, [0.0, 0.4, 0.41, 0.42, 0.43, 0.9, 1.0]])
def test_names_beside_the_ends_do_not_cover_each_other(values):
    axes = Figure().subplots()
    axes.set_ylim(0.0, 1.0)
    name_ends(axes, [(f"C{i}", value, "black") for i, value in enumerate(values)], 0.1)
    places = [text.xy[1] for text in axes.texts]
    assert np.diff(places).min() >= 0.1 - 1e-9
    assert 0.0 <= min(places) <= max(places) <= 1.0 + 1e-9
