"""Break the code behind every row of docs/faults.md, one mutant at a time, and check that the test of the row fails.

    python -m tests.mutants [--only WORDS] [--jobs N] [--write] [--list]

The tests run in copies of the repository. First all tests must pass without changes. Then each test runs with its
mutant and must fail, or be skipped if this machine lacks a requirement. The exit code is 0 if all tests do so.
"""

from __future__ import annotations

import argparse
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.mutants.mutant import Mutant
from tests.mutants.table import MUTANTS, ROOT, faults, write_page
from train.records.provenance import code_version

LONGEST_TEST_S = 240.0
Run = subprocess.CompletedProcess[str]
COPY = "a copy"
MARK = "MUTANTS_COPY"  # environment variable of every process that a test starts
FAILED, HUNG = "FAILED", "HUNG"  # what a test should say of a mutant
SURVIVED, SKIPPED, NO_PROOF = "SURVIVED", "SKIPPED", "NO PROOF"
OPTIONS = ("-q", "--tb=short", "-p", "no:cacheprovider")
# A mutant that raises one of these is most likely a mistake of its author's: any test would notice it.
MISTAKES = ("ImportError", "ModuleNotFoundError", "SyntaxError", "IndentationError", "NameError", "AttributeError",
            "FileNotFoundError")  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """Outcome of a test, and its message."""

    verdict: str
    seconds: float
    words: str = ""


def copy_of_repository(folder: Path) -> Path:
    """Copy all tracked and new files in their current state to a folder with a space in its name."""
    copy = folder / COPY
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True,
        capture_output=True, text=True,
    )  # fmt: skip
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    return copy


def run_tests(tests: Sequence[str], copy: Path, *options: str, longest_s: float | None = None) -> Run:
    """Run tests of the copy, slow or not, and end whatever they leave running.

    Raises:
        subprocess.TimeoutExpired: they took longer.
    """
    environment = os.environ | {MARK: str(copy), "PYTHONPATH": str(copy)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    environment.setdefault("OMP_NUM_THREADS", "1")
    # Not `-m pytest`: its path would name the checkout that the environment is in, and programs refuse to mix two.
    command = [sys.executable, "-c", "import pytest, sys; sys.exit(pytest.main(sys.argv[1:]))", *OPTIONS, *options]
    try:
        return subprocess.run(
            [*command, *tests], cwd=copy, env=environment, timeout=longest_s, check=False, text=True,
            start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
    finally:
        end_processes_of(copy)


def run_test(test: str, copy: Path, longest_s: float = LONGEST_TEST_S) -> Outcome:
    """Run one test."""
    report, began_s = copy.parent / "report.xml", time.monotonic()
    report.unlink(missing_ok=True)
    try:
        done = run_tests([test], copy, "-x", f"--junit-xml={report}", longest_s=longest_s)
    except subprocess.TimeoutExpired:
        return Outcome(HUNG, time.monotonic() - began_s, f"ended after {longest_s:.0f} s")
    seconds = time.monotonic() - began_s
    try:
        return said_in(report, seconds)
    except (OSError, ElementTree.ParseError):
        return Outcome(NO_PROOF, seconds, f"pytest wrote no report: {done.stdout.strip()[-300:]}")


def said_in(report: Path, seconds: float) -> Outcome:
    """Return the outcome from the report of a pytest run."""
    root = ElementTree.parse(report).getroot()
    if (failure := root.find(".//failure")) is not None:
        words = _first_line(failure)
        return Outcome(NO_PROOF if words.startswith(MISTAKES) else FAILED, seconds, words)
    if (error := root.find(".//error")) is not None:
        return Outcome(NO_PROOF, seconds, f"not in the test itself: {_first_line(error)}")
    if (skipped := root.find(".//skipped")) is not None:
        return Outcome(SKIPPED, seconds, _first_line(skipped))
    return Outcome(SURVIVED, seconds)


def _first_line(element: ElementTree.Element) -> str:
    return (element.get("message") or "").strip().partition("\n")[0][:160]


def end_processes_of(copy: Path) -> None:
    """Kill all processes that a test of this copy started, in any session."""
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(MARK) == str(copy):
                process.kill()
        except psutil.Error:
            continue


def try_mutant(mutant: Mutant, copies: queue.Queue[Path]) -> Outcome:
    """Run the test of a mutant with its change."""
    copy = copies.get()
    path = copy / mutant.file
    whole, times = path.read_text(), path.stat()
    try:
        if whole.count(mutant.old) != 1:
            return Outcome(NO_PROOF, 0.0, f"{mutant.file} has the text to change {whole.count(mutant.old)} times")
        path.write_text(whole.replace(mutant.old, mutant.new))
        # Python knows bytecode by the source's size and second, so each mutant gets a second of its own.
        os.utime(path, (times.st_atime, times.st_mtime - 1 - MUTANTS.index(mutant)))
        return run_test(mutant.test, copy)
    finally:
        path.write_text(whole)
        os.utime(path, (times.st_atime, times.st_mtime))
        copies.put(copy)


def failing_tests(tests: Sequence[str], copy: Path, n_jobs: int) -> set[str]:
    """Return the tests that fail without any change. Their failure with a change would prove nothing."""
    report = copy.parent / "report.xml"
    run_tests(tests, copy, "-n", str(n_jobs), "--dist", "worksteal", f"--junit-xml={report}")
    cases = ElementTree.parse(report).getroot().iter("testcase")
    return {_name_of(case) for case in cases if {part.tag for part in case} & {"failure", "error"}}


def _name_of(case: ElementTree.Element) -> str:
    return f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name', '').partition('[')[0]}"


def run_all(mutants: Sequence[Mutant], n_jobs: int, with_check: bool) -> Iterator[tuple[Mutant, Outcome]]:
    """Try the mutants in separate copies, `n_jobs` in parallel. `with_check` first runs the tests without a change."""
    with tempfile.TemporaryDirectory(prefix="mutants ") as folder, ThreadPoolExecutor(n_jobs) as pool:
        first = copy_of_repository(Path(folder) / "0")
        tests = [*dict.fromkeys(mutant.test for mutant in mutants)]
        unfit = failing_tests(tests, first, n_jobs) if with_check else set()
        copies: queue.Queue[Path] = queue.Queue()
        copies.put(first)
        for number in range(1, n_jobs):  # with what the first run compiled
            copies.put(shutil.copytree(first, Path(folder) / str(number) / COPY, symlinks=True))
        jobs = {pool.submit(try_mutant, mutant, copies): mutant for mutant in mutants if mutant.test not in unfit}
        try:
            yield from ((m, Outcome(NO_PROOF, 0.0, "its test fails without it")) for m in mutants if m.test in unfit)
            for job in as_completed(jobs):
                yield jobs[job], job.result()
        except BaseException:  # Ctrl-C, say: no test is begun any more, and those that run end
            pool.shutdown(wait=False, cancel_futures=True)
            for number in range(n_jobs):
                end_processes_of(Path(folder) / str(number) / COPY)
            raise


def arguments() -> argparse.Namespace:
    """Parse the flags."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--only", default="", metavar="WORDS", help="mutants whose test, fault, change or file has them")
    p.add_argument("--jobs", type=int, default=2, metavar="N", help="number of tests to run in parallel (default: 2)")
    p.add_argument("--unchecked", action="store_true", help="do not run the tests without any change first")
    p.add_argument("--write", action="store_true", help="write the outcomes to docs/mutants.md")
    p.add_argument("--list", action="store_true", help="name the mutants and run nothing")
    return p.parse_args()


def main() -> int:
    """Run the mutants. Return 0 if the tests noticed all of them."""
    args, fault_of = arguments(), faults()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    chosen = [m for m in MUTANTS if args.only in f"{m.test} {fault_of[m.test]} {m.broken} {m.file}"]
    if args.list or not chosen:
        print("\n".join(f"{fault_of[m.test]}: {m.broken}" for m in chosen) or f"no mutant has the words {args.only}")
        return 0 if chosen else 2
    print(f"{len(chosen)} mutants" + "; their tests without any change first" * (not args.unchecked), flush=True)
    began_s, when = time.monotonic(), f"{time.strftime('%Y-%m-%d', time.gmtime())}, {code_version()}"
    outcomes: dict[Mutant, Outcome] = {}
    for mutant, outcome in run_all(chosen, args.jobs, not args.unchecked):
        outcomes[mutant] = outcome
        left_s = (time.monotonic() - began_s) / len(outcomes) * (len(chosen) - len(outcomes))
        print(f"{outcome.verdict:<8} {outcome.seconds:5.1f} s  {fault_of[mutant.test]}: {mutant.broken}")
        print(f"    {outcome.words}   [{len(outcomes)} of {len(chosen)}, {left_s / 60:.0f} min left]", flush=True)
        if args.write:
            ran = {m: o for m, o in outcomes.items() if o.verdict != SKIPPED}
            write_page({m: f"{o.verdict}, {o.seconds:.0f} s, {when}" for m, o in ran.items()})
    counts = Counter(outcome.verdict for outcome in outcomes.values())
    print(", ".join(f"{n} {verdict}" for verdict, n in counts.items()))
    return int(not {FAILED, HUNG, SKIPPED} >= counts.keys())


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
