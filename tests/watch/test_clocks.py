"""A study is the same study whatever the zone of who writes it and who watches it, over every change of the clocks."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from tests.support.made_studies import as_optuna_says, close, make_study, trial, url_of
from train.records.keys import FAILURE, RETRY_OF
from train.store import abandoned
from train.store.abandoned import queue_lost_retries
from train.store.worker_identity import GRACE_S, this_worker
from train.watch.pace import pace_of, time_left_s
from train.watch.snapshot import take_snapshot

ZONES = ("UTC", "Asia/Tokyo", "America/New_York", "Europe/Berlin", "Australia/Lord_Howe", "Asia/Kathmandu",
         "America/St_Johns", "Pacific/Apia", "Pacific/Kiritimati", "Africa/Casablanca")  # fmt: skip
# Moments at which clocks change somewhere: spring and autumn, north and south.
DAYS = ((2026, 3, 8, 7), (2026, 3, 29, 1), (2026, 10, 25, 1), (2026, 11, 1, 6), (2026, 4, 4, 15), (2026, 10, 3, 15))
BERLINS_AUTUMN = datetime(2026, 10, 25, 1, tzinfo=UTC)
CHANGES = tuple(datetime(*day, tzinfo=UTC) for day in DAYS)


@contextmanager
def in_zone(name: str):
    """This process's local time."""
    before = os.environ.get("TZ")
    try:
        os.environ["TZ"] = name
        time.tzset()
        yield
    finally:
        os.environ.pop("TZ", None) if before is None else os.environ.update(TZ=before)
        time.tzset()


def study_of(folder: Path, ends: list[datetime], state: TrialState = TrialState.COMPLETE, **attributes):
    """Trials that took a minute each, written by a process in the zone of now."""
    made = [trial(state, 0.1 if state == TrialState.COMPLETE else None, **attributes) for _ in ends]
    for one, end in zip(made, ends, strict=True):
        one.datetime_start, one.datetime_complete = as_optuna_says(end - timedelta(minutes=1)), as_optuna_says(end)
    return make_study(folder, made)


@settings(max_examples=15)
@given(
    writer=st.sampled_from(ZONES),
    reader=st.sampled_from(ZONES),
    change=st.sampled_from(CHANGES),
    minutes=st.integers(-100, 100),
)
def test_pace_and_time_left_do_not_depend_on_zones(writer, reader, change, minutes):
    now = change + timedelta(minutes=minutes)
    ends = [now - timedelta(minutes=ago) for ago in (90, 50, 30, 10, 5)]
    with tempfile.TemporaryDirectory() as folder:
        with in_zone(writer):
            close(study_of(Path(folder), ends))
        with in_zone(reader):
            seen = take_snapshot(url_of(Path(folder)), "s")
            pace = pace_of(seen.trials, now.astimezone())
    assert [row.ended for row in seen.trials] == ends
    assert [(row.ended - row.started).total_seconds() for row in seen.trials] == [60.0] * 5
    assert (pace.in_last_hour, pace.window_s) == (4, 51 * 60.0)
    assert time_left_s(5, 9, pace) == pytest.approx(51 * 60.0)


def test_a_worker_whose_clock_is_ahead_is_measured_by_its_own(tmp_path):
    now = CHANGES[0]
    study_of(tmp_path, [now + timedelta(hours=2, minutes=m) for m in (-50, -30, -10, 0)])
    pace = pace_of(take_snapshot(url_of(tmp_path), "s").trials, now)
    assert (pace.in_last_hour, pace.window_s) == (4, 51 * 60.0)


@settings(max_examples=15)
@given(
    zone=st.sampled_from(ZONES),
    change=st.sampled_from(CHANGES),
    minutes=st.integers(-100, 100),
    ago_s=st.sampled_from([5, GRACE_S - 5, 2 * GRACE_S + 5, 3000, 5000]),
)
@example("Europe/Berlin", BERLINS_AUTUMN, 30, 5)  # the second of the two hours
@example("Europe/Berlin", BERLINS_AUTUMN, -20, 2 * GRACE_S + 5)  # the first
def test_what_failed_just_now_is_told_from_what_failed_before(zone, change, minutes, ago_s):
    now = change + timedelta(minutes=minutes)
    with tempfile.TemporaryDirectory() as folder, in_zone(zone), pytest.MonkeyPatch.context() as patch:
        study = study_of(
            Path(folder), [now - timedelta(seconds=ago_s)], TrialState.FAIL, **{FAILURE: "killed: by a test"}
        )
        patch.setattr(abandoned.time, "time", now.timestamp)
        queue_lost_retries(study)
        assert sum(RETRY_OF in t.user_attrs for t in study.trials) == (ago_s > GRACE_S)
        close(study)


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/New_York"])
def test_the_dashboard_of_another_zone_shows_the_same_pace(tmp_path, zone):
    now = datetime.now(UTC)
    with in_zone("UTC"):
        study = study_of(tmp_path, [now - timedelta(minutes=ago) for ago in (50, 30, 10, 5)])
        study.add_trial(trial(TrialState.RUNNING, worker=vars(this_worker())))
        close(study)
    flags = ["--training", "--once", "--study-name", "s", "--storage", f"sqlite:///{tmp_path}/study.db"]
    command = [sys.executable, "-m", "barwise", "dashboard", *flags]
    shown = subprocess.run(command, env=os.environ | {"TZ": zone}, capture_output=True, text=True, check=True).stdout
    assert "4.7 trials/hour (4 finished in 51 min of the last hour)" in shown
    assert "ETA about 3 h 24 min" in shown, shown
