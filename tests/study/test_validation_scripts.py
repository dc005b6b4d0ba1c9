"""The three programs on a real tiny study: what they print, write and refuse."""

from __future__ import annotations

import csv
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

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
    for words in ("SYNTHETIC", "to the last bit", "Full paths", "hold BTC", "random orders", "excess_sharpe"):
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
    for words in ("Full paths", "Costs", "Seeds", "Spread over the new seeds"):
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


def test_pbo_says_how_many_trials_are_needed(flags, capsys):
    assert pbo(flags[:4]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("5_pbo.py: the probability of overfitting compares completed trials and needs at least 10")
    assert shown.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--study-name": "nosuch"}, "has no study nosuch; it has tiny"),
        ({"--storage": "sqlite:////nowhere/x.db"}, "there is no database /nowhere/x.db"),
        ({"--data-dir": "/nowhere"}, "/nowhere"),
        ({"--trial": "9"}, "numbers 0 to 2"),
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
