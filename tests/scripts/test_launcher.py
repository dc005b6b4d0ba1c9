"""The launcher on a stand-in repository: starting, refusing, stopping, failing clearly."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from market.dataset import save_dataset
from market.sample import synthetic_dataset
from tests.support import small_disk
from tests.support.launcher_clone import (
    DEMONSTRATION,
    ROOT,
    Clone,
    assert_one_line_error,
    clean_environment,
    is_running,
    make_stub_venv,
    start_in_own_session,
    wait_until,
)
from train.study.eligibility import NO_SIGNAL_CODE
from train.study.split_plan import TIMEFRAMES


@pytest.fixture
def decoy(clone: Clone) -> Iterator[subprocess.Popen]:
    """A process of somebody else's with the trainer's very words in its command line."""
    words = [str(clone.trainer), "--study-name", "cappuccino_5m_vectorized"]
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(90)", *words])
    yield process
    process.kill()
    process.wait()


def test_a_start_trains_in_the_background_and_says_how_to_watch_query_and_stop(clone):
    result = clone.launch()
    assert result.returncode == 0, result.stderr
    assert is_running(clone.pid)
    assert os.getsid(clone.pid) == clone.pid, "still in the terminal's session"
    for word in ("watch:", "tail -f", "status:", "--status", "stop:", "--stop", "Using Vectorized Environments: 12"):
        assert word in result.stdout


def test_the_trainer_gets_the_defaults_and_flags_after_them_win(clone):
    result = clone.launch("--n-trials", "4", "--break-step", "100")
    assert result.returncode == 0, result.stderr
    flags = next(line for line in clone.log.read_text().splitlines() if line.startswith("stub trainer"))
    for pair in ("'--n-trials', '500'", "'--gpu', '-1'", "'--timeframe', '5m'", "'--n-envs', '12'"):
        assert pair in flags
    assert "'--study-name', 'cappuccino_5m_vectorized'" in flags
    assert flags.index("'--n-trials', '4'") > flags.index("'--n-trials', '500'")


def test_a_relative_data_dir_starts_at_the_callers_folder(clone, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "my bars").mkdir(parents=True)
    (elsewhere / "my bars" / "manifest.json").write_text('{"kind": "real"}')
    result = clone.launch("--data-dir", "my bars", cwd=elsewhere)
    assert result.returncode == 0, result.stderr
    assert f"'--data-dir', '{elsewhere}/my bars'" in clone.log.read_text()


def test_the_study_and_its_data_follow_the_timeframe(clone):
    clone.launch("--timeframe=1h")
    log = clone.log.read_text()
    assert "'cappuccino_1h_vectorized'" in log
    assert f"'{clone.root}/data/1h'" in log


def test_a_data_dir_without_a_dataset_is_refused_before_anything_starts(clone):
    assert_one_line_error(clone.launch("--data-dir", "/nowhere"), "/nowhere", "manifest.json")
    assert not clone.pid_file.exists()


def test_a_folder_of_datasets_is_accepted(clone, tmp_path):
    (tmp_path / "all" / "5m").mkdir(parents=True)
    (tmp_path / "all" / "5m" / "manifest.json").write_text('{"kind": "real"}')
    assert clone.launch("--data-dir", str(tmp_path / "all")).returncode == 0


def test_a_relative_storage_starts_at_the_callers_folder(clone, tmp_path):
    clone.launch("--storage", "sqlite:///mine.db", cwd=tmp_path)
    assert f"'--storage', 'sqlite:///{tmp_path}/mine.db'" in clone.log.read_text()


def test_real_bars_are_downloaded_when_there_are_none(clone):
    result = clone.launch()
    assert "stub download" in result.stdout
    assert "SYNTHETIC" not in result.stdout


def test_downloaded_bars_are_not_downloaded_again(clone):
    clone.launch()
    clone.launch("--stop")
    shutil.rmtree(clone.root / "data" / "5m")
    assert "stub download" not in clone.launch().stdout


def test_without_a_network_the_sample_market_is_made_and_labelled(clone):
    result = clone.launch(STUB_DOWNLOAD_ERROR="no network")
    assert "no network" in result.stderr
    assert "*** SYNTHETIC DATA" in result.stdout
    clone.launch("--stop")
    assert "*** SYNTHETIC DATA" in clone.launch().stdout, "said once only"


def test_without_a_network_the_demonstration_runs_on_a_planted_signal(clone):
    result = clone.launch(STUB_DOWNLOAD_ERROR="no network")
    assert "*** SYNTHETIC DATA, planted signal: " in result.stdout
    log = clone.log.read_text()
    assert DEMONSTRATION in log
    assert "'500'" not in log
    assert "'cappuccino_5m_vectorized'" in log


@pytest.mark.parametrize(("flag", "name", "law"), [("--sample", "sample", "planted signal"),
                                                   ("--no-signal", "no_signal", "no signal")])  # fmt: skip
def test_a_demonstration_that_is_asked_for_downloads_nothing_and_has_names_of_its_own(clone, flag, name, law):
    result = clone.launch(flag)
    assert result.returncode == 0, result.stderr
    assert "stub download" not in result.stdout
    assert f"*** SYNTHETIC DATA, {law}: {clone.root}/data/5m_{name} " in result.stdout
    assert ("'--no-signal'" in result.stdout) == (flag == "--no-signal")
    log = clone.log.read_text()
    assert DEMONSTRATION in log
    assert f"'cappuccino_5m_{name}'" in log
    assert flag not in log, "no flag of the trainer"


def test_flags_win_over_those_of_the_demonstration(clone):
    clone.launch("--sample", "--n-trials", "4")
    log = clone.log.read_text()
    assert log.index("'--n-trials', '4'") > log.index("'--n-trials', '12'")


def test_a_sample_of_given_data_is_refused(clone, tmp_path):
    assert_one_line_error(clone.launch("--no-signal", "--data-dir", str(tmp_path)), "--data-dir", "--no-signal")
    assert not clone.pid_file.exists()


def test_a_second_start_is_refused_and_changes_nothing(clone):
    clone.launch()
    first = clone.pid
    assert_one_line_error(clone.launch(), "already running", str(first), "--stop")
    assert clone.pid == first
    assert is_running(first)


def test_of_two_simultaneous_starts_exactly_one_trains(clone):
    """Set-up waits until the other start has come as far, or has ended: without the lock both would go on."""
    download = clone.root / "scripts" / "data" / "download_bars.py"
    at_work, go = clone.root / "in progress", clone.root / "go"
    at_work.mkdir()
    wait = f"import os, pathlib, time\npathlib.Path({str(at_work)!r}, str(os.getpid())).touch()\n"
    wait += f"while not os.path.exists({str(go)!r}): time.sleep(0.02)\n"
    download.write_text(wait + download.read_text())
    starts = [
        subprocess.Popen(clone.command, env=clean_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(2)
    ]
    wait_until(lambda: len(list(at_work.iterdir())) + sum(start.poll() is not None for start in starts) == 2)
    assert len(list(at_work.iterdir())) == 1
    go.touch()
    assert sorted(start.wait(timeout=60) for start in starts) == [0, 1]
    assert clone.log.read_text().count("stub trainer") == 1


def test_a_start_in_set_up_is_seen_by_status_and_ended_by_stop(clone):
    assert clone.launch("--status").returncode == 3
    download = clone.root / "scripts" / "data" / "download_bars.py"
    words = download.read_text()
    began = clone.root / "began"
    download.write_text(f"import os, time\nopen({str(began)!r}, 'w').write(str(os.getpid()))\ntime.sleep(90)\n")
    setup = start_in_own_session(clone)
    wait_until(lambda: began.is_file() and began.read_text())
    status = clone.launch("--status")
    assert (status.returncode, status.stdout) == (0, f"setup is running (pid {setup.pid})\n")
    assert_one_line_error(clone.launch(), "another start", "--status")
    stop = clone.launch("--stop")
    assert stop.returncode == 0, stop.stderr
    assert f"stopped setup (pid {setup.pid})" in stop.stdout
    assert not is_running(int(began.read_text()))
    assert setup.wait(timeout=20) == -signal.SIGTERM
    setup.stdout.close()
    assert clone.launch("--status").returncode == 3
    download.write_text(words)
    assert clone.launch().returncode == 0, "the lock is free again"


def test_a_reused_pid_in_the_lock_file_leads_to_no_kill(clone, decoy):
    ticks = Path(f"/proc/{decoy.pid}/stat").read_text().rpartition(")")[2].split()[19]
    clone.pid_file.parent.mkdir()
    for written in (ticks, str(int(ticks) - 1)):
        (clone.pid_file.parent / "worker_vectorized.lock").write_text(f"{decoy.pid}\n{written}\n")
        assert clone.launch("--status").returncode == 3
        assert clone.launch("--stop").returncode == 0
    assert decoy.poll() is None


@pytest.mark.parametrize("timeframe", ["7m", "", "5m 15m"])
def test_an_unknown_timeframe_is_refused_before_any_set_up(clone, timeframe):
    result = clone.launch("--timeframe", timeframe)
    assert_one_line_error(result, "--timeframe", " ".join(TIMEFRAMES))
    assert result.stdout == ""
    assert not clone.log.parent.exists()


def test_stop_ends_our_own_process_and_a_decoy_survives(clone, decoy):
    clone.launch()
    pid = clone.pid
    result = clone.launch("--stop")
    assert result.returncode == 0, result.stderr
    assert not is_running(pid)
    assert not clone.pid_file.exists()
    assert decoy.poll() is None


def test_a_pid_file_with_a_reused_pid_leads_to_no_kill(clone, decoy):
    clone.launch()
    started, first_ticks = clone.pid, clone.pid_file.read_text().split()[1]
    clone.launch("--stop")
    clone.pid_file.write_text(f"{decoy.pid}\n{int(first_ticks) - 1}\nsome command\n")
    assert clone.launch("--stop").returncode == 0
    assert clone.launch("--status").returncode == 3
    assert decoy.poll() is None
    assert clone.launch().returncode == 0, "a stale pid file blocks no start"
    assert clone.pid not in (started, decoy.pid)


def test_the_right_start_time_with_another_command_leads_to_no_kill(clone):
    stranger = subprocess.Popen(["sleep", "90"])
    try:
        ticks = Path(f"/proc/{stranger.pid}/stat").read_text().rpartition(")")[2].split()[19]
        clone.pid_file.parent.mkdir()
        clone.pid_file.write_text(f"{stranger.pid}\n{ticks}\nsleep 90\n")
        clone.launch("--stop")
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.parametrize("content", ["", "\n", "garbage\nmore\n", "1\n", "-1\n5\nx\n"])
def test_a_damaged_pid_file_is_not_a_running_trainer(clone, content):
    clone.pid_file.parent.mkdir()
    clone.pid_file.write_text(content)
    assert clone.launch("--status").returncode == 3
    assert clone.launch("--stop").returncode == 0


def test_stop_says_so_when_the_trainer_does_not_end(clone):
    clone.launch("--ignore-sigterm")
    pid = clone.pid
    assert_one_line_error(clone.launch("--stop", STOP_WAIT_S="1"), str(pid), "still running", "kill -KILL")
    assert is_running(pid)


def test_a_trainer_that_dies_at_once_shows_its_last_lines(clone):
    result = clone.launch("--die")
    assert_one_line_error(result, "exit code 1")
    assert "ValueError: the stub was told to die" in result.stdout
    assert clone.launch("--status").returncode == 3
    assert clone.launch().returncode == 0


def test_a_study_that_is_complete_already_is_no_failure(clone):
    result = clone.launch("--complete")
    assert result.returncode == 0, result.stderr
    assert "4 of 4 trials finished" in result.stdout
    assert "larger --n-trials" in result.stdout
    assert "hyperparameters" not in result.stdout


def test_a_study_whose_policies_stay_in_cash_is_a_finding_with_a_code_of_its_own(clone):
    for action in ((), ("--foreground",)):
        result = clone.launch(*action, "--stays-in-cash")
        assert result.returncode == NO_SIGNAL_CODE
        assert "no tradable signal found at these costs" in result.stdout
        assert "Traceback" not in result.stderr
    assert f"readonly NO_SIGNAL_CODE={NO_SIGNAL_CODE} " in (ROOT / "start_vectorized_training.sh").read_text()


def test_a_trainer_that_never_trains_is_reported_after_the_wait(clone):
    clone.trainer.write_text("import time\nprint('loading', flush=True)\ntime.sleep(90)\n")
    assert_one_line_error(clone.launch(FIRST_TRIAL_WAIT_S="1"), "no trial has started training", "--stop")


def test_status_tells_running_from_not_running(clone):
    assert clone.launch("--status").returncode == 3
    clone.launch()
    result = clone.launch("--status")
    assert result.returncode == 0
    assert str(clone.pid) in result.stdout
    assert "Using Vectorized Environments" in result.stdout


def test_the_foreground_trains_in_place_and_ctrl_c_ends_it(clone):
    process = start_in_own_session(clone, "--foreground")
    wait_until(lambda: clone.log.is_file() and "Using Vectorized" in clone.log.read_text())
    assert clone.pid == process.pid
    assert clone.launch("--status").returncode == 0
    assert_one_line_error(clone.launch(), "already running")
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=20)
    assert process.returncode != 0
    assert "Using Vectorized" in output
    assert clone.launch("--status").returncode == 3


def test_the_wait_survives_ctrl_c_and_training_goes_on(clone):
    clone.trainer.write_text("import time\nprint('loading', flush=True)\ntime.sleep(90)\n")
    process = start_in_own_session(clone)
    wait_until(lambda: clone.log.is_file() and "loading" in clone.log.read_text())
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "continues in the background" in output
    assert is_running(clone.pid)


def test_a_log_folder_that_cannot_be_used_is_a_one_line_error(clone):
    (clone.root / "logs").write_text("a file where the folder should be")
    assert_one_line_error(clone.launch(), "logs")


def test_a_lock_file_that_is_a_link_is_refused_and_what_it_leads_to_stays(clone):
    (clone.root / "logs").mkdir(exist_ok=True)
    (clone.root / "mine").write_text("keep")
    (clone.root / "logs" / "worker_vectorized.lock").symlink_to(clone.root / "mine")
    assert_one_line_error(clone.launch(), "worker_vectorized.lock must not be a symbolic link", "delete it")
    assert (clone.root / "mine").read_text() == "keep"


def test_a_log_folder_that_cannot_be_written_is_a_one_line_error_and_starts_nothing(clone):
    """On a read-only disk, which root cannot write either."""
    if reason := small_disk.why_not():
        pytest.skip(reason)
    logs = clone.log.parent
    logs.mkdir()
    mounted = "import os, sys, pathlib; from tests.support.small_disk import mount; "
    mounted += "mount(pathlib.Path(sys.argv[1]), 4096, read_only=True); os.execvp(sys.argv[2], sys.argv[2:])"
    result = subprocess.run(
        [sys.executable, "-c", mounted, str(logs), *clone.command], env=clean_environment() | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert_one_line_error(result, f"cannot write in {logs}", "make the folder writable")
    assert result.stdout == ""
    assert list(logs.iterdir()) == []


def test_a_full_disk_at_the_log_is_a_one_line_error(clone):
    clone.log.parent.mkdir()
    clone.log.symlink_to("/dev/full")
    assert_one_line_error(clone.launch(), str(clone.log), "full")
    assert not clone.pid_file.exists()


def test_a_full_disk_at_the_pid_file_starts_nothing(clone):
    clone.log.parent.mkdir()
    (clone.log.parent / "worker_vectorized.pid.new").symlink_to("/dev/full")
    result = clone.launch()
    assert result.returncode != 0
    assert "nothing was started" in result.stderr
    assert "stub trainer" not in clone.log.read_text()


def test_an_installed_torch_is_pinned_and_left_out(clone):
    clone.launch()
    calls = (clone.root / ".venv" / "pip-calls.txt").read_text()
    assert "torch==2.99.0+stub" in calls
    assert "torch==2.13.0" not in calls
    assert "install --no-deps" in calls


def test_the_same_environment_is_not_installed_twice(clone):
    clone.launch()
    clone.launch("--stop")
    assert "up to date" in clone.launch().stdout
    calls = (clone.root / ".venv" / "pip-calls.txt").read_text()
    assert calls.count("install -c") == calls.count("--no-deps -e") == 1


def test_an_active_environment_is_used_instead_of_our_own(clone, tmp_path):
    active = tmp_path / "my env"
    make_stub_venv(active)
    shutil.rmtree(clone.root / ".venv")
    result = clone.launch(VIRTUAL_ENV=str(active))
    assert result.returncode == 0, result.stderr
    assert not (clone.root / ".venv").exists()
    assert (active / "pip-calls.txt").exists()


def test_an_active_environment_that_is_gone_is_a_one_line_error(clone):
    assert_one_line_error(clone.launch(VIRTUAL_ENV="/nowhere"), "/nowhere", "deactivate")


@pytest.mark.parametrize("secret", ["me:secret@localhost/x", "me:a@secret@localhost/x", "localhost/x?password=secret"])
def test_a_password_in_the_storage_url_is_not_written_down(clone, secret):
    result = clone.launch("--storage", f"postgresql://{secret}")
    written = result.stdout.replace(clone.log.read_text(), "") + clone.pid_file.read_text()
    launcher_lines = [line for line in clone.log.read_text().splitlines() if "launcher:" in line]
    assert "secret" not in "".join(launcher_lines)
    assert "secret" not in "\n".join(line for line in written.splitlines() if not line.startswith("stub trainer"))


def test_the_synthetic_label_is_the_one_that_datasets_carry(clone, tmp_path):
    save_dataset(synthetic_dataset("5m", 500, ("BTC", "ETH"), 0), tmp_path / "sample")
    assert "*** SYNTHETIC DATA" in clone.launch("--data-dir", str(tmp_path / "sample")).stdout
