"""A trial that was killed or interrupted is tried again from where it stood, and ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from drl_agents.policy_file import load_policy
from tests.support import fabricated_study as fabricated
from tests.support import real_study
from tests.support.markets import REPO
from train.checkpoint import CHECKPOINT
from train.records.keys import FAILURE, RETRY_OF
from train.records.record_files import decode
from train.records.results import read_equity, split_folder, trial_folder
from train.records.stored import SplitResult
from train.run import BEST_POLICY, LAST_POLICY, TrainingDiverged
from train.study.eligibility import best_trial
from train.study.objective import OUT_OF_MEMORY
from train.study.retry import Attempts
from train.study.search_space import build_space, resolve, sample, with_half_the_envs
from train.study.split import outcome_json, outcome_of, run_split

# Hashes of files, because settings and policies name their trial.
CLOCK = ("wall_s", "explore_steps_per_s", "update_samples_per_s", "files")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The study of a number of environments, never stopped."""
    studies = {}

    def of(n_envs: int):
        if n_envs not in studies:
            folder = tmp_path_factory.mktemp("whole")
            studies[n_envs] = folder, real_study.run(folder, n_envs)[0]
        return studies[n_envs]

    return of


def assert_ends_as(whole, folder: Path, study, number: int) -> None:
    """Trial `number` is the uninterrupted study's trial 0: value, figures, files."""
    expected_folder, expected = whole
    ours, theirs = study.trials[number], expected.trials[0]
    assert ours.params == theirs.params
    assert ours.value == theirs.value
    assert ours.intermediate_values == theirs.intermediate_values
    for k in range(real_study.N_SPLITS):
        figures, wanted = (without_clock(trial.user_attrs[f"split_{k}"]) for trial in (ours, theirs))
        assert figures == wanted
        a = split_folder(folder / "results", number, k)
        b = split_folder(expected_folder / "results", 0, k)
        assert sorted(p.name for p in a.iterdir()) == sorted(p.name for p in b.iterdir())
        for name in (BEST_POLICY, LAST_POLICY):
            assert_same_policy(a / name, b / name, number)
        curves, wanted = read_equity(a / "equity.npz"), read_equity(b / "equity.npz")
        assert all(np.array_equal(curves[column], wanted[column]) for column in wanted)
        assert without_clock(read_json(a / "result.json")) == without_clock(read_json(b / "result.json"))
    own, other = (read_json(trial_folder(f / "results", n) / "settings.json")
                  for f, n in ((folder, number), (expected_folder, 0)))  # fmt: skip
    assert own == other | {"trial": number}


def assert_same_policy(path: Path, other: Path, number: int) -> None:
    a, b = load_policy(path), load_policy(other)
    ours = {"trial": number, "uuid": a.metadata["uuid"]}  # each study has one of its own
    assert a.metadata == b.metadata | ours
    tensors, wanted = ([p.state_avg, p.state_std, *(x for layer in p.layers for x in layer)] for p in (a, b))
    assert all(map(torch.equal, tensors, wanted))


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())


def without_clock(figures: dict) -> dict:
    """Nor the names of the study and trial that it is of."""
    return {name: value for name, value in figures.items() if name not in (*CLOCK, "uuid", "trial")}


def leftovers(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if CHECKPOINT in p.name]


def interrupted_at(*where: tuple[int, int]):
    """Sends SIGTERM to this process after each of these (split, updates), once."""
    left = list(where)

    def on_update(split: int, n_updates: int) -> None:
        if (split, n_updates) in left:
            left.remove((split, n_updates))
            os.kill(os.getpid(), signal.SIGTERM)

    return on_update


@pytest.mark.parametrize(("n_envs", "where"), [(12, (0, 1)), (12, (0, 4)), (12, (1, 5)), (1, (1, 3))])
def test_an_interrupted_trial_goes_on_from_its_last_checkpoint(where, n_envs, whole, tmp_path, caplog):
    caplog.set_level("INFO")
    _, ending = real_study.run(tmp_path, n_envs, interrupted_at(where))
    assert ending.signal_number == signal.SIGTERM
    split, n_updates = where
    assert [p.parent.name for p in leftovers(tmp_path)] == [f"split_{split}"] * (n_updates > 1)
    made = []
    study, _ = real_study.run(tmp_path, n_envs, lambda *update: made.append(update))
    first = max(n_updates, 1)
    assert made == [(k, n) for k in range(split, 2) for n in range(first if k == split else 1, 6)]
    assert study.trials[0].user_attrs[FAILURE] == "interrupted by SIGTERM"
    assert study.trials[1].user_attrs[RETRY_OF] == [0]
    assert ("reused from trial 0" in caplog.text) == (split == 1)
    assert (f"{n_updates - 1} of 5 updates are done" in caplog.text) == (n_updates > 1)
    assert_ends_as(whole(n_envs), tmp_path, study, 1)
    assert leftovers(tmp_path) == []


def test_two_interruptions_and_the_third_attempt_ends_as_an_only_one(whole, tmp_path):
    stop = interrupted_at((0, 3), (1, 2))
    for _ in range(2):
        real_study.run(tmp_path, 12, stop)
    study, _ = real_study.run(tmp_path, 12)
    assert [t.user_attrs.get(RETRY_OF) for t in study.trials] == [None, [0], [0, 1]]
    assert_ends_as(whole(12), tmp_path, study, 2)
    assert leftovers(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("n_envs", [1, 12])
def test_a_trial_whose_process_is_killed_in_mid_split_goes_on_in_the_next_one(n_envs, whole, tmp_path):
    folder = tmp_path / "a study"
    folder.mkdir()
    for where in ((1, 3), (1, 5)):
        assert run_in_a_process(folder, n_envs, where).returncode == -signal.SIGKILL
    done = run_in_a_process(folder, n_envs)
    assert done.returncode == 0, done.stderr
    study = real_study.open_study_in(folder)
    assert [t.state.name for t in study.trials] == ["FAIL", "FAIL", "COMPLETE"]
    assert [t.user_attrs.get(RETRY_OF) for t in study.trials] == [None, [0], [0, 1]]
    assert_ends_as(whole(n_envs), folder, study, 2)
    assert leftovers(folder) == []


def run_in_a_process(folder: Path, n_envs: int, where: tuple[int, ...] = ()) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "tests.support.real_study", str(folder), str(n_envs), *map(str, where)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, timeout=120, check=False)


# --- what is not taken over -----------------------------------------------------------------------------------------


def spoil_result(folder: Path) -> None:
    (folder / "result.json").write_text('{"agent": {}}')


def spoil_equity(folder: Path) -> None:
    content = (folder / "equity.npz").read_bytes()
    (folder / "equity.npz").write_bytes(content[:-30])


def spoil_policy(folder: Path) -> None:
    content = (folder / BEST_POLICY).read_bytes()
    (folder / BEST_POLICY).write_bytes(content[:-3] + bytes(3))


def change_settings(folder: Path) -> None:
    path = folder.parent / "settings.json"
    path.write_text(json.dumps(read_json(path) | {"code_sha256": "another"}))


SPOILT = {
    "result": (spoil_result, "result.json: field agent.bars is missing"),
    "equity": (spoil_equity, "not a zip file"),
    "policy": (spoil_policy, "is damaged"),
    "settings": (change_settings, "code_sha256 was another in trial 0"),
}


@pytest.mark.parametrize("fault", SPOILT)
def test_a_finished_split_that_is_damaged_or_another_is_not_taken_over(fault, whole, tmp_path, caplog):
    spoil, words = SPOILT[fault]
    results = tmp_path / "results"
    shutil.copytree(whole(12)[0] / "results", results)
    (results / "trial_1").mkdir()
    shutil.copy(results / "trial_0" / "settings.json", results / "trial_1")
    attempts = Attempts(results, 1, (0,))
    assert attempts.take_over(1)[0] == 0
    source = split_folder(results, 0, 0)
    spoil(source)
    assert attempts.take_over(0) is None
    assert "trial 0 split 0: cannot be reused and is retrained" in caplog.text
    assert words in caplog.text
    assert not (split_folder(results, 1, 0) / "result.json").exists()


def test_a_finished_split_with_another_hash_than_the_database_has_is_not_taken_over(whole, tmp_path, caplog):
    folder, study = whole(12)
    results = tmp_path / "results"
    shutil.copytree(folder / "results", results)
    (results / "trial_1").mkdir()
    shutil.copy(results / "trial_0" / "settings.json", results / "trial_1")
    attempts = Attempts(results, 1, (0,), {0: study.trials[0]})
    assert attempts.take_over(1)[0] == 0
    path = split_folder(results, 0, 0) / "result.json"
    better = read_json(path)
    better["agent"]["sharpe"] += 1.0
    path.write_text(json.dumps(better))
    assert attempts.take_over(0) is None
    assert "result.json is not the file that trial 0 was scored with" in caplog.text


def test_a_damaged_checkpoint_of_a_trial_is_refused_and_its_split_begins_anew(whole, tmp_path, caplog):
    real_study.run(tmp_path, 12, interrupted_at((0, 4)))
    (found,) = leftovers(tmp_path)
    found.write_bytes(found.read_bytes()[:-7])
    made = []
    study, _ = real_study.run(tmp_path, 12, lambda *update: made.append(update))
    assert made[0] == (0, 1)
    assert f"{found} is not a complete checkpoint" in caplog.text
    assert_ends_as(whole(12), tmp_path, study, 1)
    assert leftovers(tmp_path) == []


def test_equal_trial_numbers_of_two_studies_do_not_meet(whole, tmp_path):
    """Both are interrupted in trial 0; each goes on from its own."""
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder, n_envs in zip(folders, (12, 1), strict=True):
        real_study.run(folder, n_envs, interrupted_at((0, 3)))
    for folder, n_envs in zip(folders, (12, 1), strict=True):
        study, _ = real_study.run(folder, n_envs)
        assert_ends_as(whole(n_envs), folder, study, 1)


def test_a_failed_trials_checkpoint_goes_with_it(tmp_path):
    real_study.run(tmp_path, 12, interrupted_at((1, 2)))
    calls = []

    def fail_once(split, n_updates):
        calls.append((split, n_updates))
        if len(calls) == 1:
            raise ValueError("broken")

    study, _ = real_study.run(tmp_path, 12, fail_once)
    assert [t.state.name for t in study.trials][:2] == ["FAIL", "FAIL"]
    assert study.trials[1].user_attrs[FAILURE] == "split 1: ValueError: broken"
    assert RETRY_OF not in study.trials[2].user_attrs  # a failure of its own is not tried again
    assert leftovers(tmp_path) == []


def test_a_split_begins_with_fresh_weights(tmp_path):
    """Trained after another split or alone, in a folder that has policies already or not: the same bits."""
    study, _ = real_study.run(tmp_path, 12)
    data = real_study.data()
    settings = resolve(study.trials[0].params | real_study.GIVEN, 12, 0, -1, "ppo")
    policies = []
    for k, folder in ((1, "alone"), (0, "first"), (1, "first")):
        run_split(settings, data, data.folds[k], tmp_path / folder, fabricated.origin(data.dataset))
        policies.append((tmp_path / folder / LAST_POLICY).read_bytes())
    assert policies[0] == policies[2] != policies[1]


def test_an_outcome_is_read_back_as_it_was_described(make_outcome):
    for outcome in (make_outcome(1, 0.5), make_outcome(0, float("nan"), trades=0, exposure=0.0)):
        described = outcome_json(outcome)
        read = decode(json.loads(json.dumps(described)), SplitResult, "result.json")
        assert outcome_json(outcome_of(read)) == described


def test_a_result_from_before_steps_were_written_down_is_still_read(make_outcome):
    described = outcome_json(replace(make_outcome(1, 0.5), stepped_by="triton", scoring_stepped_by="torch"))
    assert outcome_of(decode(described, SplitResult, "result.json")).stepped_by == "triton"
    old = {name: value for name, value in described.items() if "stepped_by" not in name}
    read = outcome_of(decode(old, SplitResult, "result.json"))
    assert (read.stepped_by, read.scoring_stepped_by) == ("", "")


def test_a_disk_that_is_full_for_a_split_fails_its_trial_with_the_cause_and_not_the_next(tmp_path):
    """No file of the first split may be longer than 2000 bytes; the database is not written meanwhile."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    tried = []

    def runner(settings, data, fold, *rest):
        tried.append(fold.index)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000 if len(tried) == 1 else limit[0], limit[1]))
        try:
            return run_split(settings, data, fold, *rest)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)

    study, _ = real_study.run(tmp_path, 12, runner=runner)
    assert study.trials[0].state.name == "FAIL"
    policy = tmp_path / "results" / "trial_0" / "split_0" / "policy_last.safetensors"
    assert study.trials[0].user_attrs[FAILURE] == f"split 0: OSError: [Errno 27] File too large: '{policy}'"
    assert study.trials[1].state.is_finished()
    assert "split_0" in study.trials[1].user_attrs
    assert list((tmp_path / "results" / "trial_0" / "split_0").iterdir()) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_trial_whose_training_diverges_fails_and_is_never_best(value, lab):
    cause = TrainingDiverged(f"the mean reward of a rollout is {value}, not a finite number")
    lab.runner.results = [3.0, cause, *[0.5] * 6]
    study, _ = lab.run(1)
    assert [t.state.name for t in study.trials] == ["FAIL", "COMPLETE"]
    assert "the mean reward" in study.trials[0].user_attrs[FAILURE]
    assert study.best_trial.number == best_trial(study).number == 1


# --- out of memory --------------------------------------------------------------------------------------------------


class Memory:
    """Runs out as often as it is told to, then trains."""

    def __init__(self, *errors):
        self.errors, self.tried = list(errors), []

    def __call__(self, settings, data, fold, out_dir, origin, step, checkpoints):
        self.tried.append((fold.index, settings.train["n_envs"], settings.train["horizon_len"]))
        if self.errors:
            error = self.errors.pop(0)
            if error is not None:
                raise error
        return run_split(settings, data, fold, out_dir, origin, step, checkpoints)


CPU_ERROR = "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"
NO_MEMORY = {
    "Python and NumPy": MemoryError(),
    "torch, CPU": RuntimeError(CPU_ERROR),
    "torch, GPU": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
}


@pytest.mark.parametrize("kind", NO_MEMORY)
def test_out_of_memory_halves_the_environments_of_that_split_once(kind, lab, caplog):
    lab.runner.results = [1.0, NO_MEMORY[kind]]
    study, _ = lab.run(2)
    assert [t.state.name for t in study.trials] == ["COMPLETE", "COMPLETE"]
    tried = [(fold.index, settings.train["n_envs"]) for settings, fold, *_ in lab.runner.calls]
    assert tried == [(0, 4), (1, 4), (1, 2), *((k, 4) for k in range(2, 6)), *((k, 4) for k in range(6))]
    noted = study.trials[0].user_attrs[OUT_OF_MEMORY]
    horizon_len = lab.runner.calls[1][0].train["horizon_len"]
    assert {k: (v["n_envs"], v["horizon_len"]) for k, v in noted.items()} == {"split_1": (2, 2 * horizon_len)}
    assert type(NO_MEMORY[kind]).__name__ in noted["split_1"]["cause"]
    assert caplog.text.count("trial 0 split 1: out of memory with 4 environments") == 1
    assert OUT_OF_MEMORY not in study.trials[1].user_attrs


def test_out_of_memory_twice_fails_the_trial_with_its_cause_and_the_next_one_has_all_environments(lab):
    lab.runner.results = [MemoryError("a"), MemoryError("b")]
    study, _ = lab.run(1)
    assert [t.state.name for t in study.trials] == ["FAIL", "COMPLETE"]
    assert study.trials[0].user_attrs[FAILURE] == "split 0: MemoryError: b"
    assert [settings.train["n_envs"] for settings, *_ in lab.runner.calls] == [4, 2] + [4] * 6


def test_another_error_is_not_taken_for_memory(lab):
    lab.runner.results = [RuntimeError("mat1 and mat2 shapes cannot be multiplied")]
    study, _ = lab.run(1)
    assert study.trials[0].state.name == "FAIL"
    assert [settings.train["n_envs"] for settings, *_ in lab.runner.calls] == [4] * 7


def test_one_environment_cannot_be_halved(lab):
    lab.n_envs = 1
    lab.runner.results = [MemoryError()]
    study, _ = lab.run(1)
    assert study.trials[0].user_attrs[FAILURE] == "split 0: MemoryError: no message"
    assert [settings.train["n_envs"] for settings, *_ in lab.runner.calls] == [1] * 7


def test_a_split_of_half_the_environments_is_trained(tmp_path):
    memory = Memory(MemoryError(), None, None)
    real_study.run(tmp_path, 2, runner=memory)
    assert memory.tried == [(0, 2, 120), (0, 1, 240), (1, 2, 120)]
    settings = load_policy(split_folder(tmp_path / "results", 0, 0) / BEST_POLICY).metadata["settings"]
    assert (settings["n_envs"], settings["horizon_len"]) == (1, 240)


# A run with half the environments has shown how much address space that takes; the limit leaves a little more.
SHORT_OF_MEMORY = """
    import resource, sys
    from pathlib import Path
    from tests.support import real_study
    from train.study.split import run_split
    N_ENVS, SLACK = 65536, 192 << 20
    given = real_study.GIVEN | {"total_env_steps": 2 * N_ENVS, "rollout_samples": 2 * N_ENVS, "lookback": 8,
                                "batch_size": 4096, "n_epochs": 1}
    def most_so_far():
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmPeak:")[2].split()[0]) * 1024
    def runner(settings, data, fold, *rest):
        if settings.train["n_envs"] == N_ENVS:
            resource.setrlimit(resource.RLIMIT_AS, (most_so_far() + SLACK, resource.RLIM_INFINITY))
        return run_split(settings, data, fold, *rest)
    real_study.run(Path(sys.argv[1]) / "warm", N_ENVS // 2, given=given)
    real_study.run(Path(sys.argv[1]) / "short", N_ENVS, runner=runner, given=given)
"""


@pytest.mark.slow
def test_memory_that_is_really_short_halves_the_environments(tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(SHORT_OF_MEMORY), str(tmp_path)]
    # One arena: each thread's own, 64 MiB of addresses that nobody uses, would count as memory here.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1", "PYTHONPATH": str(REPO)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    study = real_study.open_study_in(tmp_path / "short")
    noted = study.trials[0].user_attrs[OUT_OF_MEMORY]
    assert {k: v["n_envs"] for k, v in noted.items()} == {"split_0": 32768}
    assert "memory" in noted["split_0"]["cause"].lower()
    policy = load_policy(split_folder(tmp_path / "short" / "results", 0, 0) / BEST_POLICY)
    assert policy.metadata["settings"]["n_envs"] == 32768
    assert "split_0" in study.trials[0].user_attrs


def test_the_split_that_ran_out_is_noted_by_the_retried_trial_too(whole, tmp_path):
    memory = Memory(MemoryError())
    real_study.run(tmp_path, 12, interrupted_at((1, 3)), runner=memory)
    study, _ = real_study.run(tmp_path, 12)
    assert study.trials[1].user_attrs[OUT_OF_MEMORY] == study.trials[0].user_attrs[OUT_OF_MEMORY]


@pytest.mark.parametrize("n_envs", [2, 4, 7, 12, 64, 256])
def test_half_the_environments_see_as_many_samples_an_update(n_envs):
    import optuna

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=n_envs))
    settings = resolve(sample(build_space(agent="ppo"), study.ask()), n_envs, 0, -1, "ppo")
    half = with_half_the_envs(settings)
    before, after = (s.train["n_envs"] * s.train["horizon_len"] for s in (settings, half))
    assert half.train["n_envs"] == n_envs // 2
    assert before - half.train["n_envs"] < after <= before
    assert (after == before) or n_envs % 2
    unchanged = {"n_envs", "horizon_len", "batch_size"}
    assert all(half.train[name] == value for name, value in settings.train.items() if name not in unchanged)
    assert half.env == settings.env
