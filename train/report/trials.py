"""The page's section on a study's trials: their values, what trading cost them, and why some cannot be the best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from train.report.charts import Dots, Line, chart, count_axis, number_axis
from train.report.figures import NO_VARIATION, NOT_FINITE, escape, figure

if TYPE_CHECKING:
    from train.report.page import Page, TrialView

MOST_REASONS = 10  # listed
MANY_DOTS = 400  # from here on they are small, and do not answer a pointer: the page would grow


def _paragraph(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def trials_body(page: Page) -> str:
    """The section's HTML below its title."""
    if not page.trials:
        return _paragraph("There is no trial yet.", "empty")
    ended = {s: [t for t in page.trials if t.state == s] for s in ("complete", "pruned", "failed")}
    body = _values_chart(page, ended) if ended["complete"] else _paragraph("No trial has a value.", "empty")
    costs = [t for t in ended["complete"] if t.turnover is not None and t.fees is not None and t.value is not None]
    if costs:
        y = number_axis([np.array([t.value for t in costs], float)])
        body += '<h3>What trading cost</h3><div class="two">'
        for key, title in (("turnover", "turnover, times equity"), ("fees", "fees, % of equity")):
            scale = 100.0 if key == "fees" else 1.0
            xs = np.array([getattr(t, key) * scale for t in costs])
            marks: list[Any] = [Dots(dot(costs), xs, np.array([t.value for t in costs], float), _named(costs))]
            best = [i for i, t in enumerate(costs) if t.number == page.best]
            marks += [Dots("best", xs[i : i + 1], np.array([costs[i].value], float), ["best"]) for i in best]
            drawn = chart(marks, number_axis([xs]), y, height_px=200, said=f"value by {title}",
                          y_title=f"value, by {title} (mean of splits)")  # fmt: skip
            body += f"<div>{drawn}</div>"
        body += "</div>"
    body += _yardsticks(page)
    reasons = [f"Trial {t.number} {t.state}: {t.reason}" for t in page.trials if t.state == "failed" and t.reason]
    reasons += [f"Trial {t.number} pruned: {t.reason}" for t in page.trials if t.state == "pruned" and t.reason]
    body += _reasons("Trials without a value", reasons)
    ineligible = [f"Trial {t.number}: {t.reason}" for t in ended["complete"] if t.reason]
    body += _reasons("Trials that are not eligible to be best", ineligible)
    return body


def _yardsticks(page: Page) -> str:
    """What needs no learning, beside the trials; empty where it was not computed."""
    if not page.yardsticks:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td class="number">{figure(mean, "percent", NOT_FINITE)}</td>'
        f'<td class="number">{figure(sharpe, "ratio", NO_VARIATION)}</td><td class="number">{escape(n)}</td></tr>'
        for name, mean, sharpe, n in page.yardsticks
    )
    text = (
        "On the same test bars, at the same fees; equal weight pays no slippage. The constant band holds every coin "
        "between two fixed weights. It was chosen on the fit and validation bars of each split."
    )
    titles = ("mean return", "mean Sharpe", "completed trials that earned more")
    head = "<tr><td></td>" + "".join(f'<th scope="col">{title}</th>' for title in titles) + "</tr>"
    return f'<h3>What needs no learning</h3>{_paragraph(text)}<table class="plain">{head}{rows}</table>'


def _reasons(title: str, reasons: Sequence[str]) -> str:
    if not reasons:
        return ""
    items = "".join(f"<li>{escape(r)}</li>" for r in reasons[:MOST_REASONS])
    more = f"<li>and {len(reasons) - MOST_REASONS} more</li>" if len(reasons) > MOST_REASONS else ""
    return f'<h3>{escape(title)}</h3><ul class="small">{items}{more}</ul>'


def dot(dots: Sequence[Any]) -> str:
    """The class of so many dots."""
    return "dot" if len(dots) < MANY_DOTS else "dot small"


def _named(trials: Sequence[TrialView]) -> list[str]:
    return [f"trial {t.number}: {t.value:+.3f}" for t in trials] if len(trials) < MANY_DOTS else []


def _values_chart(page: Page, ended: Mapping[str, Sequence[TrialView]]) -> str:
    done = [t for t in ended["complete"] if t.value is not None and math.isfinite(t.value)]
    values = np.array([t.value for t in done], float)
    numbers = np.array([t.number for t in done], float)
    has_rug = bool(ended["pruned"] or ended["failed"])
    floor = values.min() - 0.15 * (values.max() - values.min() or 1.0) * has_rug
    x, y = count_axis(0, max(t.number for t in page.trials)), number_axis([values], include=(floor,))
    best = np.append(np.maximum.accumulate(values), values.max())
    marks: list[Any] = [Line("agent", np.append(numbers, x.high), best, is_stepped=True)]
    marks.append(Dots(dot(done), numbers, values, _named(done)))
    for kind in ("pruned", "failed"):
        at = np.array([t.number for t in ended[kind]], float)
        level = y.low + (y.high - y.low) * (0.06 if kind == "pruned" else 0.015)
        marks.append(Dots(kind, at, np.full(len(at), level)))
    keys = "".join(
        f'<li class="{kind}"><i></i>{text}</li>'
        for kind, text in (
            ("dot", f"{len(ended['complete'])} completed"),
            ("agent", "best so far"),
            ("pruned", f"{len(ended['pruned'])} pruned (no value; at the bottom)"),
            ("failed", f"{len(ended['failed'])} failed (no value; at the bottom)"),
        )
        if kind == "agent" or not text.startswith("0 ")
    )
    text = "Value of a trial: mean over its splits of the excess Sharpe, minus 0.1 of its standard deviation over them."
    return _paragraph(text) + f'<ul class="legend">{keys}</ul>' + (
        chart(marks, x, y, height_px=220, said="value of every trial", y_title="value, by trial")
    )  # fmt: skip
