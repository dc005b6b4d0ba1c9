"""Opening, recognising and refusing studies; every case on real files."""

from __future__ import annotations

import sqlite3
import threading

import optuna
import pytest
from optuna.pruners import NopPruner

from train.records.errors import StudyError
from train.store.address import absolute_url
from train.store.database import n_finished, open_study

IDENTITY = {"data_sha256": {"5m": "a"}, "search space": {"x": "1"}}


def open_at(folder, name="s", identity=IDENTITY, must_exist=False):
    return open_study(absolute_url("sqlite:///db/study.db", folder), name, identity, must_exist, NopPruner())


def test_the_folder_of_the_database_is_made_and_the_log_is_written_ahead(tmp_path):
    open_at(tmp_path)
    with sqlite3.connect(tmp_path / "db" / "study.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_the_same_name_continues_the_same_study(tmp_path):
    first = open_at(tmp_path)
    first.add_trial(optuna.trial.create_trial(value=1.0))
    again = open_at(tmp_path, must_exist=True)
    assert again.user_attrs["uuid"] == first.user_attrs["uuid"]
    assert n_finished(again) == 1


@pytest.mark.parametrize(
    ("identity", "words"),
    [
        ({**IDENTITY, "data_sha256": {"5m": "b"}}, "differs in its data_sha256: 5m was a, now b"),
        ({**IDENTITY, "search space": {"x": "1", "y": "2"}}, "y was absent, now 2"),
    ],
)
def test_a_study_with_another_identity_is_refused_and_left_as_it_is(tmp_path, identity, words):
    before = open_at(tmp_path).user_attrs
    with pytest.raises(StudyError, match=words):
        open_at(tmp_path, identity=identity)
    assert open_at(tmp_path).user_attrs == before


def test_a_study_of_another_program_or_direction_is_refused(tmp_path):
    url = f"sqlite:///{tmp_path}/db/study.db"
    (tmp_path / "db").mkdir()
    foreign = optuna.create_study(storage=url, study_name="foreign", direction="maximize")
    foreign.add_trial(optuna.trial.create_trial(value=1.0))
    optuna.create_study(storage=url, study_name="minimize", direction="minimize")
    with pytest.raises(StudyError, match="not created by this program"):
        open_at(tmp_path, "foreign")
    with pytest.raises(StudyError, match="minimizes"):
        open_at(tmp_path, "minimize")


def test_resume_never_makes_a_study_nor_a_file(tmp_path):
    with pytest.raises(StudyError, match="no database"):
        open_at(tmp_path, must_exist=True)
    assert not (tmp_path / "db").exists()
    open_at(tmp_path, "one")
    with pytest.raises(StudyError, match=r"has no study other; .* Studies found: one"):
        open_at(tmp_path, "other", must_exist=True)


@pytest.mark.parametrize(
    ("content", "words"), [(b"", "is empty"), (b"not a database", "is not an SQLite"), (None, "cannot use --storage")]
)
def test_a_damaged_database_is_an_error_that_names_the_file(tmp_path, content, words):
    path = tmp_path / "db" / "study.db"
    path.parent.mkdir()
    damaged = content if content is not None else b"SQLite format 3\x00" + b"\x07" * 5000
    path.write_bytes(damaged)
    with pytest.raises(StudyError, match=words) as error:
        open_at(tmp_path)
    assert "study.db" in str(error.value)
    assert path.read_bytes() == damaged


def test_a_database_locked_for_longer_than_sqlites_five_seconds_is_waited_for(tmp_path):
    study = open_at(tmp_path)
    holder = sqlite3.connect(tmp_path / "db" / "study.db", check_same_thread=False, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    release = threading.Timer(6.5, lambda: (holder.execute("COMMIT"), holder.close()))
    release.start()
    study.add_trial(optuna.trial.create_trial(value=1.0))
    release.join()
    assert n_finished(study) == 1


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nonsense", "not a database URL"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
    ],
)
def test_a_url_that_keeps_nothing_is_refused(tmp_path, url, words):
    with pytest.raises(StudyError, match=words):
        absolute_url(url, tmp_path)


def test_relative_files_are_taken_from_the_given_folder(tmp_path):
    assert absolute_url("sqlite:///a/b.db", tmp_path).database == f"{tmp_path}/a/b.db"
    assert absolute_url("sqlite:////else/b.db", tmp_path).database == "/else/b.db"


def test_a_server_that_cannot_be_reached_is_an_error(tmp_path):
    url = absolute_url("postgresql://nobody:secret@127.0.0.1:1/none", tmp_path)
    with pytest.raises(StudyError, match="--storage postgresql") as error:
        open_study(url, "s", IDENTITY, False, NopPruner())
    assert "secret" not in str(error.value)
