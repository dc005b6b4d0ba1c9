"""Test cases on simulated machines: a fault, its moment and duration, and the conditions that must hold afterwards."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from market.dataset import save_dataset
from market.sample import synthetic_dataset
from tests.machines.world import FAULTS, LONGEST_S, REPO, Program, World
from tests.support.network import TO_SERVER

SAID_S, ENDS_S, ENDS_WITH_WORKERS_S = 12.0, 5.0, 10.0
SHORT, SPLIT, LONG = (("--break-step", str(steps)) for steps in (512, 12_000, 60_000))
LINK_LOST = FAULTS[:2]


@dataclass(frozen=True)
class Seen:
    """Outcome of a case.

    Attributes:
        problems: violated conditions; empty if the case passed.
        said_s: seconds until the log named the awaited resource; None if this was not measured.
        ended_s: seconds from a signal to the end of the program; None if this was not measured.
    """

    problems: list[str]
    said_s: float | None = None
    ended_s: float | None = None


@dataclass(frozen=True)
class Case:
    """Case with the name of its row in the table. `run` receives a folder that does not exist yet."""

    name: str
    run: Callable[[Path], Seen]
    is_long: bool = False


def in_world(name: str, n_machines: int, n_trials: int, body: Callable[[World], Seen], **options: bool) -> Case:
    """Return a case that runs in its own world and prints the logs of all programs if it fails."""
    is_long, has_bucket = options.get("is_long", False), options.get("has_bucket", False)

    def run(folder: Path) -> Seen:
        world = World(folder, n_machines, n_trials, has_bucket)
        try:
            seen = body(world)
        except (AssertionError, subprocess.TimeoutExpired) as error:
            seen = Seen([str(error)])
        finally:
            world.remove()
        if seen.problems:
            print(world.logs(), flush=True)
        return seen

    return Case(name, run, is_long)


# ------------------------------------------------------------------------------------------------ faults that end
def in_sampling(first: Program, world: World) -> None:
    """Wait until machine 0 takes a trial under the study's lock. A slow network prolongs this moment."""
    first.wait_for(r"trial \d+: started")
    world.networks[0].delay_s = 0.05
    first.wait_for(r"trial \d+: (value|pruned)")
    time.sleep(0.8)


def in_a_split(first: Program, world: World) -> None:
    """Wait until machine 0 trains."""
    first.wait_for(r"trial \d+: started")


def at_the_end(first: Program, world: World) -> None:
    """Wait until the last trial has finished, before the hold-out is evaluated and reports are written."""
    first.wait_for(r"trial \d+: ")
    while world.n_finished() < world.n_trials:
        time.sleep(0.02)
        assert first.process.poll() is None


MOMENTS = {"in sampling": (in_sampling, SHORT), "in a split": (in_a_split, SPLIT), "at the end": (at_the_end, SHORT)}


def ends(fault: str, moment: str, lasts_s: float, world: World) -> Seen:
    """Break the database connection for a while. No trial may fail, and all reports must be equal."""
    until, budget = MOMENTS[moment]
    first, second = world.train(0, *budget), world.train(1, *budget)
    if fault == "killed":  # a trainer that starts while no server answers ends with an error
        second.wait_for(r"trial \d+: started")
    until(first, world)
    after = len(first.log)
    with world.broken(fault):
        time.sleep(lasts_s)
    world.networks[0].delay_s = 0.0
    problems = world.problems(n_failed=0)
    said = re.findall(r"waiting for .* for (\d+) s", first.log[after:])
    return Seen(problems, min(map(float, said), default=None))


# ------------------------------------------------------------------------------------------------ signals in a fault
def stopped(fault: str, moment: str, workers: int, number: int, world: World) -> Seen:
    """Send a signal while a study waits between trials, or while it trains and does not wait yet."""
    is_between = moment == "between trials"
    trainer = world.train(0, *(SHORT if is_between else LONG), "--workers", str(workers))
    trainer.wait_for(r"trial 1: (value|pruned)" if is_between else "trial 0: started")
    after, said_s = len(trainer.log), None
    with world.broken(fault):
        if is_between:
            said_s = trainer.wait_for("waiting for ", after)
        else:
            time.sleep(2.0)
        ended_s, code = trainer.signalled(number)
    problems = [f"exit code {code}"] if code != 128 + number else []
    problems += ["it printed a traceback"] if "Traceback" in trainer.log else []
    return Seen(problems + _late(said_s, ended_s, workers), said_s, ended_s)


def _late(said_s: float | None, ended_s: float, workers: int = 1) -> list[str]:
    most_s = ENDS_S if workers == 1 else ENDS_WITH_WORKERS_S
    late = [f"reported after {said_s:.1f} s"] if (said_s or 0.0) > SAID_S else []
    return late + ([f"ended after {ended_s:.1f} s"] if ended_s > most_s else [])


def interrupted(script: str, flags: tuple[str, ...], begins: str, number: int, world: World) -> Seen:
    """Send a signal to a program that reads a database while the server is frozen."""
    trainer = world.train(0, *SHORT)
    trainer.wait_for("report: ")
    assert trainer.process.wait(LONGEST_S) in (0, 5)
    program = world.run(0, REPO / script, *flags)
    if begins:
        program.wait_for(begins)
    with world.broken("frozen"):
        time.sleep(3.0 if begins else 6.0)
        ended_s, code = program.signalled(number)
    expected = (128 + number, -number)
    problems = [] if code in expected else [f"exit code {code} instead of one of {expected}: {program.log[-600:]}"]
    problems += ["it printed a traceback"] if "Traceback" in program.log else []
    return Seen(problems + _late(None, ended_s), None, ended_s)


def dashboard(world: World) -> Seen:
    """Open the web dashboard while the server is frozen. It must report an error, recover later, and end at Ctrl-C."""
    trainer = world.train(0, *SHORT)
    assert trainer.process.wait(LONGEST_S) in (0, 5), trainer.log
    program = world.run(0, REPO / "scripts/monitoring/web_dashboard.py", "--study-name", "s", "--port", "8080",
                        "--results-dir", str(world.folder / "machine0" / "results"))  # fmt: skip
    program.wait_for("Ctrl-C to stop")
    asked = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-m", "40", "http://127.0.0.1:8080/api/studies"]

    def answer() -> str:
        done = world.machines[0].start(asked, world.folder, world.folder / "curl.txt", {})
        done.wait()
        return (world.folder / "curl.txt").read_text()[-3:]

    problems = [] if answer() == "200" else ["no page"]
    with world.broken("frozen"):
        began_s = time.monotonic()
        problems += [] if answer() == "500" else ["no error while the server was frozen"]
        said_s = time.monotonic() - began_s
    problems += [] if answer() == "200" else ["no page after the fault"]
    with world.broken("frozen"):
        ended_s, code = program.signalled(signal.SIGINT)
    problems += [] if code == 130 else [f"exit code {code}"]
    return Seen(problems + _late(None, ended_s), said_s, ended_s)


# ------------------------------------------------------------------------------------------------ machines come and go
def restored(world: World) -> Seen:
    """Replace the server by an earlier copy of itself while two machines train."""
    first, _ = world.train(0, *SHORT), world.train(1, *SHORT)
    first.wait_for(r"trial \d+: (value|pruned)")
    world.server.copy()
    had = world.n_finished()
    while world.n_finished() < had + 4:
        time.sleep(0.05)
    world.server.restore()
    return Seen(world.problems())


def vanishes(world: World) -> Seen:
    """Cut the power of a machine during a split. The other machine must repeat its trial."""
    first, second = world.train(0, *SPLIT), world.train(1, *SPLIT)
    second.wait_for(r"trial \d+: started")
    time.sleep(1.0)
    world.machines[1].vanish()
    world.programs.remove(second)
    problems = world.problems(n_failed=1)
    return Seen(problems + ([] if "its process was killed" in first.log else ["its trial was not failed"]))


def joins_late(world: World) -> Seen:
    """Start a second machine after the first one has finished half of the trials."""
    first = world.train(0, *SHORT)
    first.wait_for(r"trial \d+: (value|pruned)")
    while world.n_finished() < world.n_trials // 2:
        time.sleep(0.05)
    second = world.train(1, *SHORT)
    problems = world.problems(n_failed=0)
    return Seen(problems + ([] if re.search("trial .*(value|pruned)", second.log) else ["it ran no trial"]))


def refused(what: str, words: str, world: World) -> Seen:
    """Join with different data or code. This must end with exit code 2 and a reason, and not disturb the study."""
    repo, data = REPO, "data"
    if what == "data":
        data = "other"
        save_dataset(synthetic_dataset("5m", 1500, ("BTC", "ETH"), seed=2), world.folder / data)
    else:
        repo = world.folder / "code"
        names = subprocess.run(["git", "ls-files", "-z"], cwd=REPO, check=True, capture_output=True, text=True).stdout
        compiled = [str(path.relative_to(REPO)) for path in REPO.rglob("*.nb[ci]")]  # numba's cache: one minute
        for name in filter(None, [*names.split("\0"), *compiled]):
            with suppress(FileNotFoundError):  # deleted but not yet committed
                (repo / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(REPO / name, repo / name)
        split = repo / "train" / "study" / "split.py"
        split.write_text(split.read_text() + "\n# another version\n")
    first = world.train(0, *LONG)
    first.wait_for("trial 0: started")
    second = world.train(1, *LONG, repo=repo, data=data)
    code = second.process.wait(LONGEST_S)
    assert first.process.poll() is None, "machine 0 ended before machine 1 could be refused"
    world.programs.remove(second)
    is_told = code == 2 and re.search(words, second.log) and "Traceback" not in second.log
    problems = [] if is_told else [f"exit code {code}: {second.log[-1500:]}"]
    return Seen(problems + world.problems(n_failed=0))


def away_in_upload(fault: str, world: World) -> Seen:
    """Stop the artifact store during the upload of a file, with or without the database."""
    first, _ = world.train(0, *SHORT), world.train(1, *SHORT)
    first.wait_for(r"trial \d+: (value|pruned)")
    network = world.bucket_networks[0]
    network.cut_after(40_000)
    first.wait_for("waiting for the artifact store")
    if fault == "and the database":
        world.networks[0].lost = {TO_SERVER}
    time.sleep(10.0)
    network.lost = world.networks[0].lost = set()
    return Seen(world.problems(n_failed=0))


# ------------------------------------------------------------------------------------------------ the table
def cases() -> Iterator[Case]:
    """Yield all cases, long ones last."""
    for fault in FAULTS:
        for moment in MOMENTS:
            yield in_world(f"{fault} for 10 s {moment}", 2, 8 if moment != "in a split" else 4,
                           partial(ends, fault, moment, 10.0))  # fmt: skip
    yield in_world("the server is replaced by an earlier copy", 2, 16, restored)
    yield in_world("a machine joins late", 2, 30, joins_late)
    yield in_world("other data on one machine", 2, 2, partial(refused, "data", "differs in its data_sha256"))
    yield in_world("other code on one machine", 2, 6, partial(refused, "code", "runs different code"))
    yield in_world("the artifact store is lost in an upload", 2, 8, partial(away_in_upload, "alone"), has_bucket=True)
    yield in_world("the artifact store is lost in an upload, and the database", 2, 8,
                   partial(away_in_upload, "and the database"), has_bucket=True)  # fmt: skip
    for fault in FAULTS[:-1]:
        for moment in ("between trials", "in a split"):
            for workers in (1, 2):
                yield in_world(f"SIGTERM, {fault} {moment}, {workers} workers", 1, 200 if moment != "in a split" else 1,
                               partial(stopped, fault, moment, workers, signal.SIGTERM))  # fmt: skip
    for number in (signal.SIGINT, signal.SIGHUP):
        for fault in ("lost to the client", "frozen"):
            for workers in (1, 2):
                yield in_world(f"{number.name}, {fault} between trials, {workers} workers", 1, 200,
                               partial(stopped, fault, "between trials", workers, number))  # fmt: skip
    for number in (signal.SIGTERM, signal.SIGINT):
        yield in_world(f"{number.name}, doctor and a frozen server", 1, 1,
                       partial(interrupted, "scripts/setup/doctor.py", (), "", number))  # fmt: skip
        deploy = ("--study-name", "s", "--allow-synthetic", "--allow-unproven", "--interval", "0.2")
        yield in_world(f"{number.name}, deploy_best and a frozen server", 1, 1,
                       partial(interrupted, "scripts/deployment/auto_replace_best_5m.py", deploy, "checking study",
                               number))  # fmt: skip
    yield in_world("web dashboard and a frozen server", 1, 1, dashboard)
    for lasts_s in (60.0, 150.0):
        for fault in LINK_LOST:
            for moment in MOMENTS:
                yield in_world(f"{fault} for {lasts_s:.0f} s {moment}", 2, 8 if moment != "in a split" else 4,
                               partial(ends, fault, moment, lasts_s), is_long=True)  # fmt: skip
    yield in_world("a machine vanishes in a split", 2, 4, vanishes, is_long=True)
