"""The launcher's demonstration at small size: skill with the planted signal, none without it."""

from dataclasses import replace

import pytest

from benchmarks import demonstration
from benchmarks.demonstration import QUICK_MARKET, QUICK_STUDY, Ended, checks, demonstrate, words_of
from market.planted import Law
from scripts import readme_table

LARGEST_CPU_S = 2 * 90.0  # of a small one: 90 s on the two cores of a CI machine
SKILL = Ended(Law.PLANTED, "Evidence of skill: it is.", "passed", {"share": "70 %"}, 12, 200.0, 350.0)
NO_SKILL = replace(SKILL, law=Law.NO_SIGNAL, verdict="Not evidence of skill: it is not.", figures={})


@pytest.mark.slow
def test_with_a_planted_signal_the_small_demonstration_ends_in_skill(tmp_path):
    ended = demonstrate(Law.PLANTED, tmp_path, market=QUICK_MARKET, study=QUICK_STUDY)
    assert ended.verdict.startswith("Evidence of skill: ")
    assert ended.n_compared >= 10
    assert 25 < int(ended.figures["share"].removesuffix(" %")) <= 100
    assert float(ended.figures["deflated"].removesuffix(" %")) >= 95.0
    assert "above what chance explains, and so is the Sharpe ratio of alpha returns" in ended.holdout
    assert ended.cpu_s < LARGEST_CPU_S
    (page,) = tmp_path.glob("results/*/report.html")
    assert "share of attainable growth captured" in page.read_text()
    log = (tmp_path / "log.txt").read_text()
    assert "verdict: Evidence of skill" in log
    assert "SYNTHETIC, planted signal: a generated market" in log


@pytest.mark.slow
def test_without_a_signal_the_small_demonstration_ends_in_no_skill(tmp_path):
    ended = demonstrate(Law.NO_SIGNAL, tmp_path, market=QUICK_MARKET, study=QUICK_STUDY)
    assert ended.verdict.startswith("Not evidence of skill")
    assert "share" not in ended.figures
    assert ended.cpu_s < LARGEST_CPU_S
    assert "SYNTHETIC, no signal: a generated market" in (tmp_path / "log.txt").read_text()


def test_the_flags_are_the_launchers():
    flags = words_of(demonstration.LAUNCHER, "DEMONSTRATION")
    assert flags[:2] == ["--n-trials", "12"]
    assert flags[-2:] == ["--pruner", "none"]
    assert words_of(demonstration.DATA_SCRIPT, "SAMPLE_TICKERS") == ["BTC", "ETH", "LTC"]
    with pytest.raises(ValueError, match="does not set NOTHING"):
        words_of(demonstration.LAUNCHER, "NOTHING")


@pytest.mark.parametrize(
    ("with_signal", "without", "missed"),
    [
        (SKILL, NO_SKILL, set()),
        (NO_SKILL, NO_SKILL, {"evidence of skill (planted signal)"}),
        (SKILL, SKILL, {"evidence of skill (no signal)"}),
        (replace(SKILL, n_compared=9), NO_SKILL, {"comparable trials (planted signal)"}),
        (replace(SKILL, wall_s=601.0), NO_SKILL, {"seconds (planted signal)"}),
    ],
)
def test_each_promise_of_the_demonstration_is_checked(with_signal, without, missed):
    assert {check["what"] for check in checks(with_signal, without) if not check["met"]} == missed


def test_the_result_file_is_what_the_page_shows(tmp_path, monkeypatch):
    for name in demonstration.measuring.THREAD_VARIABLES:
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr(demonstration, "run_both", lambda args, scratch: [SKILL, NO_SKILL])
    assert readme_table.own_block("demonstration", tmp_path) == ""
    assert demonstration.main(["--out", str(tmp_path / "demonstration.json")]) == 0
    block = readme_table.own_block("demonstration", tmp_path)
    assert "| SYNTHETIC, planted signal | Evidence of skill: it is. | 70 % |" in block
    assert "| SYNTHETIC, no signal | Not evidence of skill: it is not. |" in block
    assert "- evidence of skill (no signal): 0 (target <= 0, met)" in block


def test_a_script_that_fails_is_an_error_with_its_last_lines(tmp_path):
    with pytest.raises(
        RuntimeError, match=r"failed with exit code 2: .*--tickers BTC BTC .*\n.*BTC given more than once"
    ):
        demonstration._run([demonstration.SAMPLE, "--tickers", "BTC", "BTC", "--out", tmp_path / "5m"], tmp_path)
