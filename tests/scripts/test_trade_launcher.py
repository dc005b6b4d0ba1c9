"""`start_vectorized_training.sh --trade` on a stand-in repository: set-up, start, refusals, what it leaves alone."""

import json
import os
import re
import signal
import subprocess

import pytest

from tests.support.launcher_clone import (
    DEMONSTRATION,
    Clone,
    assert_one_line_error,
    clean_environment,
    is_running,
    start_in_own_session,
    wait_until,
)

QUICK_STUDY = (
    "import os, sys\nprint('stub trainer', sys.argv[1:])\nsys.exit(int(os.environ.get('STUB_STUDY_CODE', 0)))\n"
)
SAMPLE_STUDY = "cappuccino_5m_sample"


@pytest.fixture
def fresh(clone: Clone) -> Clone:
    """A clone without deployments, whose studies end at once."""
    clone.trainer.write_text(QUICK_STUDY)
    return clone


@pytest.fixture
def deployed(clone: Clone) -> Clone:
    """A clone that has a deployment of a study of real bars."""
    deploy(clone, "my_study")
    return clone


def deploy(clone: Clone, study: str) -> None:
    folder = clone.root / "deployments" / "d1"
    folder.mkdir(parents=True)
    (folder / "deployment.json").write_text(json.dumps({"study": study}, indent=1))
    (folder.parent / "current").symlink_to("d1")


def traders_flags(clone: Clone) -> str:
    return next(line for line in clone.trader_log.read_text().splitlines() if line.startswith("stub trader"))


def replay_flags(clone: Clone) -> str:
    return f"'--broker', 'replay', '--data-dir', '{clone.root}/data/5m_sample', '--pace', '1'"


def test_a_fresh_clone_ends_in_a_running_replay_of_the_sample_market(fresh):
    result = fresh.launch("--trade", "--order-timeout", "9", STUB_DOWNLOAD_ERROR="no network")
    assert result.returncode == 0, result.stderr
    steps = ("stub dataset", "stub trainer", "stub deployer", "stub: decided on the bar of", "tail -f")
    places = [result.stdout.index(step) for step in steps]
    assert places == sorted(places)
    assert "stub download" not in result.stdout
    (trained,) = re.findall(r"^stub trainer .*", result.stdout, re.M)
    assert DEMONSTRATION in trained
    assert "--order-timeout" not in trained
    deployer = next(line for line in result.stdout.splitlines() if line.startswith("stub deployer"))
    storage = f"sqlite:///{fresh.root}/databases/optuna_cappuccino.db"
    asked = ["--once", "--allow-synthetic", "--study-name", SAMPLE_STUDY, "--storage", storage]
    assert deployer == f"stub deployer {asked}"
    assert traders_flags(fresh) == f"stub trader [{replay_flags(fresh)}, '--order-timeout', '9']"
    assert result.stdout.count("*** SYNTHETIC DATA") == 1
    for word in ("paper_trader_dashboard.py", "--trade --status", "--trade --stop", "deploy a study of real bars"):
        assert word in result.stdout
    assert os.getsid(fresh.trader_pid) == fresh.trader_pid, "still in the terminal's session"


def test_a_deployment_is_traded_at_once_with_the_users_flags(deployed):
    result = deployed.launch("--trade", "--max-drawdown", "0.1", "--allow-unproven")
    assert result.returncode == 0, result.stderr
    assert traders_flags(deployed) == "stub trader ['--max-drawdown', '0.1', '--allow-unproven']"
    assert not any(word in result.stdout for word in ("stub dataset", "stub trainer", "stub deployer", "SYNTHETIC"))


@pytest.mark.parametrize("is_link", [True, False])
def test_the_sample_study_is_replayed_again_and_the_users_flags_win(clone, is_link):
    deploy(clone, SAMPLE_STUDY)
    if not is_link:  # a file system without links
        (clone.root / "deployments" / "current").unlink()
        (clone.root / "deployments" / "current").write_text("d1")
    result = clone.launch("--trade", "--pace", "0")
    assert result.returncode == 0, result.stderr
    assert traders_flags(clone) == f"stub trader [{replay_flags(clone)}, '--pace', '0']"
    assert "stub dataset" in result.stdout, "the data was not there"
    assert "stub trainer" not in result.stdout


def test_with_another_venue_or_folder_nothing_is_trained_and_no_flag_is_added(fresh):
    for flags in (["--broker", "alpaca"], ["--broker=alpaca"], ["--live"], ["--deployments-dir", "x"]):
        result = fresh.launch("--trade", "--once", *flags)
        assert result.returncode == 0, result.stderr
        assert traders_flags(fresh) == f"stub trader {['--once', *flags]}"
        assert "stub trainer" not in result.stdout
        fresh.trader_log.unlink()


def test_a_link_that_leads_nowhere_is_left_to_the_trader(fresh):
    (fresh.root / "deployments").mkdir()
    (fresh.root / "deployments" / "current").symlink_to("gone")
    assert "stub trainer" not in fresh.launch("--trade").stdout
    assert traders_flags(fresh) == "stub trader []"


@pytest.mark.parametrize("outcome", [{"STUB_DEPLOYER_CODE": "3"}, {"STUB_NOTHING_NEW": "1"}])
def test_a_winner_that_is_refused_now_or_was_before_is_said_with_what_to_do(fresh, outcome):
    result = fresh.launch("--trade", **outcome)
    assert_one_line_error(result, "winner was refused")
    assert "auto_replace_best_5m.py --once --allow-synthetic" in result.stdout
    assert "--allow-unproven" in result.stdout
    assert not fresh.trader_log.exists()


def test_a_set_up_that_fails_starts_no_trader(fresh):
    for variable, code, words in (
        ("STUB_STUDY_CODE", "5", "stayed in cash"),
        ("STUB_STUDY_CODE", "1", "study ended with exit code 1"),
        ("STUB_DEPLOYER_CODE", "4", "deployment ended with exit code 4"),
    ):
        assert_one_line_error(fresh.launch("--trade", **{variable: code}), words)
        assert not fresh.trader_log.exists()


def test_the_traders_exit_code_is_passed_on_and_explained(deployed):
    words = {0: "has ended", 1: "exit code 1", 2: "refused to start", 4: "another trader", 5: "--resume"}
    for code, word in words.items():
        result = deployed.launch("--trade", "--end-with", str(code))
        assert result.returncode == code
        assert "the stub says why" in result.stdout
        assert word in (result.stderr if code else result.stdout)
        assert deployed.launch("--trade", "--status").returncode == 3


def test_a_trader_that_ends_after_its_first_bar_is_not_called_running(deployed):
    result = deployed.launch("--trade", "--once")
    assert result.returncode == 0, result.stderr
    assert "decided on the bar of" in result.stdout
    assert "the trader has ended" in result.stdout
    assert "running in the background" not in result.stdout


def test_trader_and_trainer_are_started_seen_and_stopped_apart(deployed):
    deployed.launch()
    trained = deployed.pid
    assert deployed.launch("--trade", "--status").returncode == 3
    assert "no trading is running here" in deployed.launch("--trade", "--stop").stdout
    assert deployed.launch("--trade").returncode == 0
    trader = deployed.trader_pid
    assert_one_line_error(deployed.launch("--trade"), "trading is already running", str(trader), "--trade --stop")
    status = deployed.launch("--status", "--trade")
    assert (status.returncode, f"pid {trader}" in status.stdout) == (0, True)
    deployed.launch("--stop")
    assert (is_running(trained), is_running(trader)) == (False, True)
    deployed.launch()
    trained = deployed.pid
    stop = deployed.launch("--trade", "--stop")
    assert f"stopped pid {trader}; coins and cash are unchanged" in stop.stdout
    assert (is_running(trained), is_running(trader)) == (True, False)


def test_a_start_in_set_up_is_seen_and_ended_as_the_traders(fresh):
    began = fresh.root / "began"
    fresh.trainer.write_text(f"import os, time\nopen({str(began)!r}, 'w').write(str(os.getpid()))\ntime.sleep(90)\n")
    setup = start_in_own_session(fresh, "--trade")
    wait_until(lambda: began.is_file() and began.read_text())
    assert fresh.launch("--status").returncode == 3
    assert "no training is running here" in fresh.launch("--stop").stdout
    assert fresh.launch("--trade", "--status").stdout == f"setup is running (pid {setup.pid})\n"
    assert_one_line_error(fresh.launch("--trade"), "another start", "--trade --status")
    assert fresh.launch("--trade", "--stop").returncode == 0
    assert not is_running(int(began.read_text()))
    assert setup.wait(timeout=20) == -signal.SIGTERM
    setup.stdout.close()


def test_the_foreground_trades_in_place_and_ends_with_the_traders_code(deployed):
    process = start_in_own_session(deployed, "--trade", "--foreground")
    wait_until(lambda: deployed.trader_log.is_file() and "decided on" in deployed.trader_log.read_text())
    assert deployed.trader_pid == process.pid
    process.terminate()
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM
    assert "stub: decided on the bar of" in output


def test_bars_longer_than_the_wait_are_no_error(deployed):
    result = deployed.launch("--trade", "--long-bars", FIRST_BAR_WAIT_S="1")
    assert result.returncode == 0, result.stderr
    assert "no decision within 1 s" in result.stdout
    assert "--trade --stop" in result.stdout
    assert is_running(deployed.trader_pid)


def test_a_long_log_does_not_end_the_launcher(deployed):
    """`tail | grep -q` and `tail | head` would, by SIGPIPE, once the log is longer than a pipe holds."""
    deployed.trader.write_text(deployed.trader.read_text().replace("\nprint(", "\ntime.sleep(0.3)\nprint(", 1))
    result = deployed.launch("--trade", "--long-log", FIRST_BAR_WAIT_S="10")
    assert result.returncode == 0, result.stderr
    assert "running in the background" in result.stdout
    assert "no decision within" not in result.stdout


def test_the_kill_switch_needs_no_set_up_and_works_beside_a_running_trader(fresh):
    """Without a deployment nothing is trained first; the stub deployment and the lock are not in its way."""
    result = fresh.launch("--trade", "--flatten", "--end-with", "0")
    assert result.returncode == 0, result.stderr
    assert "stub trader ['--flatten', '--end-with', '0']" in result.stdout
    assert "stub dataset" not in result.stdout
    fresh.launch("--trade", "--broker", "alpaca")
    trader = fresh.trader_pid
    assert fresh.launch("--trade", "--flatten", "--end-with", "1").returncode == 1
    assert fresh.trader_pid == trader


def test_help_explains_trading_and_starts_nothing(clone):
    result = clone.launch("--trade", "--help")
    assert result.stdout.startswith("usage: start_vectorized_training.sh --trade ")
    assert "--trade" in clone.launch("--help").stdout
    assert not clone.log.parent.exists()


def test_the_commands_that_are_shown_can_be_pasted(fresh):
    shown = fresh.launch("--trade", STUB_DEPLOYER_CODE="3").stdout
    (retry,) = re.findall(r"^  (.*--allow-synthetic.*)$", shown, re.M)
    variables = clean_environment()
    done = subprocess.run(["bash", "-c", retry], capture_output=True, text=True, check=True, env=variables)
    assert "'--allow-unproven'" in done.stdout
    (again,) = re.findall(r"^  (.*--trade --allow-unproven)$", shown, re.M)
    pasted = subprocess.run(["bash", "-c", again], capture_output=True, text=True, check=False, env=variables)
    assert pasted.returncode == 0, pasted.stdout + pasted.stderr
    assert traders_flags(fresh) == f"stub trader [{replay_flags(fresh)}, '--allow-unproven']"
