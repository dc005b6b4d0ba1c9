"""The three programs on a real tiny study: what they print, write and refuse."""

from __future__ import annotations

import csv
import importlib.util
import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import optuna
import pytest

from train.findings.stored_trial import open_stored, read_trial
from train.records.provenance import code_version
from train.records.results import read_equity
from train.records.seals import seal
from train.study.objective import split_seed

ROOT = Path(__file__).resolve().parents[2]


def program(name):
    spec = importlib.util.spec_from_file_location(f"validation_{name[0]}", ROOT / "scripts" / "validation" / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


validate, backtest, pbo = (program(name) for name in ("2_validate.py", "4_backtest.py", "5_pbo.py"))


@pytest.fixture
def flags(tiny_study):
    url = f"sqlite:///{tiny_study.url.database}"
    return ["--study-name", "tiny", "--storage", url, "--data-dir", str(tiny_study.data_dir)]


def best_folder(tiny_study):
    (folder,) = tiny_study.folder.glob("trial_*/validation.json")
    return folder.parent


def test_validate_prints_and_writes_what_the_study_recorded(tiny_study, flags, capsys):
    assert validate([*flags, "--random-draws", "4"]) == 0
    shown = capsys.readouterr().out
    for words in ("SYNTHETIC", "bit-identical", "Full paths", "hold BTC", "random orders", "excess_sharpe"):
        assert words in shown
    folder = best_folder(tiny_study)
    content = json.loads((folder / "validation.json").read_text())
    kept = json.loads((folder / "split_0" / "result.json").read_text())
    agent = next(row for row in content["rows"] if row["account"] == "agent")
    assert agent["sharpe"] == kept["agent"]["sharpe"]
    assert content["synthetic"] is True
    with (folder / "validation.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(content["rows"])


def test_backtest_pays_the_costs_it_says_and_trains_each_seed_once(tiny_study, flags, capsys):
    assert backtest([*flags, "--costs", "0", "4", "--seeds", "1"]) == 0
    shown = capsys.readouterr().out
    for words in ("Full paths", "Costs", "Seeds", "Spread across the new seeds"):
        assert words in shown
    (path,) = tiny_study.folder.glob("trial_*/backtest.json")
    content = json.loads(path.read_text())
    assert [row["costs_x"] for row in content["costs"]] == [0.0, 1.0, 4.0]
    free, usual, dear = content["costs"]
    assert free["fees"] == 0.0
    assert 0.0 < usual["fees"] < dear["fees"]
    assert usual["total_return"] == pytest.approx(np.mean([row["total_return"] for row in content["paths"]]))
    assert dear["total_return"] < usual["total_return"] < free["total_return"]
    assert [row["seed"] for row in content["seeds"]["seeds"]] == [0, 1]
    files = {f: f.stat().st_mtime_ns for f in path.parent.glob("seed_*/split_*/result.json")}
    assert len(files) == 3
    assert backtest([*flags, "--costs", "1", "--seeds", "1"]) == 0
    assert {f: f.stat().st_mtime_ns for f in files} == files
    assert json.loads(path.read_text())["seeds"] == content["seeds"]


@pytest.fixture
def two_completed(tiny_study, tmp_path):
    """Flags of a copy of the study with a second completed trial: the best one with some luck."""
    copied = tmp_path / "study.db"
    with closing(sqlite3.connect(tiny_study.url.database)) as here, closing(sqlite3.connect(copied)) as there:
        here.backup(there)
    shutil.copytree(tiny_study.results, tmp_path / "results")
    study = optuna.load_study(study_name="tiny", storage=f"sqlite:///{copied}")
    best, folder = study.best_trial, tmp_path / "results" / "tiny"
    number = len(study.trials)
    copy = shutil.copytree(folder / f"trial_{best.number}", folder / f"trial_{number}")
    rng = np.random.default_rng(0)
    for path in sorted(copy.glob("split_*/equity.npz")):
        columns = read_equity(path)
        luck = np.cumprod(1.0 + rng.normal(0.0, 0.001, len(columns["equity"])))
        np.savez(path, **columns | {"equity": columns["equity"] * luck})
    attributes = dict(best.user_attrs)
    for split in range(len(list(copy.glob("split_*")))):
        attributes[f"split_{split}"] |= seal(folder, number, split)
    study.add_trial(
        optuna.trial.create_trial(
            value=best.value - 1.0, params=best.params, distributions=best.distributions, user_attrs=attributes
        )
    )
    return ["--study-name", "tiny", "--storage", f"sqlite:///{copied}", "--results-dir", str(tmp_path / "results")]


def test_every_file_of_figures_says_what_made_it(tiny_study, flags, two_completed, tmp_path):
    assert validate([*flags, "--random-draws", "2"]) == 0
    assert backtest([*flags, "--costs", "1", "--seeds", "1"]) == 0
    assert pbo([*two_completed, "--least-trials", "2", "--blocks", "4"]) == 0
    stored = open_stored(tiny_study.url, "tiny", None)
    trial = read_trial(stored, "best", tiny_study.data_dir)
    wanted = {
        "study": "tiny", "uuid": stored.study.user_attrs["uuid"], "trial": trial.number, "code_version": code_version(),
        "data_sha256": trial.data.dataset.sha256, "seed": stored.seed,
    }  # fmt: skip
    files = {
        trial.folder / "validation.json": {"random_draws": 2, "random_seed": 0, "stepped_by": "numba"},
        trial.folder / "backtest.json": {"stepped_by": "numba"},
        tmp_path / "results" / "tiny" / "pbo.json": {"blocks": 4},
        trial.folder / "split_1" / "result.json": {
            "seed": trial.settings.split_seeds[1],
            "scoring_stepped_by": "numba",
        },
        trial.folder / "seed_1" / "split_1" / "result.json": {"seed": split_seed(wanted["seed"] + 1, 1)},
    }
    for path, more in files.items():
        content = json.loads(path.read_text())
        assert {name: content.get(name) for name in wanted | more} == wanted | more, path


def test_pbo_says_how_many_trials_are_needed(flags, capsys):
    assert pbo(flags[:4]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("5_pbo.py: PBO needs at least 10 completed trials")
    assert shown.count("\n") == 1


@pytest.fixture
def damaged(tiny_study, flags, tmp_path):
    """(flags, the best trial's folder) of a copy of the results."""
    shutil.copytree(tiny_study.results, tmp_path / "results", ignore=shutil.ignore_patterns("seed_*"))
    best = read_trial(open_stored(tiny_study.url, "tiny", None), "best", tiny_study.data_dir)
    return [*flags, "--results-dir", str(tmp_path / "results")], tmp_path / "results" / "tiny" / best.folder.name


def cut(path, keep=0.6):
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    return path


def refused(capsys, path):
    """Whether one line on standard error names the file."""
    reasons = ("cannot be read", "not valid JSON", "is not the file that")
    shown = capsys.readouterr().err.splitlines()
    return len(shown) == 1 and str(path) in shown[0] and any(words in shown[0] for words in reasons)


@pytest.mark.parametrize("keep", [0.0, 0.6], ids=["empty", "cut off"])
def test_a_damaged_curve_is_one_line(damaged, capsys, keep):
    flags, folder = damaged
    path = cut(folder / "split_1" / "equity.npz", keep)
    assert validate(flags) == 2
    assert refused(capsys, path)
    assert pbo([*flags[:4], *flags[6:]]) == 2
    assert refused(capsys, path)


def test_a_damaged_result_is_one_line(damaged, capsys):
    flags, folder = damaged
    path = folder / "split_1" / "result.json"
    whole = path.read_bytes()
    cut(path)
    assert backtest([*flags, "--costs", "1", "--seeds", "1"]) == 2
    assert refused(capsys, path)
    assert not (folder / "seed_1").exists()  # before an hour of training, not after it
    path.write_bytes(whole)
    ours = folder / "seed_1" / "split_0" / "result.json"
    ours.parent.mkdir(parents=True)
    ours.write_bytes(whole[:100])
    assert backtest([*flags, "--costs", "1", "--seeds", "1"]) == 2
    assert refused(capsys, ours)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--study-name": "nosuch"}, "has no study nosuch; check --study-name. Studies found: tiny"),
        ({"--storage": "sqlite:////nowhere/x.db"}, "there is no database /nowhere/x.db"),
        ({"--data-dir": "/nowhere"}, "/nowhere"),
        ({"--trial": "9"}, "trials 0 to 2"),
        ({"--results-dir": "/nowhere"}, "/nowhere has no results of study tiny"),
    ],
)
@pytest.mark.parametrize("main", [validate, backtest], ids=["validate", "backtest"])
def test_what_is_not_there_is_named_in_one_line(main, flags, change, message, capsys):
    given = dict(zip(flags[::2], flags[1::2], strict=True)) | change
    assert main([word for pair in given.items() for word in pair]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1
    assert "Traceback" not in shown
