"""The folder of deployments: old or new at every moment, one judge at a time, a log that cannot be half read."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.killed_replacement import install, roll_back
from train.deploy.decisions import Bars, Candidate, DecisionLog, deployed_names, judgement_of, looks_at
from train.deploy.folder import BusyError, Deployments
from train.deploy.loading import POLICY_FILE, DeploymentError, read_deployment
from train.records.errors import StudyError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def deployments(tmp_path):
    made = Deployments(tmp_path / "deployments")
    made.prepare()
    return made


def events(deployments, *kinds):
    return [e for e in deployments.log.read() if e["event"] in kinds]


def test_a_replacement_keeps_the_ones_before_and_is_written_down(deployments):
    assert deployments.current() is None
    for seed, name in enumerate("abc"):
        install(deployments.folder, name, seed)
        assert deployments.current().name == name
    assert sorted(p.name for p in deployments.folder.iterdir() if p.is_dir() and not p.is_symlink()) == ["a", "b", "c"]
    link = deployments.folder / "current"
    assert link.readlink() == Path("c")  # relative: the folder can be moved
    moved = deployments.folder.rename(deployments.folder.with_name("moved"))
    assert read_deployment(moved / "current").name == "c"
    assert [(e["event"], e["deployment"]) for e in Deployments(moved).log.read()] == [
        (event, name) for name in "abc" for event in ("accepted", "current")
    ]


def test_rollback_goes_back_one_and_again_one(deployments):
    for seed, name in enumerate("abc"):
        install(deployments.folder, name, seed)
    for name in "ba":
        roll_back(deployments.folder)
        assert deployments.current().name == name
    with pytest.raises(StudyError, match="nothing was deployed before a"):
        roll_back(deployments.folder)
    install(deployments.folder, "d", 4)
    assert deployed_names(deployments.log.read()) == ["a", "d"]  # b and c were left behind
    roll_back(deployments.folder)
    assert deployments.current().name == "a"
    assert [(e["deployment"], e["previous"]) for e in events(deployments, "rollback")] == [
        ("b", "c"), ("a", "b"), ("a", "d"),
    ]  # fmt: skip


def test_a_rollback_starts_from_where_somebody_led_it_by_hand(deployments):
    for seed, name in enumerate("abc"):
        install(deployments.folder, name, seed)
    (deployments.folder / "current").unlink()
    (deployments.folder / "current").symlink_to("b")
    roll_back(deployments.folder)
    assert deployments.current().name == "a"
    assert deployed_names(deployments.log.read()) == ["a"]


def test_what_was_rolled_back_and_brought_back_by_hand_is_rolled_back_to_again(deployments):
    for seed, name in enumerate("ab"):
        install(deployments.folder, name, seed)
    roll_back(deployments.folder)
    (deployments.folder / "current").unlink()
    (deployments.folder / "current").symlink_to("b")
    install(deployments.folder, "c", 5)
    assert deployed_names(deployments.log.read()) == ["a", "b", "c"]
    roll_back(deployments.folder)
    assert deployments.current().name == "b"


def test_a_rollback_to_a_damaged_or_unknown_deployment_is_refused(deployments):
    with pytest.raises(StudyError, match="nothing is deployed; there is nothing to roll back"):
        roll_back(deployments.folder)
    for seed, name in enumerate("ab"):
        install(deployments.folder, name, seed)
    (deployments.folder / "a" / POLICY_FILE).write_bytes(b"")
    before = deployments.log.path.read_bytes()
    with pytest.raises(DeploymentError, match=r"a/policy\.safetensors is not a complete"):
        roll_back(deployments.folder)
    assert deployments.current().name == "b"
    assert deployments.log.path.read_bytes() == before
    (deployments.folder / "b").rename(deployments.folder / "by_hand")
    (deployments.folder / "current").unlink()
    (deployments.folder / "current").symlink_to("by_hand")
    with pytest.raises(StudyError, match="current points to by_hand, which is not in the log"):
        roll_back(deployments.folder)


def test_what_was_written_wrongly_is_not_deployed(deployments):
    install(deployments.folder, "a", 1)

    def fail(folder):
        raise StudyError("does not trade like the policy that was scored")

    with pytest.raises(StudyError, match="does not trade"), deployments.locked():
        deployments.install("b", lambda folder: None, fail, {})
    assert deployments.current().name == "a"
    assert not (deployments.folder / "b").exists()
    install(deployments.folder, "c", 2)  # what the failure left is in nobody's way
    assert sorted(os.listdir(deployments.folder)) == [".lock", "a", "c", "current", "decisions.jsonl"]


@pytest.mark.slow
@pytest.mark.parametrize("change", ["install", "rollback"])
def test_a_kill_at_any_file_operation_leaves_the_old_one_or_the_new_one(tmp_path, change):
    start = Deployments(tmp_path / "start")
    start.prepare()
    for seed, name in enumerate("ab"):
        install(start.folder, name, seed)
    command = [sys.executable, "-m", "tests.support.killed_replacement", str(tmp_path), change]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    n_killed, target = int(done.stdout), {"install": "new", "rollback": "a"}[change]
    assert n_killed > (20 if change == "install" else 10)
    seen = [outcome_of_kill(tmp_path / str(number), target) for number in range(n_killed)]
    is_new = [found for found, _ in seen]
    assert is_new == sorted(is_new)  # once it is the new one it stays so
    assert set(seen) >= {(False, False), (False, True), (True, True)}


def outcome_of_kill(folder, target):
    """(whether `current` leads to the new one, whether a promise was left); everything is whole either way."""
    deployments = Deployments(folder)
    found = read_deployment(folder / "current")
    assert found.name in ("b", target)
    was_promised = bool(deployments.log.read()) and deployments.log.read()[-1]["event"] in ("accepted", "rollback")
    with deployments.locked():
        pass
    after = deployments.current().name
    assert after == (target if was_promised or found.name == target else "b")
    assert deployments.log.read()[-1]["event"] == "current"
    assert deployed_names(deployments.log.read())[-1] == after
    install(folder, "later", 7)
    assert deployments.current().name == "later"
    assert not (folder / ".unfinished").exists()
    return found.name == target, was_promised


def test_a_promise_that_cannot_be_kept_is_dropped_and_said(deployments, caplog):
    install(deployments.folder, "a", 1)
    deployments.log.append("accepted", deployment="b", previous="a")
    with deployments.locked():
        assert deployments.current().name == "a"
    assert "could not complete the interrupted change to b" in caplog.text
    assert [e["event"] for e in deployments.log.read()][-1] == "broken"
    install(deployments.folder, "c", 2)
    assert deployments.current().name == "c"


def test_a_link_that_somebody_changed_meanwhile_is_not_changed_back(deployments):
    for seed, name in enumerate("abc"):
        install(deployments.folder, name, seed)
    deployments.log.append("accepted", deployment="b", previous="c")
    (deployments.folder / "current").unlink()
    (deployments.folder / "current").symlink_to("a")
    with pytest.raises(StudyError, match="point current to c or b manually"), deployments.locked():
        pass
    assert deployments.current().name == "a"


def test_without_links_a_file_names_the_deployment(deployments, monkeypatch):
    def no_links(*_arguments, **_options):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "symlink", no_links)
    for seed, name in enumerate("ab"):
        install(deployments.folder, name, seed)
    current = deployments.folder / "current"
    assert current.is_file()
    assert not current.is_symlink()
    assert read_deployment(current).name == deployments.current().name == "b"
    roll_back(deployments.folder)
    assert current.read_text() == "a\n"


@pytest.mark.slow
def test_one_process_judges_at_a_time_and_a_kill_lets_the_next_one_in(deployments):
    code = (
        "import sys, time; from pathlib import Path\n"
        "from train.deploy.folder import Deployments\n"
        "with Deployments(Path(sys.argv[1])).watched():\n print('in', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(deployments.folder)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "in\n"
        with (
            pytest.raises(BusyError, match=rf"another process \(pid {other.pid}\) is already judging"),
            deployments.watched(),
        ):
            pass
        install(deployments.folder, "a", 1)  # moments need the other lock only: a rollback is possible at any time
        other.kill()
    with deployments.watched():
        pass


def test_replacements_at_the_same_time_come_one_after_the_other(deployments):
    context = multiprocessing.get_context("fork")
    names = [f"n{i}" for i in range(6)]
    workers = [context.Process(target=install, args=(deployments.folder, name, i)) for i, name in enumerate(names)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 6
    accepted = events(deployments, "accepted")
    assert sorted(e["deployment"] for e in accepted) == names
    assert [e["previous"] for e in accepted] == [None, *(e["deployment"] for e in accepted[:-1])]
    assert deployments.current().name == accepted[-1]["deployment"]


def test_who_loads_while_it_is_replaced_gets_one_deployment_or_the_other(deployments):
    install(deployments.folder, "first", 0)
    context = multiprocessing.get_context("fork")
    worker = context.Process(target=replace_often, args=(deployments.folder,))
    worker.start()
    seen = []
    while worker.is_alive():
        found = read_deployment(deployments.folder / "current")
        assert found.name == found.folder.name
        seen.append(found.name)
    worker.join(60)
    assert worker.exitcode == 0
    assert len(set(seen)) > 2


def replace_often(folder):
    for seed in range(8):
        install(folder, f"n{seed}", seed)


def test_the_folder_must_be_one(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StudyError, match=r"--deployments-dir .*file: cannot be created \(is a file\)"):
        Deployments(tmp_path / "file").prepare()
    with pytest.raises(StudyError, match=r"cannot be created \(No such file or directory\)"):
        Deployments(tmp_path / "no" / "such").prepare()
    (tmp_path / "current").mkdir()
    with pytest.raises(DeploymentError, match="is a folder instead of a link"):
        Deployments(tmp_path).current_name()


# ------------------------------------------------------------------------------------------------------------- the log
def test_a_torn_last_line_is_not_there_and_the_next_one_takes_its_place(tmp_path):
    log = DecisionLog(tmp_path)
    assert log.read() == []
    log.append("look", n=1)
    log.append("refused", n=2)
    whole = log.path.read_bytes()
    second = whole.index(b"\n") + 1
    for length in sorted({*range(0, len(whole), 20), second - 1, second, len(whole) - 1, len(whole)}):
        log.path.write_bytes(whole[:length])
        n_whole = whole[:length].count(b"\n")
        assert [e["n"] for e in log.read()] == [1, 2][:n_whole]
        log.append("look", n=3)
        assert [e["n"] for e in log.read()] == [*[1, 2][:n_whole], 3]


def test_a_damaged_line_is_an_error_because_looks_would_be_forgotten(tmp_path):
    log = DecisionLog(tmp_path)
    for n in range(3):
        log.append("look", n=n)
    lines = log.path.read_text().splitlines()
    for broken in ("{", "", "[]", '{"n": 1}'):
        log.path.write_text("\n".join([lines[0], broken, lines[2], ""]))
        with pytest.raises(StudyError, match="line 2 is damaged"):
            log.read()


def test_a_candidate_is_judged_anew_under_other_options_only(tmp_path):
    log, one = DecisionLog(tmp_path), Candidate("u", 3, 0, {"alpha": 0.05})
    log.append("look", candidate=one.to_json())
    assert judgement_of(log.read(), one) is None  # looked at, and killed before a decision
    log.append("refused", candidate=one.to_json(), why="x")
    assert judgement_of(log.read(), one)["why"] == "x"
    for other in (("v", 3, 0, 0.05), ("u", 4, 0, 0.05), ("u", 3, 1, 0.05), ("u", 3, 0, 0.04)):
        assert judgement_of(log.read(), Candidate(*other[:3], {"alpha": other[3]})) is None


def test_looks_at_some_of_the_same_bars_are_counted(tmp_path):
    log = DecisionLog(tmp_path)
    mine = Bars(100, 200, ("BTC", "ETH"), False, "binance")
    others = {
        "same": mine,
        "other source": Bars(150, 300, ("BTC",), False, "alpaca"),
        "touching": Bars(200, 300, ("ETH",), False, "binance"),
        "later": Bars(201, 300, ("BTC",), False, "binance"),
        "other coins": Bars(100, 200, ("LTC",), False, "binance"),
        "generated": Bars(100, 200, ("BTC",), True, "binance"),
    }
    for number, (name, bars) in enumerate(others.items(), start=1):
        log.append("look", weights_sha256=name, test=number, bars=bars.to_json())
    assert looks_at(log.read(), mine) == {"same": 1, "other source": 2, "touching": 3}
    made = Bars(100, 200, ("BTC",), True, "seed 1")
    log.append("look", weights_sha256="other world", test=9, bars=Bars(100, 200, ("BTC",), True, "seed 2").to_json())
    assert looks_at(log.read(), made) == {}
    assert json.loads(log.path.read_text().splitlines()[-1])["event"] == "look"
