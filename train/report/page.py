"""Report page of a study as one self-contained HTML document.

Rendering is pure: plain values in, text out. `page.html.j2` is the template and `page.css` the style sheet. The page
loads no scripts, fonts, images or URLs, and its security policy makes the browser block them. Charts are inline SVG.
All text from a study is escaped. An undefined metric is shown as "undefined" with the reason, never as 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from train.findings.yardsticks import Yardstick
from train.report.band_picture import BandView
from train.report.charts import draw_cost, draw_path, draw_splits, draw_values, inline_svg
from train.report.paths import PathView
from train.report.trials import TrialView

MINUS = "\N{MINUS SIGN}"
NO_VARIATION = "the returns are constant or missing"
NOT_FINITE = "the returns are missing or not finite"
# The Global Investment Performance Standards do not allow returns over less than a year to be annualized.
NOT_UNDER_A_YEAR = ("annual_return", "calmar")


@dataclass(frozen=True)
class Column:
    """Column of the metrics table: its title, its number format, and why a value in it may be undefined."""

    key: str
    title: str
    form: str
    why_undefined: str


COLUMNS = (
    Column("sharpe", "Sharpe", "ratio", NO_VARIATION),
    Column("excess_sharpe", "excess Sharpe", "signed", "one of the two Sharpe ratios is undefined"),
    Column("total_return", "total return", "percent", NOT_FINITE),
    Column("annual_return", "annual return", "percent", NOT_FINITE),
    Column("volatility", "volatility", "percent", NOT_FINITE),
    Column("sortino", "Sortino", "ratio", "no bar had a loss, or there are no bars"),
    Column("calmar", "Calmar", "ratio", "there was no drawdown"),
    Column("max_drawdown", "max drawdown", "percent", NOT_FINITE),
    Column("max_drawdown_bars", "longest drawdown", "bars", NOT_FINITE),
    Column("value_at_risk", "VaR 5 %, one bar", "fine percent", NOT_FINITE),
    Column("conditional_value_at_risk", "CVaR 5 %, one bar", "fine percent", NOT_FINITE),
    Column("turnover", "turnover", "times", "mean equity is 0"),
    Column("fees", "fees", "percent", "mean equity is 0"),
    Column("exposure", "exposure", "percent", "not recorded"),
    Column("hit_rate", "hit rate", "percent", "equity did not change on any bar"),
    Column("trades", "trades", "count", "not recorded"),
    Column("of_hindsight", "of hindsight", "fine percent", "the hindsight optimum does not trade"),
    Column("break_even_cost", "break-even cost, per side", "bp", "the account did not trade or lost everything"),
)

Figures = Mapping[str, float | None]


@dataclass(frozen=True)
class FigureRow:
    """Row of the metrics table. None means undefined, and a missing name means not recorded."""

    name: str
    agent: Figures
    equal_weight: Figures
    days: float = 0.0  # days covered


@dataclass(frozen=True)
class Verdict:
    """Sentences of the verdict and the numbers behind it as (name, number, meaning)."""

    sentences: tuple[str, ...]
    numbers: tuple[tuple[str, str, str], ...] = ()


@dataclass(frozen=True)
class Page:
    """Contents of the report page."""

    name: str
    kind: str  # REAL, SYNTHETIC or UNKNOWN
    facts: tuple[tuple[str, str], ...]
    verdict: Verdict
    holdout: str
    best: int | None
    trials: tuple[TrialView, ...]
    yardsticks: tuple[Yardstick, ...] = ()
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
    band: BandView | None = None  # None unless the best trial has band policies
    law: str = ""  # law of a synthetic sample market: "planted signal" or "no signal"


def render(page: Page) -> str:
    """Return the page as HTML."""
    return template().render(vars(page))


def environment(*packages: str) -> Environment:
    """Return a Jinja environment that finds templates and styles in the first of these packages that has them."""
    made = Environment(
        loader=ChoiceLoader([PackageLoader(package, "") for package in packages]),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_on_one_line,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters["written"] = written
    made.tests["known"] = lambda value: value is not None and math.isfinite(value)
    return made


@cache
def template() -> Template:
    """Return the template of the page with the functions that it calls."""
    made = environment("train.report")
    made.globals.update(
        columns=COLUMNS,
        not_under_a_year=NOT_UNDER_A_YEAR,
        path_svg=_path_svg,
        splits_svg=_splits_svg,
        values_svg=_values_svg,
        cost_svg=_cost_svg,
    )
    return made.get_template("page.html.j2")


def _on_one_line(value: Any) -> Any:
    """Return the text with no-break spaces before percent signs."""
    is_text = isinstance(value, str) and not isinstance(value, Markup)
    return value.replace(" %", "\N{NO-BREAK SPACE}%") if is_text else value


def written(value: float, form: str, bar_seconds: int = 0) -> str:
    """Return a number as text, with typographic minus signs."""
    duration = f"{value * bar_seconds / 86_400:,.1f} d" if bar_seconds else f"{value:,.0f} bars"
    text = {
        "ratio": f"{value:,.2f}",
        "signed": f"{value:+,.2f}",
        "percent": f"{value * 100:,.1f} %",
        "fine percent": f"{value * 100:,.2f} %",
        "times": f"{value:,.1f} \N{MULTIPLICATION SIGN}",
        "bp": f"{value * 1e4:,.1f} bp",
        "count": f"{value:,.0f}",
        "bars": duration,
    }[form]
    return text.replace("-", MINUS)


def _path_svg(path: PathView, scale: str) -> Markup:
    said = f"{path.title}: equity, {scale} scale, and drawdown; the table below has the figures"
    return inline_svg(said, 4.2, lambda figure: draw_path(figure, path, scale))


def _splits_svg(trials: tuple[TrialView, ...], best: int | None) -> Markup:
    figures = [t.splits.values() for t in trials if t.number == best]
    own = f"; trial {best}, the best: {', '.join(written(v, 'signed') for v in figures[0])}" if figures else ""
    said = f"annual excess Sharpe ratio of every trial on every split{own}"
    return inline_svg(said, 3.0, lambda figure: draw_splits(figure.subplots(), trials, best))


def _values_svg(trials: tuple[TrialView, ...]) -> Markup:
    values = [t.value for t in trials if t.value is not None]
    said = f"value of every trial: {len(values)} values from {written(min(values), 'signed')} to "
    said += written(max(values), "signed")
    return inline_svg(said, 2.8, lambda figure: draw_values(figure.subplots(), trials))


def _cost_svg(trials: list[TrialView], best: int | None, key: str) -> Markup:
    return inline_svg(
        f"value by {key}, one dot per trial", 2.8, lambda figure: draw_cost(figure.subplots(), trials, best, key)
    )
