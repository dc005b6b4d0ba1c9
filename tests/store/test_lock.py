"""One database has one lock, by whichever name it is reached, and a lock file is never a link."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from optuna.pruners import NopPruner

from train.records.errors import StudyError
from train.store.address import absolute_url
from train.store.database import open_study
from train.store.lock import study_lock

REPO = Path(__file__).resolve().parents[2]
TAKE = """
import sys
from pathlib import Path
from train.store.address import absolute_url
from train.store.lock import study_lock
print("asks", flush=True)
with study_lock(absolute_url(sys.argv[1], Path("/")), "p"):
    print("in", flush=True)
"""


@contextmanager
def other_process(path: Path):
    command = [sys.executable, "-c", TAKE, f"sqlite:///{path}"]
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    with subprocess.Popen(command, cwd=REPO, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "asks\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("how", ["link to the file", "link to the folder", "chain of links", "link before the file"])
def test_a_database_by_a_link_and_by_its_name_has_one_lock(tmp_path, how):
    real = tmp_path / "real" / "study.db"
    real.parent.mkdir()
    if how != "link before the file":
        open_study(absolute_url(f"sqlite:///{real}", tmp_path), "s", {}, False, NopPruner())
    if how == "link to the folder":
        (tmp_path / "other").symlink_to("real")
    else:
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "study.db").symlink_to(real)
        if how == "chain of links":
            (tmp_path / "other" / "study.db").rename(tmp_path / "between.db")
            (tmp_path / "other" / "study.db").symlink_to("../between.db")
    linked = tmp_path / "other" / "study.db"
    with (
        study_lock(absolute_url(f"sqlite:///{real}", tmp_path), "p"),
        other_process(linked) as other,
        pytest.raises(subprocess.TimeoutExpired),
    ):
        other.wait(1.0)
    with other_process(linked) as other:
        assert other.stdout.readline() == "in\n"


def test_a_database_with_two_hard_links_is_refused(tmp_path):
    """Each name has a write-ahead log of its own: what one process writes, the other does not see."""
    real = tmp_path / "study.db"
    url = absolute_url(f"sqlite:///{real}", tmp_path)
    open_study(url, "s", {}, False, NopPruner())
    os.link(real, tmp_path / "other.db")
    before = real.read_bytes()
    with pytest.raises(StudyError, match=r"study.db has 2 hard links.*delete"):
        open_study(url, "s", {}, True, NopPruner())
    assert real.read_bytes() == before
    (tmp_path / "other.db").unlink()
    open_study(url, "s", {}, True, NopPruner())


@pytest.mark.parametrize("purpose", ["", "hold-out of s"])
def test_a_lock_file_that_is_a_link_is_refused_and_nothing_is_made_where_it_leads(tmp_path, purpose):
    url = absolute_url(f"sqlite:///{tmp_path}/study.db", tmp_path)
    with study_lock(url, purpose):
        (lock,) = tmp_path.glob("study.db*.lock")
    lock.unlink()
    lock.symlink_to(tmp_path / "elsewhere")
    with (
        pytest.raises(StudyError, match=r"--storage: .*\.lock must be a lock file, not a symbolic link.*delete it"),
        study_lock(url, purpose),
    ):
        pass
    assert not (tmp_path / "elsewhere").exists()
