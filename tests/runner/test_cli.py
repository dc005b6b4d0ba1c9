"""The command line as a user runs it: subprocesses, real training on a small sample market, real SQLite files."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest

import environment_Alpaca_vectorized
from drl_agents.policy_file import load_policy
from tests.support.forked_scripts import Ended, Forked, run_script
from train.config import LEAST_BAND_BARS
from train.records.defaults import DEFAULT_AGENT
from train.records.results import read_equity
from train.study.eligibility import NO_SIGNAL_CODE
from train.study.search_tables import TABLES

REPO = Path(__file__).resolve().parents[2]
SCRIPT = REPO / "scripts" / "training" / "1_optimize_unified.py"
TIMEOUT_S = 120
# Small enough for seconds: 2 groups, so 2 splits, with a few hundred steps each.
SMALL = ("--num-paths", "1", "--k-test-groups", "1", "--break-step", "512", "--n-envs", "4")


def command(folder: Path, data: Path, *flags: str) -> list[str]:
    where = ("--storage", f"sqlite:///{folder}/s.db", "--results-dir", f"{folder}/results", "--data-dir", str(data))
    return [sys.executable, str(SCRIPT), "--study-name", "s", *where, *SMALL, *flags]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def call(arguments: list[str], cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        arguments, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )


def states(folder: Path) -> Counter:
    return Counter(t.state.name for t in load(folder).get_trials())


def load(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name="s", storage=f"sqlite:///{folder}/s.db")


def start_and_wait_for(arguments: list[str], cwd: Path, text: str) -> subprocess.Popen:
    """Start, and return once a line with `text` was logged."""
    log = cwd / "log.txt"
    process = subprocess.Popen(arguments, cwd=cwd, env=environment(), stdout=log.open("w"), stderr=subprocess.STDOUT)
    wait_for_line(process, log, text)
    return process


def start_forked(arguments: list[str], cwd: Path, text: str = "", before: Callable[[], None] | None = None) -> Forked:
    """The same without the seconds of imports; `before` is called in the new process."""
    log = cwd / "log.txt"
    log.write_text("")
    process = Forked(SCRIPT, *arguments[2:], cwd=cwd, out=log, err=log, before=before)
    wait_for_line(process, log, text)
    return process


def run_forked(arguments: list[str], cwd: Path) -> Ended:
    """To the end."""
    streams = cwd / "streams"
    streams.mkdir(exist_ok=True)
    return run_script(SCRIPT, *arguments[2:], cwd=cwd, log_dir=streams)


def wait_for_line(process: subprocess.Popen | Forked, log: Path, text: str) -> None:
    end = time.monotonic() + TIMEOUT_S
    while text not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.02)


@pytest.mark.slow
def test_a_study_reaches_its_target_exactly_and_the_same_command_adds_nothing(tmp_path, market_folder):
    arguments = command(tmp_path, market_folder, "--n-trials", "2", "--pruner", "none")
    first = call(arguments, tmp_path)
    assert first.returncode == 0, first.stderr
    for words in ("Using Vectorized Environments: 4 parallel envs", "SYNTHETIC", "ETA", "env-steps/s", "samples/s"):
        assert words in first.stdout
    assert "\x1b" not in first.stdout + first.stderr
    values = [t.value for t in load(tmp_path).trials]
    assert "hold-out: the last 450 bars of 5m" in first.stdout
    assert "on 450 bars that no trial saw" in first.stdout
    score = tmp_path / "results" / "s" / "holdout.json"
    scored = json.loads(score.read_text())
    assert (scored["trial"], len(scored["policies"])) == (load(tmp_path).best_trial.number, 2)
    settings = json.loads((score.parent / f"trial_{scored['trial']}" / "settings.json").read_text())
    assert scored["env"] == settings["env"]
    assert scored["env"]["fee_rate"] > 0
    about = json.loads((score.parent / "study.json").read_text())["holdout"]["5m"]
    assert about == scored["holdout"]
    second = run_forked(arguments, tmp_path)
    assert second.returncode == 0, second.stderr
    assert states(tmp_path) == {"COMPLETE": 2}
    assert [t.value for t in load(tmp_path).trials] == values
    third = run_forked(command(tmp_path, market_folder, "--n-trials", "3", "--resume", "--pruner", "none"), tmp_path)
    assert third.returncode == 0, third.stderr
    assert states(tmp_path) == {"COMPLETE": 3}
    assert json.loads(score.read_text()) == scored  # once, whatever came later
    check_files(tmp_path / "results" / "s")


def check_files(folder: Path) -> None:
    assert (folder / "study.png").stat().st_size > 10_000
    page = (folder / "report.html").read_text()
    assert page.endswith("</html>\n")
    assert "3 complete" in page
    assert "--resume" in page  # the last command
    for trial in range(3):
        settings = json.loads((folder / f"trial_{trial}" / "settings.json").read_text())
        assert len(settings["data"]["sha256"]) == 64
        for split in range(2):
            names = {p.name for p in (folder / f"trial_{trial}" / f"split_{split}").iterdir()}
            policies = {"policy_best.safetensors", "policy_last.safetensors"}
            assert names == policies | {"equity.npz", "band.npz", "result.json"}
            assert len(read_equity(folder / f"trial_{trial}" / f"split_{split}" / "equity.npz")["equity"]) > 1000


@pytest.mark.slow
def test_one_environment_uses_the_scalar_class_and_relative_paths_start_at_a_folder_with_blanks(
    tmp_path, market_folder
):
    folder = tmp_path / "my own study"
    folder.mkdir()
    where = ("--storage", "sqlite:///a folder/s.db", "--results-dir", "the results", "--data-dir", "my bars")
    (folder / "my bars").symlink_to(market_folder)
    flags = ("--agent", "ppo", "--n-trials", "1", "--n-envs", "1", "--pruner", "none")
    done = run_forked(command(folder, market_folder, *flags, *where), folder)
    assert done.returncode == 0, done.stderr
    assert "Using Vectorized Environments" not in done.stdout
    assert (folder / "a folder" / "s.db").is_file()
    assert (folder / "the results" / "s" / "trial_0" / "split_1" / "result.json").is_file()
    assert sorted(p.name for p in folder.iterdir()) == ["a folder", "my bars", "streams", "the results"]


@pytest.mark.slow
def test_a_study_killed_three_times_loses_nothing_and_ends_at_its_target(tmp_path, market_folder):
    flags = ("--pruner", "none", "--break-step", "4096")
    assert run_forked(command(tmp_path, market_folder, "--n-trials", "1", *flags), tmp_path).returncode == 0
    value = load(tmp_path).trials[0].value
    arguments = command(tmp_path, market_folder, "--n-trials", "3", *flags)
    for _ in range(3):
        process = start_forked(arguments, tmp_path, "Using Vectorized")
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert states(tmp_path)["RUNNING"] == 1
    done = run_forked(arguments, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "was killed" in done.stdout
    # Tried again twice, then given up for other settings.
    assert states(tmp_path) == {"COMPLETE": 3, "FAIL": 3}
    first, *killed, fourth, _ = load(tmp_path).trials
    assert first.value == value
    assert killed[0].params == killed[1].params == killed[2].params != fourth.params


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "times", "code"), [(signal.SIGTERM, 1, 143), (signal.SIGINT, 1, 130), (signal.SIGINT, 2, 130)]
)
def test_a_stopped_study_leaves_no_running_trial_and_says_how_to_go_on(tmp_path, market_folder, number, times, code):
    arguments = command(tmp_path, market_folder, "--n-trials", "3", "--pruner", "none", "--break-step", "200000")
    start = start_and_wait_for if times == 1 and number == signal.SIGINT else start_forked
    process = start(arguments, tmp_path, "Using Vectorized")
    time.sleep(1.0)
    for _ in range(times):
        process.send_signal(number)
        time.sleep(0.01)
    assert process.wait(timeout=30) == code
    log = (tmp_path / "log.txt").read_text()
    assert f"stopped by {signal.Signals(number).name}" in log
    assert f"to continue: {shlex.join(arguments)}" in log
    assert "Traceback" not in log
    assert states(tmp_path) == {"FAIL": 1, "WAITING": 1}


def test_ctrl_c_while_libraries_are_loaded_is_no_traceback(tmp_path):
    arguments = command(tmp_path, tmp_path / "none")
    process = subprocess.Popen(arguments, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE)
    while "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30) == (None, b"1_optimize_unified.py: interrupted\n")
    assert process.returncode == 130
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_three_workers_together_stop_exactly_at_the_target(tmp_path, market_folder):
    arguments = command(tmp_path, market_folder, "--n-trials", "5", "--pruner", "none")
    folders = [tmp_path / f"worker {number}" for number in range(3)]
    for folder in folders:
        folder.mkdir()
    workers = [start_forked(arguments, folder) for folder in folders]
    assert [worker.wait() for worker in workers] == [0, 0, 0], [(f / "log.txt").read_text() for f in folders]
    # A policy that hardly traded is PRUNED, whatever the pruner, and finished too; it says so.
    found = states(tmp_path)
    assert found["COMPLETE"] + found["PRUNED"] == 5 == sum(found.values())
    for trial in load(tmp_path).trials:
        reason = trial.user_attrs.get("pruned", "")
        assert trial.state.name == "COMPLETE" or "exposure" in reason or "Sharpe ratio is undefined" in reason
    assert len({str(t.params) for t in load(tmp_path).trials}) == 5


REFUSED = {
    "no trials": (("--n-trials", "0"), "--n-trials must be at least 1"),
    "no environments": (("--n-envs", "0"), "--n-envs must be at least 1"),
    "more environments than samples": (
        ("--agent", "ppo", "--n-envs", "1025"),
        "--n-envs must be at most 1024, the smallest number of samples per update",
    ),
    "unknown coins": (("--tickers", "BTC", "NOPE"), "NOPE"),
    "no data": (("--data-dir", "nowhere"), "build_dataset.py"),
    "unknown gpu": (("--gpu", "99"), "--gpu 99"),
    "not a url": (("--storage", "nonsense"), "--storage nonsense"),
    "negative timeout": (("--timeout", "-1"), "--timeout"),
    "timeframe of other data": (("--timeframe", "1h"), "--timeframe 1h"),
    "too many groups": (("--k-test-groups", "2"), "--k-test-groups"),
    "k in rolling mode": (("--mode", "rolling"), "--k-test-groups does not apply"),
    "k in expanding mode": (("--mode", "expanding"), "--mode expanding, where each test fold is one group"),
    "k in kfold mode": (("--mode", "kfold"), "--mode kfold, where each test fold is one group"),
    "all held out": (("--holdout", "1"), "--holdout must be a fraction of the data"),
    "too little held out": (("--holdout", "0.001"), "--holdout 0.001 leaves 0 tradable bars of 5m in the hold-out"),
    "one timeframe only": (("--mode", "multi-timeframe"), "at least two datasets"),
    "episode too long": (("--agent", "ppo", "--episode-bars", "100000"), "--episode-bars must be at most"),
    "budget too small": (("--break-step", "10"), "--break-step must be at least"),
    "name with a slash": (("--study-name", "../x"), "--study-name"),
    "resume without a study": (("--resume",), "there is no database"),
    "unknown mode": (("--mode", "sideways"), "--mode"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_value_is_refused_by_name_before_anything_is_written(
    tmp_path, market_folder, script, capsys, monkeypatch, case
):
    flags, words = REFUSED[case]
    monkeypatch.chdir(tmp_path)
    try:
        code = script.main(command(tmp_path, market_folder, *flags)[2:])
    except SystemExit as argparse_refused:
        code = argparse_refused.code
    assert code == 2
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_refusal_is_one_line_and_quick(tmp_path, market_folder):
    before = os.times()
    done = call(command(tmp_path, market_folder, "--n-trials", "0"), tmp_path)
    after = os.times()
    assert done.returncode == 2
    assert done.stderr == "1_optimize_unified.py: --n-trials must be at least 1; received 0\n"
    # Its own processor time: other work on the machine is not its fault.
    assert after.children_user + after.children_system - before.children_user - before.children_system < 10


def test_another_search_space_on_an_old_study_is_refused(tmp_path, market_folder, script, capsys):
    arguments = command(tmp_path, market_folder, "--n-trials", "1", "--timeout", "0.000001")[2:]
    assert script.main(arguments) == 1  # the study exists, no trial began
    for flags, words in (
        (("--use-best-ranges",), "differs in its search space"),
        (("--break-step", "600"), "total_env_steps was given: 512, now given: 600"),
        (("--tickers", "BTC", "ETH"), "differs in its data_sha256"),
        (("--holdout", "0.2"), "has --holdout 0.15, not 0.2"),
        (("--seed", "7"), "differs in its run: seed was 0, now 7"),
        (("--n-envs", "2"), "differs in its run: n_envs was 4, now 2"),
    ):
        assert script.main([*arguments, *flags]) == 2
        error = capsys.readouterr().err
        assert words in error
        assert "pass the original flags, or a different --study-name" in error
    assert states(tmp_path) == {}


def test_auto_chooses_a_number_of_environments_and_says_why(tmp_path, market_folder, script, caplog):
    caplog.set_level("INFO")
    arguments = command(tmp_path, market_folder, "--n-trials", "1", "--timeout", "0.000001", "--break-step", "4096")[2:]
    arguments += ["--agent", "ppo"]
    assert script.main([*arguments, "--n-envs", "auto"]) == 1  # the study exists, no trial began
    (line,) = [text for text in caplog.messages if text.startswith("--n-envs auto")]
    # 4096 steps in four rollouts of at most 1024 samples, so 16 environments take 64 steps each.
    assert line.startswith(
        "--n-envs auto: 16: with more, the smallest rollout (1,024 samples) has only 64 steps of each"
    )
    assert load(tmp_path).user_attrs["identity"]["run"]["n_envs"] == 16


def test_auto_keeps_the_number_of_a_study(tmp_path, market_folder, script, caplog):
    caplog.set_level("INFO")
    arguments = command(tmp_path, market_folder, "--n-trials", "1", "--timeout", "0.000001")[2:]
    assert script.main([*arguments, "--n-envs", "6"]) == 1
    assert script.main([*arguments, "--n-envs", "auto"]) == 1
    assert "--n-envs auto: 6, the number stored in study s" in caplog.messages
    assert load(tmp_path).user_attrs["identity"]["run"]["n_envs"] == 6


def test_the_assumed_volume_decides_the_fee_of_every_bar_and_is_written_down(
    tmp_path, market_folder, script, capsys, caplog
):
    caplog.set_level("INFO")
    arguments = command(tmp_path, market_folder, "--n-trials", "1", "--pruner", "none")[2:]
    script.main([*arguments, "--volume-30d", "1e6"])  # the trial may end pruned: it hardly trained
    assert any("taker fee 0.18 % for a 30-day volume of 1,000,000 USD" in text for text in caplog.messages)
    split = tmp_path / "results" / "s" / "trial_0" / "split_0"
    curves = read_equity(split / "equity.npz")
    assert curves["fees"].sum() / curves["turnover"].sum() == pytest.approx(0.0018, rel=0.0005)
    said = {"name": "alpaca", "volume_30d": 1e6, "order_rules_as_of": "2024-08-31", "fees_as_of": "2023-03-13"}
    settings = json.loads((split.parent / "settings.json").read_text())
    assert said.items() <= settings["venue"].items()
    assert settings["env"]["fee_rate"] == settings["env_resolved"]["buy_fee_rate"] == 0.0018
    assert settings["env_resolved"]["sell_fee_rate"] == 0.0018
    metadata = load_policy(split / "policy_best.safetensors").metadata
    assert said.items() <= metadata["venue"].items()
    assert metadata["env_params"]["fee_rate"] == 0.0018
    capsys.readouterr()
    for flags, words in (
        ((), "differs in its venue: volume_30d was 1000000.0, now 0.0"),
        (("--volume-30d", "2e6"), "differs in its venue: volume_30d was 1000000.0, now 2000000.0"),
        (("--volume-30d", "-1"), "--volume-30d must be at least 0 USD; received -1"),
        (("--volume-30d", "nan"), "--volume-30d must be at least 0 USD; received nan"),
        (("--volume-30d", "inf"), "--volume-30d must be at least 0 USD; received inf"),
    ):
        assert script.main([*arguments, *flags]) == 2
        assert words in capsys.readouterr().err
    assert sum(states(tmp_path).values()) == 1


def test_other_rules_on_an_old_study_are_refused(tmp_path, market_folder, script, capsys, monkeypatch):
    arguments = command(tmp_path, market_folder, "--n-trials", "1", "--timeout", "0.000001")[2:]
    assert script.main(arguments) == 1
    with monkeypatch.context() as changed:
        changed.setitem(environment_Alpaca_vectorized.RULES["standard"], "initial_capital", 500.0)
        assert script.main(arguments) == 2
        assert "differs in its simulator rules: initial_capital was 10000.0, now 500.0" in capsys.readouterr().err
    with monkeypatch.context() as changed:
        changed.setitem(TABLES[DEFAULT_AGENT].fixed_train, "adam_eps", 1e-8)
        assert script.main(arguments) == 2
        assert "differs in its learner: adam_eps was 1e-05, now 1e-08" in capsys.readouterr().err
    assert script.main(arguments) == 1  # as before


def test_help_names_every_flag_and_the_script_runs_from_any_folder(tmp_path):
    done = call([sys.executable, str(SCRIPT), "--help"], tmp_path)
    assert done.returncode == 0
    assert "rounded up to whole rollouts" in " ".join(done.stdout.split())
    for flag in (
        "n-trials", "gpu", "break-step", "study-name", "storage", "mode", "timeframe", "use-best-ranges", "num-paths",
        "k-test-groups", "holdout", "tickers", "data-dir", "n-envs", "episode-bars", "seed", "timeout", "resume",
        "volume-30d",
    ):  # fmt: skip
        assert f"--{flag} " in done.stdout or f"--{flag}\n" in done.stdout


@pytest.mark.slow
def test_a_study_of_bands_runs_and_resumes_without_naming_its_agent(tmp_path, market_folder):
    arguments = command(tmp_path, market_folder, "--n-trials", "1", "--break-step", "8192", "--min-trades", "1")
    first = run_forked([*arguments, "--agent", "band"], tmp_path)
    assert first.returncode in (0, NO_SIGNAL_CODE), first.stderr
    assert "agent: band, 15 searched settings" in first.stdout
    settings = json.loads((tmp_path / "results/s/trial_0/settings.json").read_text())
    assert settings["train"]["agent"] == "band"
    assert settings["train"]["horizon_len"] >= LEAST_BAND_BARS
    assert run_forked(arguments, tmp_path).returncode == first.returncode  # nothing is left to do
    other = run_forked([*arguments, "--agent", "ppo"], tmp_path)
    assert other.returncode == 2
    assert "--agent ppo: study s uses agent band" in other.stderr
