"""Files of a study."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import resource
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from drl_agents.atomic_file import write_atomically
from market.files import unfinished_folder, whole_file, write_whole
from tests.support.killed_writes import killed_at_every_moment
from train.records.errors import StudyError
from train.records.record_files import write_json
from train.records.results import read_equity, study_folder
from train.records.stored import StudyFile
from train.store.worker_status import StatusFile
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


N_ROUNDS = 40


def _claim_again_and_again(barrier, results: Path, uuid: str, number: int) -> None:
    for turn in range(N_ROUNDS):
        barrier.wait(30)
        folder = study_folder(results / str(turn), StudyFile("s", uuid))
        (results / f"{turn}-{number}").write_text(folder.name)


def test_studies_of_one_name_that_start_at_one_moment_get_a_folder_each(tmp_path):
    """Four processes: two studies of two processes each, as workers of two databases."""
    context, uuids = multiprocessing.get_context("fork"), ["a" * 32, "a" * 32, "b" * 32, "b" * 32]
    barrier = context.Barrier(len(uuids))
    workers = [
        context.Process(target=_claim_again_and_again, args=(barrier, tmp_path, uuid, number))
        for number, uuid in enumerate(uuids)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * len(uuids)
    for turn in range(N_ROUNDS):
        names = [(tmp_path / f"{turn}-{number}").read_text() for number in range(len(uuids))]
        assert (names[0], names[2]) == (names[1], names[3])
        assert sorted({*names}) in (["s", "s-aaaaaaaa"], ["s", "s-bbbbbbbb"])
        for name, uuid in zip(names, uuids, strict=True):
            assert json.loads((tmp_path / str(turn) / name / "study.json").read_text())["uuid"] == uuid
        assert sorted(p.name for p in (tmp_path / str(turn)).iterdir()) == sorted({*names})  # nothing is left over


def test_an_empty_folder_and_a_link_to_one_are_claimed_and_a_file_is_left_alone(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "s").symlink_to("../disk")
    assert study_folder(tmp_path / "results", OURS).resolve() == tmp_path / "disk"
    assert (tmp_path / "disk" / "study.json").is_file()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "s").write_text("mine")
    assert study_folder(tmp_path / "other", OURS).name == "s-aaaaaaaa"
    assert (tmp_path / "other" / "s").read_text() == "mine"


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


def test_writers_with_one_pid_do_not_mix_their_content(tmp_path):
    """As in two containers that share a disk; here the process numbers are really equal, and both write at once."""
    path = tmp_path / "a.bin"
    with whole_file(path) as one:
        one.write(b"1" * 100_000)
        with whole_file(path) as other:
            other.write(b"2" * 150_000)
            one.write(b"1" * 100_000)
        assert path.read_bytes() == b"2" * 150_000
    assert path.read_bytes() == b"1" * 200_000
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_of_two_writers_of_what_is_written_once_the_first_is_kept(tmp_path):
    path = tmp_path / "a.bin"
    with whole_file(path, overwrites=False) as late:
        late.write(b"late")
        write_whole(path, b"first", overwrites=False)
    assert path.read_bytes() == b"first"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def modes(folder: Path) -> set[str]:
    return {f"{path.stat().st_mode & 0o777:o}" for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("umask", "folder_mode", "file_mode"), [(0o077, 0o700, "600"), (0o027, 0o750, "640")])
def test_files_are_as_private_as_the_umask_says(tmp_path, umask, folder_mode, file_mode):
    before = os.umask(umask)
    try:
        folder = study_folder(tmp_path, OURS)
        write_whole(folder / "a", b"a")
        write_whole(folder / "once", b"a", overwrites=False)
        write_atomically(folder / "b", b"b")
        with StatusFile(folder), unfinished_folder(tmp_path / "data") as data:
            assert modes(folder) == {file_mode}
            assert data.stat().st_mode & 0o777 == folder_mode
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == folder_mode


@pytest.mark.parametrize("write", [write_whole, write_atomically])
def test_a_private_file_stays_private_when_it_is_written_again(tmp_path, write):
    write(tmp_path / "a", b"1")
    (tmp_path / "a").chmod(0o600)
    write(tmp_path / "a", b"2")
    assert ((tmp_path / "a").read_bytes(), modes(tmp_path)) == (b"2", {"600"})


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
