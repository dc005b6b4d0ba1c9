"""Style and glossary of the report: system fonts, dark on white, colours that colour-blind readers tell apart.

The colours are of Okabe and Ito; whatever a colour says is also said by a dash, a width or a word.
"""

from __future__ import annotations

GLOSSARY: tuple[tuple[str, str], ...] = (
    ("Sharpe ratio", "Mean return over the standard deviation of returns, per year (365 days), no risk-free rate."),
    ("excess Sharpe", "The agent's Sharpe ratio minus that of equal weight on the same bars."),
    ("equal weight", "The same amount of every coin, bought with fees at a block's first bar and again at the first "
     "bar after each gap in the data, and held until then. Those fees are a drag that buying once would not have."),
    ("beta, lead", "Beta is how much of equal weight's returns an account's follow (least squares). The lead is what "
     "is left: returns less beta times equal weight's. Holding less of a falling market, or more of a rising one, is "
     "no lead. Its Sharpe ratio is the appraisal ratio."),
    ("Sortino", "Like Sharpe, but only losses count as risk."),
    ("Calmar", "Annual return over maximum drawdown."),
    ("drawdown", "Loss from the highest point so far. Its length counts until the old high is reached again."),
    ("VaR 5 %", "The return of one bar that 5 % of the bars are below. CVaR: the mean of the bars below it."),
    ("turnover", "Everything bought and sold, over mean equity: 2 means that the account was bought and sold once."),
    ("fees", "Fees paid, over mean equity. Slippage comes on top and is in the returns."),
    ("exposure", "Mean share of the account that is in coins and not in cash."),
    ("of hindsight", "The agent's log growth as a share of what a trader would have earned who knew every later price "
     "and paid the same costs, without a cap, a reserve or a smallest order. An upper bound for every policy."),
    ("break-even cost", "Fee and slippage of one side of a trade at which the account would have earned what equal "
     "weight did, its orders unchanged. An account that hardly trades has a very high or very low one."),
    ("hit rate", "Share of bars with a gain among the bars on which the account moved."),
    (
        "deflated Sharpe",
        "One minus a p-value: how often the best of as many trials, none with a true Sharpe ratio above 0, would show "
        "less than this one by luck (Bailey and Lopez de Prado 2014). It is not the probability of skill.",
    ),
    (
        "PBO",
        "Probability of backtest overfitting: how often the trial that is best on one half of the bars is in the lower "
        "half of the trials on the other (Bailey, Borwein, Lopez de Prado and Zhu 2015).",
    ),
    (
        "minimum track record",
        "How long the record must be before its Sharpe ratio is above 0 at a p-value of 5 %, had it been the only one "
        "tried (2012).",
    ),
    ("split, block, path", "A split trains on some of the data and tests on blocks of the rest. A path joins tested "
     "blocks of several splits so that every tested bar is in it once."),
    ("purge, embargo", "Bars left out on both sides of a test block, and after it, so that no test bar is known in "
     "training through overlapping windows."),
    ("hold-out", "The last bars of the data, seen by no trial and scored once, for the winner."),
)  # fmt: skip

STYLE = """
:root{--ink:#1b1b1b;--soft:#565656;--line:#d9d9d9;--agent:#0072b2;--equal:#c44e00;--random:#cc79a7;--coin:#8a8a8a}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:#fff;color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;
overflow-wrap:break-word}
main{max-width:1160px;margin:0 auto;padding:0 20px 24px}
h1{font-size:28px;line-height:1.2;margin:22px 0 4px;overflow-wrap:anywhere}
h2{font-size:21px;line-height:1.25;margin:40px 0 10px;padding-top:14px;border-top:2px solid var(--ink)}
h3{font-size:16px;margin:24px 0 6px}
p{margin:8px 0;max-width:78ch}
.small{font-size:13px;color:var(--soft)}
.banner{margin:0;padding:10px 20px;max-width:none;text-align:center;font-weight:700;font-size:17px;letter-spacing:.02em;
-webkit-print-color-adjust:exact;print-color-adjust:exact}
.banner.real{background:#004d73;color:#fff}
.banner.synthetic,.banner.unknown{background:#f0e442;color:#000;border-block:6px solid #000}
dl{margin:0}dd{margin:0}
.facts,.settings{display:grid;grid-template-columns:repeat(auto-fill,minmax(260px,1fr));gap:10px 24px;margin-top:14px}
.settings{grid-template-columns:repeat(auto-fill,minmax(210px,1fr));gap:2px 24px}
.settings div{display:flex;justify-content:space-between;gap:10px;border-bottom:1px solid var(--line)}
dt{color:var(--soft);font-size:13px}
.facts dd{overflow-wrap:anywhere}.facts .wide{grid-column:span 2}
.words div{display:grid;grid-template-columns:180px 1fr;gap:4px 16px;padding:4px 0}
.words dt{font-weight:600;color:var(--ink);font-size:14px}.words dd{max-width:78ch}
.verdict{border-left:5px solid var(--ink);padding:4px 16px;margin:12px 0;font-size:17px}
.verdict.holdout{border-color:var(--soft);font-size:15px}
.empty{color:var(--soft);font-style:italic}
.undefined{color:var(--soft);font-style:italic;border-bottom:1px dotted;cursor:help}
.none{color:var(--soft)}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
table.plain{width:100%;font-size:14px}
.plain th,.plain td{padding:4px 10px 4px 0;text-align:right;border-bottom:1px solid var(--line);font-weight:400}
.plain tr>:first-child{text-align:left}
.three td,.three th{vertical-align:top}
.three td:last-child{text-align:left;color:var(--soft);padding-left:14px;width:60%}
.three .number{font-weight:600;white-space:nowrap}
.ends{margin-top:10px}.ends tr:nth-child(2) th,.ends tr:nth-child(2) td{font-weight:700;color:var(--agent)}
.ends tr:nth-child(3) th,.ends tr:nth-child(3) td{color:var(--equal)}
.bars{max-width:720px}.bars .bar{width:60%;text-align:left}.bars i{display:block;height:12px;background:var(--agent);
-webkit-print-color-adjust:exact;print-color-adjust:exact}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:#f4f4f4;padding:10px 12px;font-size:13px}
ul{padding-left:20px}
/* figures: a table on a desk, a card for each row on a phone */
.figures{width:100%;font-size:12.5px;line-height:1.35}
.figures th,.figures td{padding:5px 4px;text-align:right;vertical-align:top;border-bottom:1px solid var(--line)}
.figures thead th{font-weight:600;color:var(--soft);vertical-align:bottom}
.figures tbody th{text-align:left;font-weight:600;white-space:nowrap}
.figures td span.agent,.figures td span.equal{display:block;white-space:nowrap}
.figures span.agent{color:var(--agent);font-weight:600}.figures span.equal{color:var(--equal)}
/* charts */
figure{margin:18px 0 30px;min-width:0}figcaption{margin-bottom:4px;color:var(--soft);font-size:14px}
figcaption b{color:var(--ink);font-size:16px;margin-right:8px}
.paths{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(500px,100%),1fr));gap:0 36px}
.two{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(420px,100%),1fr));gap:0 36px}
.chart{padding:0 62px 24px 50px;margin:6px 0}.chart.wide{padding-right:8px}
figure .chart.wide{padding-right:62px}
.ytitle{font-size:12px;color:var(--soft);margin:6px 0 6px -50px}
.area{position:relative;border-left:1px solid var(--soft);border-bottom:1px solid var(--soft)}
.area svg{position:absolute;inset:0;width:100%;height:100%;overflow:hidden}
.area span{position:absolute;font-size:12px;line-height:1;white-space:nowrap;color:var(--soft)}
.area .x{top:calc(100% + 6px);transform:translateX(-50%)}
.area .y{right:calc(100% + 6px);transform:translateY(50%)}
.area .end{left:calc(100% + 5px);transform:translateY(50%);font-size:11.5px}
.area .end.agent{color:var(--agent);font-weight:700}.area .end.equal{color:var(--equal);font-weight:600}
.area .end.cash{color:var(--ink)}
svg path{fill:none;vector-effect:non-scaling-stroke;stroke-linejoin:round}
path.grid{stroke:#ececec}path.seam{stroke:#c9c9c9;stroke-dasharray:1 3}
path.agent{stroke:var(--agent);stroke-width:2}path.equal{stroke:var(--equal);stroke-width:1.6;stroke-dasharray:6 3}
path.coin{stroke:var(--coin);stroke-width:.8}path.cash{stroke:var(--ink);stroke-dasharray:2 3}
path.zero{stroke:var(--ink)}path.random{fill:var(--random);fill-opacity:.25}
path.band{fill:#56b4e9;fill-opacity:.4}path.range{fill:var(--agent);fill-opacity:.35}
path.held{stroke:var(--agent);stroke-width:1.4}path.edge{stroke:var(--equal);stroke-dasharray:5 3}
path.middle{stroke:var(--random);stroke-width:1.2}
path.box{fill:#e4e4e4}path.median{stroke:var(--ink);stroke-width:2}
path.dot,path.best,path.pruned,path.failed{stroke-linecap:round}
path.dot{stroke:#6d6d6d;stroke-width:6;stroke-opacity:.65}path.small{stroke-width:3;stroke-opacity:.8}path.best{stroke:var(--agent);stroke-width:12}
path.pruned{stroke:#e69f00;stroke-width:5}path.failed{stroke:#000;stroke-width:6;stroke-linecap:square}
.legend{list-style:none;padding:0;margin:8px 0;display:flex;flex-wrap:wrap;gap:4px 18px;font-size:13px}
.legend li{display:flex;align-items:center;gap:6px}
.legend i{display:inline-block;width:22px;height:0;border-top:3px solid;-webkit-print-color-adjust:exact;
print-color-adjust:exact}
.legend .agent i{color:var(--agent)}.legend .equal i{color:var(--equal);border-top-style:dashed}
.legend .coin i{color:var(--coin);border-top-width:1px}.legend .cash i{border-top:2px dotted}
.legend .random i{height:12px;border:0;background:var(--random);opacity:.4}
.legend .held i{color:var(--agent)}.legend .edge i{color:var(--equal);border-top:2px dashed}
.legend .band i{height:12px;border:0;background:#56b4e9;opacity:.5}
.legend .dot i,.legend .pruned i,.legend .failed i{width:8px;height:8px;border:0;border-radius:4px;background:#6d6d6d}
.legend .pruned i{background:#e69f00}.legend .failed i{background:#000;border-radius:0}
input[name=scale]{margin:0 6px 0 0;accent-color:var(--agent)}input[name=scale]+label{margin-right:18px;font-size:14px}
.on-log{display:none}#log:checked~.paths .on-log{display:block}#log:checked~.paths .on-linear{display:none}
@media(max-width:1000px){
.figures thead{display:none}.figures,.figures tbody{display:block}
.figures tbody{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(320px,100%),1fr));gap:0 32px}
.figures tr{display:block;margin:0 0 22px;font-size:14px}
.figures tbody th{display:block;font-size:16px;border-bottom:2px solid var(--ink);padding:5px 0}
.figures td{display:grid;grid-template-columns:1.3fr 1fr 1fr;padding:3px 0}
.figures td::before{content:attr(data-title);text-align:left;color:var(--soft)}
.figures tbody th::after{content:"agent, equal weight";float:right;font-weight:400;font-size:12px;color:var(--soft);
line-height:24px}}
@media(max-width:600px){.facts .wide{grid-column:auto}
main{padding:0 14px 20px}h1{font-size:23px}h2{font-size:19px}.banner{font-size:15px;padding:9px 14px}
.verdict{font-size:16px;padding:2px 12px}.chart{padding:0 62px 24px 42px}.ytitle{margin-left:-42px}
figure .chart.wide{padding-right:62px}
.area .x.odd{display:none}.words div{grid-template-columns:1fr}.plain{font-size:13px}
.plain th,.plain td{padding-right:6px}.three tr{display:grid;grid-template-columns:1fr auto;border-bottom:1px solid
var(--line);padding:4px 0}.three th,.three td{border:0;padding:0}
.three td:last-child{grid-column:1/3;width:auto;padding:0}
.bars .bar{width:40%}}
@media print{body{font-size:11px}main{max-width:none;padding:0}section{break-inside:auto}figure,.figures tr,.chart{
break-inside:avoid}h2,h3{break-after:avoid}input[name=scale],input[name=scale]+label{display:none}
.undefined{border:0}.figures{font-size:8.5px}}
"""
