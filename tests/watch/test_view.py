"""What the frame says, at any width, of studies in every state; and the figures behind it, by hand."""

from __future__ import annotations

import io
import time
from dataclasses import replace
from datetime import timedelta

import pytest
from rich.console import Console

from tests.support.fabricated_study import HELD, identity
from tests.support.made_studies import LABEL, NOW
from train.records.record_files import plain
from train.store.worker_status import WorkerStatus
from train.watch.logtail import last_lines
from train.watch.machine import Gpu, Machine
from train.watch.pace import best_so_far, pace_of, sparkline, time_left_s
from train.watch.snapshot import Best, Rates, Snapshot, TrialRow
from train.watch.view import Frame, gpu_text
from train.watch.workers import ALIVE, DEAD, SILENT, UNKNOWN, Worker

GIB = 2**30
MACHINE = Machine(8, 0.5, 3.25, 6 * GIB, 16 * GIB, (), "none: no driver")
GPU = Gpu(0, 0.87, 12 * GIB, 250.4, 61.0)
PARAMS = {f"setting_{i}": 0.001 * i for i in range(27)}
OURS = {"identity": identity(holdout={"5m": plain(HELD)}), "data": [LABEL], "target": 20}


def row(number, state="COMPLETE", value=None, minutes_ago=10.0, took_s=60.0):
    ended = NOW - timedelta(minutes=minutes_ago)
    return TrialRow(number, state, ended - timedelta(seconds=took_s), None if state == "RUNNING" else ended, value)


def study(trials=(), best=None, attrs=None, reasons=None, **changed):
    made = Snapshot(1, "my_study", (), True, 1, OURS if attrs is None else attrs, tuple(trials), best, (),
                    reasons or {}, None)  # fmt: skip
    return replace(made, **changed)


def working(state=ALIVE, **said):
    status = WorkerStatus("box", 7, 1.0, time.time(), **said) if said else None
    return Worker("box", 7, state, 3, status, 5.0, 0.5, 2 * GIB)


def drawn(snapshot, tmp_path, width=100, height=None, workers=(), encoding="utf-8", **changed):
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=file, width=width, force_terminal=False, color_system=None, highlight=False)
    frame = replace(Frame(snapshot, workers, "", MACHINE, tmp_path / "worker.log", NOW), **changed)
    console.print(frame, height=height, end="")
    file.seek(0)
    return file.read()


COMPLETED = [row(0, value=-1.0, minutes_ago=50), row(1, "PRUNED", minutes_ago=40), row(2, value=0.5, minutes_ago=30)]
BEST = Best(2, 0.5, PARAMS, {0: 1.25, 1: -0.25})


# --------------------------------------------------------------------------------------------------------------- words
def test_a_running_study_is_told_in_full(tmp_path):
    (tmp_path / "worker.log").write_text("first\nlast words\n")
    trials = [*COMPLETED, row(3, "RUNNING"), row(4, "FAIL", minutes_ago=5)]
    at = {"split": 2, "n_splits": 6, "env_steps": 31_000, "total_env_steps": 100_000, "trial": 3}
    worker = working(**at, explore_steps_per_s=1234.0, update_samples_per_s=567.0, validation_score=0.01)
    snapshot = study(trials, BEST, reasons={4: "split 1: loss is nan", 1: "worse"}, other_studies=("b",))
    text = drawn(snapshot, tmp_path, workers=[worker], machine=replace(MACHINE, gpus=(GPU,)))
    for part in (
        "study my_study", "1 more in this database", LABEL[:60],
        "3 of 20 trials finished (15%)", "2 complete, 1 pruned, 1 failed, 1 running",
        # 3 trials from the start of the oldest, 51 minutes ago, on: 3 / 0.85 h
        "3.5 trials/hour (3 finished in 51 min of the last hour)",
        # 17 left at 3 in 51 minutes: 289 minutes
        "ETA about 4 h 49 min (16:49)",
        "alive box pid 7  trial 3  split 2 (3 of 6), 31% of 100,000 steps", "0.5 cores, 2.0 GiB, validation +0.01",
        "explore 1,234 env-steps/s, update 567 samples/s (now)",
        "+0.5000  trial 2", "+1.25 -0.25", "largest of 2 completed trials", "it has not been checked on the hold-out",
        "CPU 50% of 8 cores, load 3.2; memory 6.0 GiB of 16.0 GiB", "GPU 0: 87% busy, 12.0 GiB used, 250 W, 61 C",
        "4 failed split 1: loss is nan", "1 pruned worse", "2 complete +0.5000",
        "setting_26", "0.026", "last words",
    ):  # fmt: skip
        assert part in text, part


def test_a_best_trial_that_loses_to_equal_weight_is_said_to(tmp_path):
    text = drawn(study([row(0, value=-0.5)], Best(0, -0.5, PARAMS, {})), tmp_path)
    assert "-0.5000  trial 0  not better than equal weight" in text
    assert "not better" not in drawn(study(COMPLETED, BEST), tmp_path)


@pytest.mark.parametrize(
    ("snapshot", "workers", "words"),
    [
        (study(), [], ["no trial yet", "trials/hour unknown", "none: no trial is running", "rates unknown",
                       "none: no trial completed", "no ETA: 20 trials are left and no worker is alive"]),
        (study([row(0, "FAIL"), row(1, "FAIL")], reasons={1: "no memory"}), [],
         ["0 of 20", "2 failed", "none: no trial completed (2 failed)", "1 failed no memory",
          "0 failed no reason given"]),
        (study([row(0, "PRUNED")]), [working()], ["1 of 20", "1 pruned", "no trial completed (1 pruned)", "ETA about"]),
        (study([row(0, "RUNNING")]), [working()], ["ETA unknown: no trial has finished yet"]),
        (study(COMPLETED, BEST), [working(DEAD)], ["no worker is alive", "dead box pid 7", "last heartbeat 5 s ago"]),
        (study(COMPLETED, BEST), [working(SILENT)], ["no worker is alive", "silent box pid 7"]),
        (study(COMPLETED, BEST), [Worker("unknown", None, UNKNOWN, 3, None, None)],
         ["unknown unknown process  trial 3"]),
        (study(COMPLETED, BEST, OURS | {"target": 3}), [], ["3 of 3 trials finished (100%)", "finished: all"]),
        (study(COMPLETED, BEST, OURS | {"target": 2}), [], ["3 of 2 trials finished (100%)", "finished: all"]),
        (study(COMPLETED, BEST, OURS | {"target": True}), [], ["target unknown"]),
        (study(COMPLETED, Best(2, 0.5, {}, {}), {}, maximize=False), [],
         ["data unknown: 1_optimize_unified.py did not", "(minimized)", "target unknown", "ETA unknown"]),
        (study(COMPLETED, BEST, OURS | {"identity": identity(run=1)}), [],
         ["cannot be read: the study's identity: field run: expected object, got int"]),
        (study(COMPLETED, None, {}, n_objectives=2), [], ["with 2 objectives no single trial is best"]),
        (study([row(0, value=None)]), [],
         ["0 complete no finite value", "the completed trial is not eligible to be best: no finite value"]),
        (study([replace(row(0, value=9.0), violates={"max_drawdown": 0.1})], reasons={0: "it lost 60 %"}), [],
         ["0 complete +9.0000, not eligible to be best: it lost 60 %", "the completed trial is not eligible to be best",
          "--max-drawdown violated by 1"]),
        (study([row(0, value=1.0, minutes_ago=200)], BEST), [working()],
         ["0 trials/hour in the last hour; before that, one per 3 h 21 min"]),
        (study(COMPLETED, BEST, rates=Rates(1, 5.0, 6.0)),
         [working(DEAD, explore_steps_per_s=9.0, update_samples_per_s=9.0)],
         ["explore 5 env-steps/s, update 6 samples/s (last split of trial 1)"]),
    ],
)  # fmt: skip
def test_every_state_of_a_study_is_told_as_it_is(tmp_path, snapshot, workers, words):
    text = " ".join(drawn(snapshot, tmp_path, width=110, workers=workers).split())
    for part in words:
        assert " ".join(part.split()) in text, part


def test_several_workers_rates_are_added(tmp_path):
    workers = [working(explore_steps_per_s=1000.0, update_samples_per_s=10.0)] * 3
    text = drawn(study(), tmp_path, workers=workers)
    assert "explore 3,000 env-steps/s, update 30 samples/s (now, 3 workers together)" in text


def test_a_figure_that_the_driver_does_not_tell_is_unknown():
    text = gpu_text(Gpu(1, None, None, None, None))
    assert text == "GPU 1: busy unknown, memory unknown, power unknown, temperature unknown"


def test_old_figures_are_shown_under_the_reason(tmp_path):
    first_line = drawn(study(), tmp_path, trouble="database is locked; showing figures from 9 s ago").splitlines()[0]
    assert first_line.strip() == "database is locked; showing figures from 9 s ago"


# --------------------------------------------------------------------------------------------------------------- shape
@pytest.mark.parametrize("width", [1, 10, 40, 80, 119, 120, 160, 300])
def test_no_line_is_wider_than_the_terminal(tmp_path, width):
    (tmp_path / "worker.log").write_text("a long line " * 99 + "\n" + "漢字" * 200 + "\n")
    trials = [*COMPLETED, *(row(n, "FAIL") for n in range(3, 300))]
    snapshot = study(trials, BEST, reasons={299: "a reason " * 40})
    workers = [working(split=0, n_splits=6, env_steps=1, total_env_steps=10)] * 3
    console = Console(width=width)
    lines = drawn(snapshot, tmp_path, width=width, workers=workers).splitlines()
    assert max(console.render_str(line, markup=False, emoji=False).cell_len for line in lines) <= max(width, 2)


def test_a_low_terminal_shows_the_beginning_and_says_that_there_is_more(tmp_path):
    lines = drawn(study(COMPLETED, BEST), tmp_path, width=80, height=24).splitlines()
    assert len(lines) == 24
    assert lines[0].startswith("study my_study")
    assert lines[-1].split(maxsplit=1)[1].startswith("more lines; enlarge the terminal to see them")
    tall = drawn(study(COMPLETED, BEST), tmp_path, width=80).splitlines()
    assert int(lines[-1].split()[0]) == len(tall) - 23


def test_the_log_fills_what_a_tall_terminal_has_left(tmp_path):
    (tmp_path / "worker.log").write_text("\n".join(f"line {n}" for n in range(99)))
    body = len(drawn(study(), tmp_path, width=80, height=500).splitlines()) - 12
    assert drawn(study(), tmp_path, width=80, height=body + 6).count("line ") == 6


def test_an_ascii_terminal_gets_ascii(tmp_path):
    text = drawn(study(COMPLETED, BEST), tmp_path, encoding="ascii")
    assert text.isascii()
    assert "####" in text


# ------------------------------------------------------------------------------------------------------------- figures
def test_a_pace_is_measured_over_the_part_of_the_hour_in_which_trials_ran():
    steady = [row(n, value=0.0, minutes_ago=5 + 10 * n, took_s=600) for n in range(30)]
    pace = pace_of(steady, NOW)
    assert (pace.in_last_hour, pace.per_hour, pace.window_s) == (6, 6.0, 3600.0)
    went_on = [row(0, value=0.0, minutes_ago=900), row(1, "PRUNED", minutes_ago=2, took_s=480)]
    pace = pace_of(went_on, NOW)
    assert (pace.in_last_hour, pace.per_hour, pace.window_s) == (1, 6.0, 600.0)


def test_the_pace_of_a_study_at_rest_is_that_of_the_hour_it_worked(tmp_path):
    trials = [row(n, value=0.0, minutes_ago=600 + 10 * n, took_s=600) for n in range(30)]
    for now in (NOW, NOW + timedelta(days=3)):
        text = drawn(study(trials, BEST), tmp_path, now=now)
        assert "6.0 trials/hour (6 finished in the last active hour)" in text


def test_a_pace_without_a_trial_in_the_hour_is_that_of_the_last_few():
    slow = [row(n, value=0.0, minutes_ago=90 + 120 * n, took_s=1800) for n in range(9)]
    pace = pace_of(slow, NOW)
    # 5 trials since the fifth last began, 90 + 480 + 30 minutes ago
    assert (pace.in_last_hour, pace.per_hour, pace.window_s) == (0, 0.5, 36_000.0)
    assert time_left_s(4, 10, pace) == 12 * 3600.0


def test_failed_running_and_foreign_trials_do_not_count_towards_the_pace():
    trials = [row(0, "FAIL"), row(1, "RUNNING"), TrialRow(2, "COMPLETE", None, None, 1.0)]
    assert pace_of(trials, NOW).per_hour is None
    assert time_left_s(0, 10, pace_of(trials, NOW)) is None
    assert time_left_s(0, None, pace_of(COMPLETED, NOW)) is None


def test_best_so_far_goes_over_completed_trials_in_their_order():
    trials = [row(0, value=1.0), row(1, "PRUNED"), row(2, value=0.5), row(3, value=2.0), row(4, value=None)]
    assert best_so_far(trials, maximize=True) == [1.0, 1.0, 2.0]
    assert best_so_far(trials, maximize=False) == [1.0, 0.5, 0.5]


def test_sparklines_by_hand():
    assert sparkline([0.0, 0.5, 1.0], 9, "abc") == "abc"
    assert sparkline([0.0, 1.0, 2.0, 3.0, 4.0], 3, "abcde") == sparkline([1.0, 3.0, 4.0], 3, "abcde")
    assert sparkline([3.0, 3.0], 9, "abc") == "bb"
    assert sparkline([], 9) == sparkline([1.0], 0) == ""
    assert len(sparkline(list(range(5000)), 60)) == 60


# ----------------------------------------------------------------------------------------------------------------- log
def test_the_last_lines_of_a_log_are_plain(tmp_path):
    path = tmp_path / "x.log"
    path.write_bytes(
        b"x" * 40_000 + b"\nold\n 10%|#   |\r 90%|### |\r\n"
        b"\x1b[31mred\x1b[0m \x1b]0;title\x07tab\there\xff\n\n\x1b[2J\n"
    )
    assert last_lines(path, 3) == (["old", " 90%|### |", "red tab    here�"], "")
    assert last_lines(path, 1)[0] == ["red tab    here�"]


def test_the_log_of_another_study_is_not_shown(tmp_path):
    log = tmp_path / "worker.log"
    started = "2026-01-01 00:00:00 study {}: 0 of 9 trials finished, database sqlite:///x.db, results in r\n"
    for names, is_shown in ((("other", "my_study"), True), (("my_study", "other"), False)):
        log.write_text("".join(map(started.format, names)) + "some words\n")
        text = drawn(study(COMPLETED, BEST), tmp_path, width=300)
        assert ("some words" in text) == is_shown
        assert ("is a log of study other; give --log FILE" in text) != is_shown


def test_a_log_that_is_not_there_or_empty_is_said_to_be(tmp_path):
    (tmp_path / "empty").touch()
    assert last_lines(tmp_path / "none", 5) == ([], f"{tmp_path / 'none'} does not exist")
    assert last_lines(tmp_path / "empty", 5) == ([], f"{tmp_path / 'empty'} is empty")
    assert last_lines(tmp_path, 5)[1].endswith("cannot be read: Is a directory")
