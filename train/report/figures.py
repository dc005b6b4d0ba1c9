"""Figures of the report as text: which there are, how each is written, and why it may be undefined."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape as escape_html

from train.report.charts import MINUS


def escape(text: str) -> str:
    """Text as HTML; a number stays on one line with its percent sign."""
    return escape_html(text).replace(" %", "\N{NO-BREAK SPACE}%")


@dataclass(frozen=True)
class Column:
    """A figure in the table: its title, how it is written, and why it may be undefined."""

    key: str
    title: str
    form: str
    why_undefined: str


# Returns of a few days, compounded over a year, are fantasies: under a year none are shown, as the Global Investment
# Performance Standards ask for.
NOT_UNDER_A_YEAR = ("annual_return", "calmar")
NO_VARIATION = "the returns do not vary, or there are none"
NOT_FINITE = "there are no returns, or they are beyond what a number holds"
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


def figure(value: float | None, form: str, why_undefined: str, bar_seconds: int = 0) -> str:
    """A number as HTML, whole in its `data` value; "undefined" with the reason where there is none."""
    if value is None or not math.isfinite(value):
        return f'<span class="undefined" title="{escape(why_undefined)}">undefined</span>'
    text, title = written(value, form, bar_seconds), ""
    if form == "bars":
        title = f' title="{value:,.0f} bars"'
    return f'<data value="{value!r}"{title}>{escape(text)}</data>'


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


def paragraphs(texts: Sequence[str], kind: str = "") -> str:
    """Each text as a paragraph, of the class `kind`."""
    return "".join(f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>" for text in texts)
