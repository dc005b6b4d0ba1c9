"""A watcher leaves no trace in the database, and says what it cannot read."""

from __future__ import annotations

import sqlite3
import time

import pytest
from sqlalchemy import text

from tests.support.made_studies import close, locked, make_study, trial, url_of, use_rollback_journal
from train.records.errors import StudyError
from train.watch import reading
from train.watch.reading import UnavailableError, read
from train.watch.snapshot import take_snapshot


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def n_trials(connection):
    return connection.execute(text("SELECT COUNT(*) FROM trials")).scalar()


@pytest.mark.parametrize("journal", ["write-ahead", "rollback"])
def test_looking_changes_no_byte_and_makes_no_file(tmp_path, journal):
    close(make_study(tmp_path, [trial(value=1.0)]))
    if journal == "rollback":
        use_rollback_journal(tmp_path / "study.db")
    before = contents(tmp_path)
    assert "study.db-wal" not in before
    assert take_snapshot(url_of(tmp_path), "s").count("COMPLETE") == 1
    assert contents(tmp_path) == before


def test_a_writer_at_work_is_read_past_and_its_file_not_changed(tmp_path):
    study = make_study(tmp_path, [trial(value=1.0)])
    assert (tmp_path / "study.db-wal").stat().st_size > 0
    before = (tmp_path / "study.db").read_bytes()
    study.add_trial(trial(value=2.0))  # in the write-ahead log only
    assert take_snapshot(url_of(tmp_path), "s").best.value == 2.0
    assert (tmp_path / "study.db").read_bytes() == before


def test_a_read_only_connection_cannot_write(tmp_path):
    study = make_study(tmp_path)
    for _ in ("with a writer", "without one"):
        with pytest.raises(UnavailableError, match="readonly"):
            read(url_of(tmp_path), lambda connection: connection.execute(text("DELETE FROM trials")))
        close(study)


@pytest.mark.parametrize("does_writer_stay", [True, False])
def test_what_changes_while_it_is_read_is_read_again(tmp_path, does_writer_stay):
    close(make_study(tmp_path, [trial(value=1.0)]))
    seen = []

    def look_while_a_writer_comes(connection):
        seen.append(n_trials(connection))
        if len(seen) == 1:
            study = make_study(tmp_path, [trial(value=2.0)])
            if not does_writer_stay:
                close(study)
        return seen[-1]

    assert read(url_of(tmp_path), look_while_a_writer_comes) == 2
    assert seen == [1, 2]


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "there is no database"), (b"", "is empty"), (b"PK\x03\x04" * 99, "is not an SQLite database")],
)
def test_a_file_that_is_no_database_is_named(tmp_path, content, words):
    if content is not None:
        (tmp_path / "study.db").write_bytes(content)
    before = contents(tmp_path)
    with pytest.raises(StudyError, match=rf"study\.db.*|{words}") as error:
        take_snapshot(url_of(tmp_path), None)
    assert words in str(error.value)
    assert "study.db" in str(error.value)
    assert contents(tmp_path) == before


def test_a_database_without_studies_is_named(tmp_path):
    connection = sqlite3.connect(tmp_path / "study.db")
    connection.execute("CREATE TABLE recipes (name TEXT)")
    connection.close()
    with pytest.raises(StudyError, match="contains no Optuna study"):
        take_snapshot(url_of(tmp_path), None)


def test_a_damaged_database_is_unavailable_and_not_a_traceback(tmp_path):
    close(make_study(tmp_path, [trial(value=1.0)]))
    path = tmp_path / "study.db"
    path.write_bytes(path.read_bytes()[:8192])
    with pytest.raises(UnavailableError, match=r"study\.db cannot be read now: "):
        take_snapshot(url_of(tmp_path), "s")


def test_a_locked_database_is_said_to_be_locked_and_read_when_it_is_free(tmp_path, monkeypatch):
    close(make_study(tmp_path, [trial(value=1.0)]))
    use_rollback_journal(tmp_path / "study.db")
    monkeypatch.setattr(reading, "PATIENCE_S", 0.2)
    with locked(tmp_path / "study.db"):
        started = time.monotonic()
        with pytest.raises(UnavailableError, match="locked"):
            take_snapshot(url_of(tmp_path), "s")
        assert time.monotonic() - started < 5.0
    assert take_snapshot(url_of(tmp_path), "s").count("COMPLETE") == 1


def test_a_writer_that_holds_a_write_ahead_database_keeps_nobody_from_looking(tmp_path):
    study = make_study(tmp_path, [trial(value=1.0)])
    with locked(tmp_path / "study.db"):
        assert take_snapshot(url_of(tmp_path), "s").count("COMPLETE") == 1
    close(study)


def test_a_server_that_is_away_is_unavailable_and_its_password_not_shown(tmp_path):
    pytest.importorskip("psycopg")
    from sqlalchemy.engine import make_url

    with pytest.raises(UnavailableError) as error:
        take_snapshot(make_url("postgresql://me:secret@127.0.0.1:1/db"), None)
    assert "secret" not in str(error.value)
    assert "127.0.0.1:1" in str(error.value)


def test_a_driver_that_is_not_installed_is_named(tmp_path):
    from sqlalchemy.engine import make_url

    with pytest.raises(StudyError, match=r"driver is not installed: .*cx_Oracle"):
        take_snapshot(make_url("oracle+cx_oracle://me:secret@127.0.0.1/db"), None)
