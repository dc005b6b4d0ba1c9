"""The report of a study: what is on the page is what is in the files, whatever state they are in."""

from __future__ import annotations

import json
import logging
import re
import shutil
from dataclasses import replace
from html import unescape
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from msgspec import UNSET
from optuna.trial import TrialState

from barwise.commands import write_report as write_report_command
from tests.support import fabricated_study as fabricated
from tests.support.fabricated_study import unsealed
from train import finish
from train.findings.holdout import score_text
from train.findings.returns import layout_of, mean_returns, read_returns
from train.records.account import Metrics
from train.records.errors import StudyError
from train.records.record_files import plain, write_json
from train.records.results import closes_file, read_closes, split_folder, study_folder, trial_folder
from train.records.stored import StudyFile
from train.report import collect as report_module
from train.report.collect import collect, report_ended_study, write_report
from train.report.curves import compounded, read_split
from train.report.page import COLUMNS, NOT_UNDER_A_YEAR
from train.report.verdict import holdout_text
from train.runner.worker import Ending
from train.study.folds import fold_data
from train.study.progress import check_text
from train.study.split import ATTAINABLE
from train.study.split_plan import SplitPlan


@pytest.fixture(scope="module")
def made(folded, tmp_path_factory):
    """A study of four completed trials, one pruned, one failed, one running."""
    study, folder = fabricated.new_study(tmp_path_factory.mktemp("results"), folded)
    for drift in (0.0, 3e-5, -3e-5, 1e-5):
        fabricated.add_complete(study, folder, folded, drift)
    fabricated.add_ended(study, TrialState.PRUNED, "mean exposure is under 1 %")
    fabricated.add_ended(study, TrialState.FAIL, "split 0: RuntimeError: <b>no memory</b>")
    fabricated.add_ended(study, TrialState.RUNNING, "")
    return study, folder


@pytest.fixture
def study_and_copy(made, tmp_path):
    """The same, its files free to be damaged."""
    shutil.copytree(made[1], tmp_path / "made_up")
    return made[0], tmp_path / "made_up"


def html_of(study, folder: Path) -> str:
    return write_report(study, folder).read_text()


@pytest.fixture(scope="module")
def written(made):
    """The page of that study."""
    return html_of(*made)


def section(html: str, name: str) -> str:
    return html.partition(f'id="{name}"')[2].partition("</section>")[0]


def table_row(html: str, name: str) -> dict[str, list[str]]:
    """Title -> what stands in a row of the table of figures, agent first."""
    row = re.search(rf'<th scope="row">{name}</th>(.*?)</tr>', section(html, "figures")).group(1)
    cells = re.findall(r'<td data-title="([^"]*)">(.*?)</td>', row)
    return {
        unescape(title).replace("\u00a0", " "): re.findall(r'<data value="([^"]*)"|>(undefined|\u2013)<', inner)
        for title, inner in cells
    }


def test_the_numbers_of_a_split_are_those_of_its_result_file(made, written):
    study, folder = made
    html, best = written, collect(study, folder).best
    for fold in range(6):
        written = json.loads((split_folder(folder, best, fold) / "result.json").read_text())
        row = table_row(html, f"split {fold}")
        assert float(row["excess Sharpe"][0][0]) == written["excess_sharpe"]
        for column in COLUMNS:
            if column.key == "excess_sharpe":
                continue
            agent, other = row[column.title]
            if column.key in ATTAINABLE:
                assert float(agent[0]) == written[column.key]
                assert other[1] == "\u2013"
                continue
            if column.key in NOT_UNDER_A_YEAR:  # a split is days long here
                assert agent[1] == other[1] == "\u2013"
                continue
            assert float(agent[0]) == written["agent"][column.key]
            if column.key in written["equal_weight"] and column.key != "exposure":
                assert float(other[0]) == written["equal_weight"][column.key]
            else:
                assert other[1] == "\u2013"


def test_every_figure_of_the_metrics_has_a_column_or_a_place_elsewhere():
    assert set(Metrics.__dataclass_fields__) - {c.key for c in COLUMNS} == {"bars"}


def test_a_path_takes_each_bar_once_and_compounds_its_blocks(made, folded):
    study, folder = made
    page = collect(study, folder)
    assert len(page.paths) == 3
    for path in page.paths:
        assert (np.diff(path.time_s) > 0).all()
        assert len(path.starts_s) == 4
        assert path.agent[0] == path.equal_weight[0] == 1.0
        assert path.agent[-1] == pytest.approx(1.0 + path.agent_figures.total_return)
        assert path.equal_weight[-1] == pytest.approx(1.0 + path.equal_weight_figures.total_return)
        assert list(path.coins) == list(folded.dataset.tickers)
        # the fabricated portfolio is equal weight on these closes
        assert path.equal_weight_figures.trades == 4 * 3
    first = read_split(folder, page.best, 0)
    block = first["equity"][first["segment"] == 0]
    assert page.paths[0].agent[: len(block)] == pytest.approx(block / block[0])


def test_random_orders_trade_no_more_than_the_policy(made):
    for path in collect(*made).paths:
        assert 0.9 < path.random.traded_share <= 1.0 + 1e-9
        assert 0.0 < path.random.exposure < 1.0
        assert (np.diff(path.random.quantiles, axis=0) >= 0.0).all()


@pytest.mark.parametrize(
    ("part", "texts"),
    [
        ("about", ["made_up", "BTC, ETH, LTC", "5m", "2024-01-01", "4 complete, 1 pruned, 1 failed, 1 running"]),
        ("about", ["0.250% and 0.250% of notional", "0.05% of every order", "alpaca", "study 7", "abc123"]),
        ("verdict", ["Luck alone would give the best of 5 trials", "With only 5 trials, these figures are too rough"]),
        ("verdict", ["PBO is undefined: it needs at least 10 completed trials; the study has 4."]),
        ("verdict", ["No bars were held out"]),
        ("equity", ["The trial was chosen by its results on these bars, so the curves flatter it"]),
        ("equity", ["(faint vertical lines): 4 times per path", "not corrected for that selection"]),
        ("equity", ["less concentrated than the agent"]),
        ("trials", ["&lt;b&gt;no memory&lt;/b&gt;"]),
        ("reading", ["In mode standard a policy also trains on bars later than its test fold", "Survivorship"]),
        ("reading", ["Earlier studies on the same bars were attempts as well", "after each gap in the data, and held"]),
    ],
)
def test_the_page_says_what_the_study_stands_on_and_what_flatters(written, part, texts):
    for text in texts:
        assert text in section(written, part), text


def test_the_page_begins_with_the_data_and_the_one_conclusion(made, written, folded):
    page = collect(*made)
    assert page.verdict.sentences[0].startswith("Not evidence of skill: the deflated Sharpe ratio of the alpha returns")
    assert len(re.findall("vidence of skill", written)) == 1
    assert "SYNTHETIC DATA" in written.partition("</header>")[0]
    assert folded.dataset.sha256 in section(written, "about")
    assert f"{folded.purge_bars} bars are purged" in section(written, "reading")
    numbers = {name: number for name, number, _ in page.verdict.numbers}
    assert numbers["Sharpe of the paths"] == f"{np.mean([p.agent_figures.sharpe for p in page.paths]):.2f}"


def test_returns_are_the_mean_over_the_splits_that_test_a_bar(made):
    _, folder = made
    splits = {i: read_split(folder, 0, i) for i in range(6)}
    layout = layout_of(splits)
    assert (layout.n_policies == 3).all()
    r = mean_returns(layout, {i: c["equity"] for i, c in splits.items()})
    bar = splits[0]["bar"][10]
    by_hand = []
    for c in splits.values():
        (rows,) = np.nonzero(c["bar"] == bar)
        by_hand += [c["equity"][row] / c["equity"][row - 1] - 1.0 for row in rows]
    place = layout.places[0][np.flatnonzero(layout.steps[0] == 10)[0]]
    assert len(by_hand) == 3
    assert r[place] == pytest.approx(np.mean(by_hand))


def test_one_trial_alone_has_no_pbo_and_no_importances(folded, tmp_path):
    study, folder = fabricated.new_study(tmp_path, folded)
    fabricated.add_complete(study, folder, folded)
    page = collect(study, folder)
    assert "PBO is undefined: it needs at least 10 completed trials; the study has 1." in page.verdict.sentences
    assert page.importances_note.startswith("Too few trials to tell which settings mattered: 1 trial completed")


def test_a_study_without_a_completed_trial_has_a_page(folded, tmp_path):
    study, folder = fabricated.new_study(tmp_path, folded)
    assert "No trial has started yet" in html_of(study, folder)
    fabricated.add_ended(study, TrialState.FAIL, "disk full")
    html = html_of(study, folder)
    assert "cannot be judged: no trial completed (1 failed)" in html
    assert "disk full" in html
    assert "<svg" not in html


def test_importances_with_enough_trials(folded, tmp_path, made):
    study, folder = fabricated.new_study(tmp_path, folded)
    outcomes = fabricated.write_trial(folder, folded, 0, 0, 0.0)
    for number in range(40):
        fabricated.add_result(study, outcomes, number, folded, folder)
    assert "have the same value" in collect(study, folder).importances_note
    for number in range(40, 80):
        luckier = [replace(o, agent=replace(o.agent, sharpe=o.agent.sharpe + number * 0.01)) for o in outcomes]
        fabricated.add_result(study, luckier, number, folded, folder)
    page = collect(study, folder)
    assert {name for name, _ in page.importances} == {"learning_rate", "gamma"}
    assert sum(share for _, share in page.importances) == pytest.approx(1.0)
    assert page.importances == collect(study, folder).importances


@pytest.mark.parametrize("name", ["settings.json", "result.json"])
def test_files_that_were_changed_are_not_shown(study_and_copy, name, caplog):
    study, folder = study_and_copy
    best = collect(study, folder).best
    path = (trial_folder if name == "settings.json" else lambda f, n: split_folder(f, n, 0))(folder, best) / name
    before = html_of(study, folder)
    content = json.loads(path.read_text())
    if name == "settings.json":
        content["env"]["fee_rate"] = content["env_resolved"]["fee_rate"] = 0.0
    else:
        content["agent"]["sharpe"] = 99.0
    write_json(path, content)
    verdict = collect(study, folder).verdict.sentences[0]
    assert f"{name} is not the file that trial {best} was scored with" in caplog.text
    if name == "settings.json":
        assert "cannot be judged" in verdict
    else:
        assert table_row(html_of(study, folder), "split 0") == table_row(before, "split 0")


def test_undefined_figures_read_undefined(folded, tmp_path):
    study, folder = fabricated.new_study(tmp_path, folded)
    outcomes = fabricated.write_trial(folder, folded, 0, 0, 0.0)
    fabricated.add_result(study, outcomes, 0, folded, folder)
    path = split_folder(folder, 0, 0) / "result.json"
    content = json.loads(path.read_text())
    content["agent"]["sortino"] = content["equal_weight"]["hit_rate"] = None
    write_json(path, content)
    row = table_row(html_of(unsealed(study), folder), "split 0")
    assert row["Sortino"][0][1] == "undefined"
    assert row["hit rate"][1][1] == "undefined"


@pytest.mark.parametrize("damage", ["missing", "torn", "empty"])
@pytest.mark.parametrize("name", ["equity.npz", "result.json"])
def test_a_damaged_file_of_the_best_trial_costs_only_what_it_held(study_and_copy, name, damage, caplog):
    study, folder = study_and_copy
    best = collect(study, folder).best
    path = split_folder(folder, best, 0) / name
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(content[: len(content) // 2] if damage == "torn" else b"")
    page = collect(study, folder)
    # the database has a copy of the figures
    assert [row.name for row in page.rows][:6] == [f"split {i}" for i in range(6)]
    if name == "equity.npz":
        assert [path.title for path in page.paths] == ["Path 2 of 3", "Path 3 of 3"]
        assert "1 not shown, because files are missing" in page.paths_note
        assert f"equity files of trial {best}, the best, are missing or damaged" in page.verdict.sentences[0]
        assert str(path) in caplog.text
    else:
        assert len(page.paths) == 3


@pytest.mark.parametrize(
    ("file_of", "text", "n_paths"),
    [
        (lambda folder, best: closes_file(folder, "5m"), "closing prices were not stored", 3),
        (lambda folder, best: trial_folder(folder, best) / "settings.json", "settings.json is missing or damaged", 0),
    ],
)
def test_without_settings_or_closes_the_rest_is_there(study_and_copy, file_of, text, n_paths):
    study, folder = study_and_copy
    file_of(folder, collect(study, folder).best).unlink()
    html = html_of(study, folder)
    assert text in section(html, "equity")
    assert html.count("<figure>") == n_paths
    assert "split 0" in html


@pytest.mark.parametrize("harm", ["deleted", "changed", "one file"])
def test_without_the_other_trials_as_they_were_scored_there_is_no_verdict(study_and_copy, harm):
    study, folder = study_and_copy
    others = [n for n in range(4) if n != collect(study, folder).best]
    for number in others[:2]:
        if harm == "deleted":
            shutil.rmtree(trial_folder(folder, number))
        elif harm == "one file":
            (split_folder(folder, number, 2) / "equity.npz").unlink()
        else:
            path = split_folder(folder, number, 1) / "equity.npz"
            with np.load(path) as file:
                np.savez(path, **{name: file[name] for name in file.files} | {"equity": file["equity"] * 2.0})
    verdict = collect(study, folder).verdict
    assert verdict.sentences[0].startswith("Not evidence of skill: the study cannot be judged: ")
    assert f"trial_{others[0]}" in verdict.sentences[0]
    assert f"files of 1 more trial cannot be used: {others[1]}" in verdict.sentences[0]
    assert verdict.numbers == ()


def test_a_study_from_before_hashes_were_kept_is_judged_and_called_unverified(study_and_copy):
    study, folder = study_and_copy
    sealed = collect(study, folder).verdict
    verdict = collect(unsealed(study), folder).verdict
    assert "Unverified: the files of 4 trials were read without a check" in " ".join(verdict.sentences)
    assert "Unverified" not in " ".join(sealed.sentences)
    assert verdict.numbers == sealed.numbers


def test_a_trial_that_went_to_nothing_can_be_judged(made):
    _, folder = made
    splits = {i: read_split(folder, 0, i) for i in range(6)}
    ruined = {i: np.where(np.arange(len(c["bar"])) > 5, 0.0, c["equity"]) for i, c in splits.items()}
    for i, c in splits.items():  # every block begins afresh
        ruined[i][np.diff(c["segment"], prepend=-1) != 0] = 10_000.0
    assert np.isfinite(mean_returns(layout_of(splits), ruined)).all()


def test_only_trials_on_the_same_bars_are_compared(study_and_copy):
    study, folder = study_and_copy
    other = next(n for n in range(4) if n != collect(study, folder).best)
    path = split_folder(folder, other, 2) / "equity.npz"
    with np.load(path) as file:
        np.savez(path, **{name: file[name][:-1] for name in file.files})
    with pytest.raises(StudyError, match="is not the file that trial"):
        read_returns(study, folder)
    study = unsealed(study)
    with pytest.raises(StudyError, match=f"trial_{other}: its test bars differ from those of the best trial"):
        read_returns(study, folder)


def test_two_studies_of_one_name_have_two_pages(folded, tmp_path):
    pages = []
    for drift in (0.0, 1e-4):
        study, folder = fabricated.new_study(tmp_path, folded, "same")
        fabricated.add_complete(study, folder, folded, drift)
        pages.append(write_report(study, folder))
    assert pages[0] != pages[1]
    assert pages[0].read_text() != pages[1].read_text()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({}, "mean annual excess Sharpe ratio is +0.50 with a standard error of about 3.2"),
        ({}, "which is within the chance error"),
        ({"mean_excess_sharpe": 6.5}, "above what chance explains"),
        ({"mean_excess_sharpe": 6.3}, "which is within the chance error"),
        ({"excess_sharpe_error": None, "sharpe_standard_error": None}, "undefined"),
        ({"mean_excess_sharpe": -9.0}, "clearly worse than equal weight"),
        ({"mean_excess_sharpe": 9.0}, "above what chance explains; the part due to low exposure in a falling market"),
        ({"mean_excess_sharpe": 9.0, "mean_lead_sharpe": 2.0}, "and so is the Sharpe ratio of alpha returns"),
        ({"mean_excess_sharpe": 9.0, "mean_lead_sharpe": 1.9}, "but the Sharpe ratio of alpha returns is"),
        ({"mean_excess_sharpe": None}, "undefined"),
        ({"trial": 77}, "Used up by trial 77"),
        ({"uuid": "other"}, "belongs to another study"),
    ],
)
def test_the_holdout_is_said_in_a_sentence(study_and_copy, change, text):
    study, folder = study_and_copy
    usual = {"excess_sharpe_error": 3.2, "mean_excess_sharpe": 0.5, "mean_lead_sharpe": None}
    write_json(folder / "holdout.json", replace(scored_holdout(study_and_copy), **usual | change))
    page = collect(study, folder)
    assert text in page.holdout
    is_shown = change.get("trial") is None and change.get("uuid") is None
    assert any(row.name == "hold-out 0" for row in page.rows) == is_shown


def test_a_damaged_holdout_file_is_never_taken_for_one_that_was_not_written(study_and_copy):
    study, folder = study_and_copy
    (folder / "holdout.json").write_text('{"uuid": ')
    assert "Unknown, because the file holdout.json is damaged" in collect(study, folder).holdout
    study.set_user_attr("holdout_score", plain(scored_holdout(study_and_copy)))  # the database's copy
    try:
        assert "policies of trial" in collect(study, folder).holdout
    finally:
        study.set_user_attr("holdout_score", None)


def scored_holdout(made, **agent):
    """What holdout.json holds of two policies, one with other figures, as a study of this version writes it."""
    study, folder = made
    own = {"uuid": study.user_attrs["uuid"], "trial": collect(study, folder).best, "mean_excess_sharpe": 50.0}
    return fabricated.holdout_score((fabricated.figures(), fabricated.figures(**agent)), **own)


def test_policies_that_hardly_traded_have_no_verdict_on_the_holdout(made):
    """Ten dollars that rose have a splendid Sharpe ratio, in a fifth of a percent of the account."""
    study, _ = made
    scored = scored_holdout(made, exposure=0.01)
    trial = study.trials[scored.trial]
    assert "above what chance explains" in holdout_text(study, scored, trial)
    scored = scored_holdout(made, exposure=0.0099)
    said = holdout_text(study, scored, trial)
    assert "There is no verdict: 1 of 2 policies" in said
    assert "above what chance explains" not in said
    assert "were inactive" in check_text({"holdout_score": plain(scored)}, trial.number)
    assert "there is no verdict" in score_text(scored)


def test_a_holdout_of_before_the_error_of_a_difference_claims_least(made):
    scored = replace(scored_holdout(made), excess_sharpe_error=UNSET)
    assert "with a standard error of about 1.4" in holdout_text(made[0], scored, made[0].trials[scored.trial])
    assert "about 1.4" in score_text(scored)


def test_bars_that_wait_for_the_winner_are_named(made):
    study, folder = made
    identity = study.user_attrs["identity"]
    study.set_user_attr("identity", identity | {"holdout": {"5m": plain(fabricated.HELD)}})
    try:
        assert "(480 of 5m) are kept for one evaluation" in collect(study, folder).holdout
    finally:
        study.set_user_attr("identity", identity)


def test_a_report_that_fails_is_logged_and_raises_nothing(made, monkeypatch, caplog):
    for error in (KeyError("x"), OSError("disk full"), TypeError("t"), MemoryError()):
        monkeypatch.setattr(report_module, "render", lambda *_, error=error: (_ for _ in ()).throw(error))
        report_ended_study(*made)
        assert f"could not write the report: {type(error).__name__}" in caplog.text


@pytest.mark.parametrize(
    ("ending", "code"), [(Ending(), 0), (Ending(signal_number=15), 143), (Ending(timed_out=True), 0)]
)
def test_a_report_that_fails_does_not_change_how_a_study_ends(study_and_copy, monkeypatch, caplog, ending, code):
    study, folder = study_and_copy
    request = SimpleNamespace(n_trials=4)
    assert finish._conclude(study, ending, request, finish._write_pages(study, folder)) == code
    assert (folder / "report.html").stat().st_size > 10_000
    (folder / "report.html").unlink()
    (folder / "report.html").mkdir()  # cannot be replaced by a file
    assert finish._conclude(study, ending, request, finish._write_pages(study, folder)) == code
    assert "could not write the report: IsADirectoryError" in caplog.text


def test_closes_are_written_once_and_refused_for_other_data(folded, tmp_path):
    fabricated.write_closes(tmp_path, folded)
    before = closes_file(tmp_path, "5m").stat().st_mtime_ns
    fabricated.write_closes(tmp_path, folded)
    assert closes_file(tmp_path, "5m").stat().st_mtime_ns == before
    close, tickers = read_closes(tmp_path, "5m", folded.dataset.sha256)
    assert np.array_equal(close, folded.dataset.price)
    assert tickers == folded.dataset.tickers
    with pytest.raises(ValueError, match="does not match the trial's data"):
        read_closes(tmp_path, "5m", "0" * 64)


@pytest.mark.parametrize("mode", ["rolling", "expanding", "kfold"])
def test_designs_that_test_every_block_once_have_one_path(market, tmp_path, mode):
    data = fold_data(market, SplitPlan(mode, 3, 1, 0.0))
    study, folder = fabricated.new_study(tmp_path, data)
    fabricated.add_complete(study, folder, data)
    (path,) = collect(study, folder).paths
    assert path.title == "Path 1 of 1"
    assert len(path.starts_s) == 3


def test_compounding_by_hand():
    assert compounded([np.array([10.0, 20.0]), np.array([10.0, 5.0])]).tolist() == [1.0, 2.0, 2.0, 1.0]


# ------------------------------------------------------------------------------------------- at the end, at any time
def test_the_script_writes_the_page_while_trials_are_missing(lab, folded, capsys):
    study, _ = lab.run(target=2)
    results = lab.folder / "results_dir"
    study_folder(results, StudyFile("s", study.user_attrs["uuid"]))
    where = ["--study-name", "s", "--storage", f"sqlite:///{lab.folder}/study.db", "--results-dir", str(results)]
    assert write_report_command.main(where) == 0
    written = Path(capsys.readouterr().out.strip())
    assert written == results / "s" / "report.html"
    assert "2 complete" in written.read_text()
    assert write_report_command.main([*where, "--out", str(lab.folder / "x.html")]) == 0
    assert (lab.folder / "x.html").exists()


def test_the_script_refuses_what_is_not_there_and_makes_nothing(lab, tmp_path, capsys):
    lab.run(target=1)
    storage = ["--storage", f"sqlite:///{lab.folder}/study.db", "--results-dir", str(tmp_path / "none")]
    assert write_report_command.main(["--study-name", "s", *storage]) == 2
    assert "no results of study s" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    assert write_report_command.main(["--study-name", "other", *storage]) == 2


def test_a_page_can_be_written_after_an_interruption(lab, caplog):
    from train.study.interruption import Interrupted

    lab.runner.results = [1.0] * 6 + [Interrupted(15)]
    study, ending = lab.run(target=3)
    assert ending.signal_number == 15 or study.get_trials(deepcopy=False)[-1].state != TrialState.COMPLETE
    folder = study_folder(lab.folder / "pages", StudyFile("s", study.user_attrs["uuid"]))
    with caplog.at_level(logging.INFO):
        report_ended_study(study, folder)
    assert "1 complete" in (folder / "report.html").read_text()
    assert "not written" not in caplog.text
