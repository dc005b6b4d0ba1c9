"""The page about a study: what was found, how sure that is, and how it was made. One HTML text, complete in itself.

Pure: plain values in, text out; `page.html.j2` is the page and `page.css` its style. No script, no font, no picture and
no address is loaded (the page says so to the browser, which then refuses any); charts are inline SVG. All text from a
study is escaped. An undefined figure reads "undefined", with the reason, and never 0.
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
NO_VARIATION = "the returns do not vary, or there are none"
NOT_FINITE = "there are no returns, or they are beyond what a number holds"
# Returns of a few days, compounded over a year, are fantasies: under a year none are shown, as the Global Investment
# Performance Standards ask for.
NOT_UNDER_A_YEAR = ("annual_return", "calmar")


@dataclass(frozen=True)
class Column:
    """A figure in the table: its title, how it is written, and why it may be undefined."""

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
    Column("sortino", "Sortino", "ratio", "no bar lost anything, or there are none"),
    Column("calmar", "Calmar", "ratio", "there was no drawdown"),
    Column("max_drawdown", "max drawdown", "percent", NOT_FINITE),
    Column("max_drawdown_bars", "longest drawdown", "bars", NOT_FINITE),
    Column("value_at_risk", "VaR 5 %, one bar", "fine percent", NOT_FINITE),
    Column("conditional_value_at_risk", "CVaR 5 %, one bar", "fine percent", NOT_FINITE),
    Column("turnover", "turnover", "times", "mean equity is 0"),
    Column("fees", "fees", "percent", "mean equity is 0"),
    Column("exposure", "exposure", "percent", "not kept"),
    Column("hit_rate", "hit rate", "percent", "no bar moved the account"),
    Column("trades", "trades", "count", "not kept"),
    Column("of_hindsight", "of hindsight", "fine percent", "a trader with hindsight would not have traded"),
    Column("break_even_cost", "break-even cost, a side", "bp", "it did not trade, or lost everything"),
)

Figures = Mapping[str, float | None]


@dataclass(frozen=True)
class FigureRow:
    """One line of the table of figures; None is undefined, an absent name was not kept."""

    name: str
    agent: Figures
    equal_weight: Figures
    days: float = 0.0  # that it covers


@dataclass(frozen=True)
class Verdict:
    """Sentences, and the numbers behind them: (name, number, what it means)."""

    sentences: tuple[str, ...]
    numbers: tuple[tuple[str, str, str], ...] = ()


@dataclass(frozen=True)
class Page:
    """Everything on the page."""

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
    band: BandView | None = None  # of a band policy
    law: str = ""  # of a sample market that was made for a demonstration: "planted signal", "no signal"


def render(page: Page) -> str:
    """The page as HTML."""
    return template().render(vars(page))


def environment(*packages: str) -> Environment:
    """What pages are rendered in: their templates and style lie in these packages, the first that has one."""
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
    """The page's template with what it calls."""
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
    """Text whose numbers stay on one line with their percent sign."""
    is_text = isinstance(value, str) and not isinstance(value, Markup)
    return value.replace(" %", "\N{NO-BREAK SPACE}%") if is_text else value


def written(value: float, form: str, bar_seconds: int = 0) -> str:
    """A number as text; minus signs are real ones."""
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
    said = f"{path.title}: equity, {scale} scale, and drawdown"
    return inline_svg(said, 4.0, lambda figure: draw_path(figure, path, scale))


def _splits_svg(trials: tuple[TrialView, ...], best: int | None) -> Markup:
    return inline_svg("excess Sharpe of every split", 2.8, lambda figure: draw_splits(figure.subplots(), trials, best))


def _values_svg(trials: tuple[TrialView, ...]) -> Markup:
    return inline_svg("value of every trial", 2.6, lambda figure: draw_values(figure.subplots(), trials))


def _cost_svg(trials: list[TrialView], best: int | None, key: str) -> Markup:
    return inline_svg(f"value by {key}", 2.6, lambda figure: draw_cost(figure.subplots(), trials, best, key))
