"""Files of a study."""

from __future__ import annotations

import errno
import json
import resource
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from drl_agents.atomic_file import write_atomically
from market.files import write_whole
from tests.support.killed_writes import killed_at_every_moment
from train.records.errors import StudyError
from train.records.record_files import write_json
from train.records.results import read_equity, study_folder
from train.records.stored import StudyFile
from train.study.split_files import write_equity

OURS = StudyFile("s", "a" * 32)


def record(first: int, n: int) -> SimpleNamespace:
    bars = np.arange(first, first + n + 1)
    return SimpleNamespace(
        segment=(first, first + n + 1),
        bars=bars,
        equity=bars * 2.0,
        benchmark_equity=bars * 3.0,
        exposure=bars * 0.0,
        turnover=np.full(n, 5.0),
        fees=np.full(n, 0.1),
        trades=np.full(n, 2),
    )


def test_equity_files_hold_every_bar_of_every_segment(tmp_path):
    write_equity(tmp_path / "equity.npz", [record(0, 2), record(10, 1)], np.arange(100) * 300)
    curves = read_equity(tmp_path / "equity.npz")
    assert curves["bar"].tolist() == [0, 1, 2, 10, 11]
    assert curves["segment"].tolist() == [0, 0, 0, 1, 1]
    assert curves["time_s"].tolist() == [0, 300, 600, 3000, 3300]
    assert curves["turnover"].tolist() == [0, 5, 5, 0, 5]
    assert curves["trades"].tolist() == [0, 2, 2, 0, 2]


def test_two_studies_of_one_name_never_share_a_folder(tmp_path):
    first = study_folder(tmp_path, OURS)
    assert study_folder(tmp_path, OURS) == first
    other = study_folder(tmp_path, StudyFile("s", "b" * 32))
    assert other.name == "s-bbbbbbbb"
    assert study_folder(tmp_path, StudyFile("s", "b" * 32)) == other


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    for name in ("s", "s-aaaaaaaa"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.txt").write_text("x")
    with pytest.raises(StudyError, match="another study"):
        study_folder(tmp_path, OURS)


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    write_json(tmp_path / "a.json", {"x": np.float64(1.5), "n": np.int64(2)})
    with pytest.raises(TypeError):
        write_whole(tmp_path / "a.json", "text, not bytes")
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1.5, "n": 2}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_kill_between_any_two_writes_leaves_the_old_result_or_the_new_one(tmp_path):
    write_json(tmp_path / "start" / "result.json", {"turn": 1})
    folders = killed_at_every_moment(
        lambda folder: write_json(folder / "result.json", {"turn": 2}),
        lambda n: shutil.copytree(tmp_path / "start", tmp_path / str(n)),
    )
    turns = [json.loads((folder / "result.json").read_text())["turn"] for folder in folders]
    assert turns == sorted(turns)
    assert set(turns) == {1, 2}
    assert len(folders) > 20
    assert any(len(list(folder.iterdir())) > 1 for folder in folders)  # killed in the middle


def test_a_disk_that_is_full_is_said_with_the_name_of_the_file(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        for write in (write_whole, write_atomically):
            with pytest.raises(OSError, match="File too large") as error:
                write(tmp_path / "a.json", bytes(100))
            assert error.value.filename == str(tmp_path / "a.json")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_does_not_answer_is_no_other_studys_folder(tmp_path, monkeypatch):
    owned = study_folder(tmp_path, StudyFile("s", "a" * 32))

    def broken(path):
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(Path, "read_bytes", broken)
    with pytest.raises(OSError, match="Input/output error"):
        study_folder(tmp_path, StudyFile("s", "a" * 32))
    assert list(tmp_path.iterdir()) == [owned]
