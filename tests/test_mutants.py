"""Every row of docs/faults.md has a valid mutant, and the outcome of a run is classified correctly."""

from __future__ import annotations

import ast
import subprocess

import pytest

from tests.mutants.__main__ import FAILED, HUNG, NO_PROOF, SKIPPED, SURVIVED, run_test, said_in
from tests.mutants.table import MUTANTS, PAGE, ROOT, faults, known_results
from tests.test_docs_faults import ROWS

each_mutant = pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: f"{m.test.rpartition('::')[2]}: {m.broken}")


def test_every_row_has_a_mutant_and_every_mutant_a_row():
    assert len(faults()) == len(ROWS), "a test is named by two rows, or a row is not read"
    assert {mutant.test for mutant in MUTANTS} == set(faults())


@each_mutant
def test_the_text_to_change_is_there_once_and_what_comes_of_it_is_a_program(mutant, tmp_path):
    whole = (ROOT / mutant.file).read_text()
    assert whole.count(mutant.old) == 1
    changed = whole.replace(mutant.old, mutant.new)
    assert changed != whole
    if mutant.file.endswith(".py"):
        ast.parse(changed)
        return
    (tmp_path / "changed.sh").write_text(changed)
    subprocess.run(["bash", "-n", tmp_path / "changed.sh"], check=True)


def test_the_page_has_every_mutant_and_each_was_noticed():
    wanted = [(faults()[mutant.test], mutant.broken) for mutant in MUTANTS]
    results = known_results()
    assert [row for row in results if row in set(wanted)] == wanted, f"run scripts/run_tests.sh --mutants for {PAGE}"
    assert len(set(wanted)) == len(MUTANTS)
    assert [row for row in wanted if not results[row].startswith((FAILED, HUNG))] == []


TESTS = {
    "def test_it(): pass": SURVIVED,
    "def test_it(): assert False": FAILED,
    "def test_it(): raise KeyError('x')": FAILED,
    "def test_it(): nothing()": NO_PROOF,
    "import nothing\ndef test_it(): pass": NO_PROOF,
    "def test_it(missing_fixture): pass": NO_PROOF,
    "import pytest\ndef test_it(): pytest.skip('no disk')": SKIPPED,
}


@pytest.mark.parametrize("text", TESTS)
def test_a_failure_of_the_test_itself_alone_is_proof(tmp_path, text):
    copy = tmp_path / "a copy"
    copy.mkdir()
    (copy / "test_it.py").write_text(text)
    assert run_test("test_it.py::test_it", copy).verdict == TESTS[text]


HANGS = """
import subprocess, sys, time
def test_it():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    open("pid", "w").write(str(child.pid))
    time.sleep(60)
"""


def test_a_test_that_hangs_is_ended_with_all_that_it_started(tmp_path):
    copy = tmp_path / "a copy"
    copy.mkdir()
    (copy / "test_it.py").write_text(HANGS)
    assert run_test("test_it.py::test_it", copy, longest_s=4.0).verdict == HUNG
    pid = (copy / "pid").read_text()
    state = subprocess.run(["ps", "-o", "stat=", "-p", pid], capture_output=True, text=True, check=False).stdout
    assert not state.strip() or state.startswith("Z")


def test_a_failure_counts_though_the_fixtures_cannot_be_cleared_up_after_it(tmp_path):
    report = tmp_path / "report.xml"
    report.write_text('<testsuites><testcase><failure message="assert 1 == 2"/></testcase>'
                      '<testcase><error message="teardown"/></testcase></testsuites>')  # fmt: skip
    assert said_in(report, 1.0).verdict == FAILED
