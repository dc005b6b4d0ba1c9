"""A run that was killed goes on with the bits of one that was not, and from nothing but its own whole checkpoint."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import pickle
import random
import resource
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

import drl_agents.atomic_file
from drl_agents.policy_file import load_policy
from environment_Alpaca import CryptoEnvAlpaca
from environment_Alpaca_vectorized import VectorizedCryptoEnvAlpaca
from tests.support.killed_writes import killed_at_every_moment
from tests.support.markets import REPO
from tests.support.train_cases import ENV_PARAMS, small_market, small_settings
from train.checkpoint import (
    CHECKPOINT,
    FORMAT,
    CheckpointError,
    Checkpoints,
    Keeper,
    read_checkpoint,
    write_checkpoint,
)
from train.evaluator import mean_growth
from train.run import BEST_POLICY, LAST_POLICY, run_identity, train_policy

TRAIN, VALIDATION = [(0, 200)], [(200, 250), (250, 300)]
TIMES = ("explore_s", "update_s", "evaluate_s")
# Everything of an account is in use, and episodes end within a rollout.
FULL_PARAMS = ENV_PARAMS | {"trailing_stop_pct": 0.01, "stale_bars": 5, "observe_account": True}


class Killed(BaseException):
    """Nothing on the way out catches it, as nothing catches a kill."""


def train(out_dir, checkpoints=None, on_progress=None, env_class=None, trial=0, env_params=FULL_PARAMS, **changes):
    return train_policy(
        small_settings(**changes), small_market(segments=TRAIN), env_params, out_dir, env_class=env_class,
        validation_config=small_market(segments=VALIDATION), metadata={"trial": trial, "data_sha256": {"price": "ab"}},
        on_progress=on_progress, checkpoints=checkpoints,
    )  # fmt: skip


def killed(out_dir, at, earlier=(), every_s=0.0, **how):
    """Train until update `at` was made, keeping a checkpoint after every one before."""

    def kill(progress):
        if progress.n_updates == at:
            raise Killed

    with pytest.raises(Killed):
        train(out_dir, Checkpoints(out_dir, earlier, every_s), kill, **how)


def assert_same_end(whole, resumed):
    """Policies by their bytes, figures and history by their values; of the history not the clock."""
    for name in (BEST_POLICY, LAST_POLICY):
        assert (whole.best_policy.parent / name).read_bytes() == (resumed.best_policy.parent / name).read_bytes(), name
    assert without_times(whole.history) == without_times(resumed.history)
    for name in ("best_score", "env_steps", "n_updates", "gradient_steps"):
        assert getattr(whole, name) == getattr(resumed, name)


def without_times(history):
    return [{k: v for k, v in dataclasses.asdict(p).items() if k not in TIMES} for p in history]


def disturb_global_generators():
    torch.manual_seed(99)
    np.random.seed(99)
    random.seed(99)


KINDS = {
    "ppo, scalar": {"n_envs": 1, "total_env_steps": 256},
    "ppo, 12 native": {"n_envs": 12, "total_env_steps": 1536, "horizon_len": 16},
    "ppo, 12 plain": {"n_envs": 12, "total_env_steps": 1536, "horizon_len": 16, "env_class": VectorizedCryptoEnvAlpaca},
    "ppo, bars": {"n_envs": 12, "total_env_steps": 1536, "horizon_len": 16, "observation_store": "bars"},
    "ppo, linear, target_kl": {"lr_schedule": "linear", "target_kl": 0.001, "total_env_steps": 1024},
    "a2c": {"agent": "a2c", "n_epochs": 1, "total_env_steps": 1024},
}
N_UPDATES = 8
KILLED_AT = {2, 3, 5, 8}  # after 1, 2 (a best policy is there), 4 and 7 updates that were kept


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Every kind's uninterrupted run, made when it is asked for."""
    runs = {}

    def of(kind):
        if kind not in runs:
            runs[kind] = train(tmp_path_factory.mktemp("whole"), **KINDS[kind])
            assert runs[kind].n_updates == N_UPDATES
        return runs[kind]

    return of


@pytest.mark.parametrize("at", sorted(KILLED_AT))
@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_ends_with_the_bits_of_an_uninterrupted_one(kind, at, whole, tmp_path):
    expected = whole(kind)
    first, second = tmp_path / "first", tmp_path / "second"
    killed(first, at, **KINDS[kind])
    disturb_global_generators()  # nothing draws from them
    seen = []
    resumed = train(second, Checkpoints(second, (first,)), lambda p: seen.append(p.n_updates), **KINDS[kind])
    assert seen == list(range(at, N_UPDATES + 1))
    assert_same_end(expected, resumed)


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kills=st.lists(st.integers(2, N_UPDATES), min_size=1, max_size=3))
def test_any_number_of_kills_changes_nothing(kills, whole, tmp_path_factory):
    folders = [tmp_path_factory.mktemp("attempt") for _ in (*kills, 0)]
    for i, at in enumerate(sorted(kills)):
        killed(folders[i], at, tuple(reversed(folders[:i])), **KINDS["ppo, scalar"])
    last = Checkpoints(folders[-1], tuple(reversed(folders[:-1])))
    assert_same_end(whole("ppo, scalar"), train(folders[-1], last, **KINDS["ppo, scalar"]))


def test_the_best_policy_is_taken_over_and_names_the_trial_that_has_it_now(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    worse = iter([0.5, *[0.1] * 9])
    import train.run as loop

    def scored(*_args):
        return next(worse)

    def go(folder, checkpoints, trial, stop_at=None):
        def stop(progress):
            if progress.n_updates == stop_at:
                raise Killed

        return loop.train_policy(
            small_settings(), small_market(segments=TRAIN), ENV_PARAMS, folder, score=scored, on_progress=stop,
            validation_config=small_market(segments=VALIDATION), metadata={"trial": trial}, checkpoints=checkpoints,
        )  # fmt: skip

    with pytest.raises(Killed):
        go(first, Checkpoints(first, every_s=0.0), 3, stop_at=4)
    result = go(second, Checkpoints(second, (first,)), 8)
    before, after = load_policy(first / BEST_POLICY), load_policy(result.best_policy)
    assert result.best_score == 0.5
    assert (before.metadata["trial"], after.metadata["trial"]) == (3, 8)
    assert after.metadata | {"trial": 3} == before.metadata
    assert all(torch.equal(a, b) for a, b in zip(before.layers[0], after.layers[0], strict=True))


@pytest.mark.parametrize("agent", ["sac", "td3", "ddpg"])
def test_an_off_policy_run_keeps_no_checkpoint_and_begins_anew(agent, tmp_path):
    how = {"agent": agent, "total_env_steps": 256, "updates_per_sample": 0.05}
    whole = train(tmp_path / "whole", **how)
    first, second = tmp_path / "first", tmp_path / "second"
    killed(first, 2, **how)
    assert not (first / CHECKPOINT).exists()
    seen = []
    resumed = train(second, Checkpoints(second, (first,), 0.0), lambda p: seen.append(p.n_updates), **how)
    assert seen[0] == 1
    assert_same_end(whole, resumed)


def test_an_environment_whose_state_is_not_known_keeps_no_checkpoint(tmp_path):
    class Derived(CryptoEnvAlpaca):
        """May keep anything."""

    train(tmp_path, Checkpoints(tmp_path, every_s=0.0), n_envs=1, total_env_steps=64, env_class=Derived)
    assert not (tmp_path / CHECKPOINT).exists()


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A folder with the checkpoint of a killed run."""
    folder = tmp_path_factory.mktemp("kept")
    killed(folder, 3)
    return folder


def flipped(content, where):
    position = int(len(content) * where)
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


def test_a_code_bearing_file_is_refused_and_its_code_does_not_run(kept, tmp_path):
    canary = tmp_path / "canary"
    content = pickle.dumps((kept, Payload(str(canary))))
    assert_begins_anew(tmp_path, content, "is not a complete checkpoint")
    torch.save({"state": Payload(str(canary))}, tmp_path / "module.pt")
    assert_begins_anew(tmp_path, (tmp_path / "module.pt").read_bytes(), "is not a complete checkpoint")
    assert not canary.exists()


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


DAMAGED = {
    "empty": (lambda c: b"", "is not a complete checkpoint"),
    "truncated in the header": (lambda c: c[:60], "is not a complete checkpoint"),
    "truncated in the tensors": (lambda c: c[:-5], "is not a complete checkpoint"),
    "zeros": (lambda c: bytes(len(c)), "is not a complete checkpoint"),
    "a header's size that lies": (lambda c: b"\xff" * 8 + c[8:], "is not a complete checkpoint"),
    "bit flipped in the tensors": (lambda c: flipped(c, 0.6), "is damaged"),
    "bit flipped near the end": (lambda c: flipped(c, 0.999), "is damaged"),
}


@pytest.mark.parametrize("fault", DAMAGED)
def test_a_damaged_checkpoint_is_refused_by_name_and_the_run_begins_anew(fault, kept, tmp_path, caplog):
    spoil, words = DAMAGED[fault]
    assert_begins_anew(tmp_path, spoil((kept / CHECKPOINT).read_bytes()), words, caplog)


def assert_begins_anew(tmp_path, content, words, caplog=None, **how):
    """A run that finds `content` for its checkpoint refuses it, naming the file, and makes every update itself."""
    folder = tmp_path / "attempt"
    folder.mkdir(exist_ok=True)
    (folder / CHECKPOINT).write_bytes(content)
    with pytest.raises(CheckpointError, match=words) as refused:
        read_checkpoint(folder / CHECKPOINT, {})
    assert str(folder / CHECKPOINT) in str(refused.value)
    assert "\n" not in str(refused.value)
    if caplog is not None:
        caplog.set_level("INFO")
        seen = []
        train(folder, Checkpoints(folder), lambda p: seen.append(p.n_updates), total_env_steps=256, **how)
        assert seen == [1, 2]
        assert f"{folder / CHECKPOINT}" in caplog.text
        assert words in caplog.text


def test_every_flipped_bit_is_found(kept, tmp_path):
    content = (kept / CHECKPOINT).read_bytes()
    identity = stored_header(kept)["identity"]
    path = tmp_path / CHECKPOINT
    read_checkpoint(kept / CHECKPOINT, identity)
    for position in np.linspace(0, len(content) - 1, 60).astype(int):
        path.write_bytes(flipped(content, position / len(content)))
        with pytest.raises(CheckpointError):
            read_checkpoint(path, identity)


def stored_header(folder):
    with safe_open(folder / CHECKPOINT, framework="pt") as file:
        return json.loads(file.metadata()[FORMAT])


OTHERS = {
    "setting": ({"learning_rate": 1e-3}, "its settings.learning_rate is 0.0003, expected 0.001"),
    "seed": ({"seed": 5}, "its seed is 0, expected 5"),
    "number of environments": ({"n_envs": 2}, "settings.n_envs is 4, expected 2"),
    "rule": ({"env_params": FULL_PARAMS | {"fee_rate": 0.001}}, "its env_params.fee_rate is absent, expected 0.001"),
}


@pytest.mark.parametrize("fault", OTHERS)
def test_the_checkpoint_of_another_run_is_refused_by_what_differs(fault, kept, tmp_path, caplog):
    changes, words = OTHERS[fault]
    seen = []
    run = {"total_env_steps": 512} | changes
    train(tmp_path, Checkpoints(tmp_path, (kept,)), lambda p: seen.append(p.n_updates), **run)
    assert seen[0] == 1
    assert f"{kept / CHECKPOINT} belongs to another run" in caplog.text
    assert words in caplog.text


@pytest.mark.parametrize("what", ["data", "code", "torch"])
def test_other_data_code_or_torch_is_another_run(what, kept, tmp_path, monkeypatch, caplog):
    metadata = {"data_sha256": {"price": "ab"}}
    if what == "data":
        metadata = {"data_sha256": {"price": "cd"}}
    elif what == "code":
        monkeypatch.setattr("train.run.trial_code_sha256", lambda: "another")
    else:
        monkeypatch.setattr(torch, "__version__", "2.0.0")
    seen = []
    train_policy(
        small_settings(), small_market(segments=TRAIN), FULL_PARAMS, tmp_path, metadata=metadata,
        validation_config=small_market(segments=VALIDATION), checkpoints=Checkpoints(tmp_path, (kept,)),
        on_progress=lambda p: seen.append(p.n_updates),
    )  # fmt: skip
    assert seen[0] == 1
    words = {"data": "data_sha256.price is ab", "code": "code_sha256 is ", "torch": "torch is "}
    assert f"belongs to another run: its {words[what]}" in caplog.text


@pytest.mark.parametrize(("there", "here", "is_same"), [(0, 3, True), (-1, -1, True), (-1, 0, False), (1, -1, False)])
def test_another_gpu_is_the_same_run_and_another_kind_of_device_is_not(there, here, is_same):
    known = [{"settings": {"gpu_id": gpu_id, "seed": 0}, "data_sha256": {"price": "ab"}} for gpu_id in (there, here)]
    one, other = (run_identity(facts, {}, None, mean_growth) for facts in known)
    assert (one == other) == is_same


def test_data_without_a_name_is_known_by_its_arrays(tmp_path, caplog):
    def go(folder, market, checkpoints, stop_at=None):
        def stop(progress):
            if progress.n_updates == stop_at:
                raise Killed

        train_policy(small_settings(), market, ENV_PARAMS, folder, on_progress=stop, checkpoints=checkpoints)

    market = small_market(segments=TRAIN)
    with pytest.raises(Killed):
        go(tmp_path / "a", market, Checkpoints(tmp_path / "a", every_s=0.0), stop_at=2)
    changed = market | {"price_array": market["price_array"] * 1.001}
    go(tmp_path / "b", changed, Checkpoints(tmp_path / "b", (tmp_path / "a",)))
    assert "belongs to another run: its data_sha256.price_array" in caplog.text


def test_another_kind_of_safetensors_file_is_refused(kept, tmp_path):
    path = tmp_path / CHECKPOINT
    save_file({"x": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match="is not a checkpoint of this project"):
        read_checkpoint(path, {})
    path.write_bytes((kept / BEST_POLICY).read_bytes())
    with pytest.raises(CheckpointError, match="is not a checkpoint of this project"):
        read_checkpoint(path, {})
    save_file({"x": torch.zeros(3)}, path, {FORMAT: "[1, 2]"})
    with pytest.raises(CheckpointError, match="is not a JSON object"):
        read_checkpoint(path, {})
    save_file({"x": torch.zeros(3)}, path, {FORMAT: '{"format_version": 99}'})
    with pytest.raises(CheckpointError, match="format 99"):
        read_checkpoint(path, {})


def test_an_earlier_attempts_checkpoint_is_used_where_the_latest_is_damaged(kept, tmp_path):
    latest, own = tmp_path / "latest", tmp_path / "own"
    latest.mkdir()
    (latest / CHECKPOINT).write_bytes(b"torn")
    seen = []
    train(own, Checkpoints(own, (latest, kept)), lambda p: seen.append(p.n_updates))
    assert seen == [3, 4]


# --- writing --------------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_due_by_time_and_never_costs_more_than_a_hundredth(tmp_path, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr("train.checkpoint.time.monotonic", lambda: clock[0])
    keeper = Keeper(Checkpoints(tmp_path, every_s=30.0), {}, written_s=clock[0])
    due = []
    for second in range(1, 1000):
        clock[0] = 1000.0 + second
        if keeper.is_due():
            due.append(second)
            started, clock[0] = clock[0], clock[0] + 0.1
            keeper.write({}, {"x": torch.zeros(1)}, started)
    assert due == list(range(30, 1000, 31))  # 0.1 s are worth 10 s, so every 30 s it is
    keeper.cost_s = 4.0
    clock[0] = keeper.written_s + 399.0
    assert not keeper.is_due()
    clock[0] += 1.0
    assert keeper.is_due()


@pytest.mark.parametrize("moment", ["os.open", "os.fsync", "os.fchmod", "os.replace"])
def test_a_failure_at_any_step_of_writing_leaves_the_old_checkpoint(moment, kept, tmp_path, monkeypatch, caplog):
    path = tmp_path / CHECKPOINT
    path.write_bytes((kept / CHECKPOINT).read_bytes())

    def fail(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    keeper = Keeper(Checkpoints(tmp_path, every_s=0.0), {})
    monkeypatch.setattr(f"drl_agents.atomic_file.{moment}", fail)
    for _ in range(3):
        keeper.write({}, {"x": torch.zeros(1)}, 0.0)
    monkeypatch.undo()
    assert path.read_bytes() == (kept / CHECKPOINT).read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == [CHECKPOINT]
    assert caplog.text.count(": No space left on device; training continues") == 1


def test_a_kill_between_any_two_writes_leaves_the_old_file_or_the_new_one(tmp_path):
    """Before and after every file operation of the writing, and in the middle of its bytes."""
    start = tmp_path / "start"
    write_checkpoint(start / CHECKPOINT, {}, {"turn": 1}, {"x": torch.ones(1000)})

    def write(folder):
        write_checkpoint(folder / CHECKPOINT, {}, {"turn": 2}, {"x": torch.zeros(1000)})

    folders = killed_at_every_moment(write, lambda n: shutil.copytree(start, tmp_path / str(n)))
    turns, left_over = [], 0
    for folder in folders:
        facts, tensors = read_checkpoint(folder / CHECKPOINT, {})
        turns.append(facts["turn"])
        assert float(tensors["x"].mean()) == 2 - facts["turn"]
        left_over += len(list(folder.iterdir())) > 1
        Checkpoints(folder).discard()
        assert list(folder.iterdir()) == []  # the temporary file of the kill too
    assert turns == sorted(turns)
    assert set(turns) == {1, 2}
    assert left_over > 5
    assert len(folders) > 20


def run_python(text, *arguments, **options):
    command = [sys.executable, "-c", textwrap.dedent(text), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False, **options)


def test_too_little_memory_for_a_checkpoint_costs_the_checkpoint_and_not_the_run(tmp_path):
    """There is room for safetensors' own copy of the tensors and not for the second, Python's: it panics."""
    program = """
        import logging, resource, sys
        from pathlib import Path
        import torch
        from train.checkpoint import Checkpoints, Keeper
        logging.basicConfig(stream=sys.stdout)
        keeper = Keeper(Checkpoints(Path(sys.argv[1]), every_s=0.0), {})
        keeper.write({}, {"x": torch.zeros(1)}, 0.0)
        tensors = {"x": torch.zeros(60_000_000)}
        own = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (own + 360_000_000, -1))
        keeper.write({}, tensors, 0.0)
        print("written", keeper.n_written)
    """
    done = run_python(program, tmp_path)
    assert done.returncode == 0, done.stderr
    warning, written = done.stdout.splitlines()
    assert ": out of memory while a file of tensors was made" in warning
    assert written == "written 1"


def test_a_full_disk_costs_the_checkpoint_and_not_the_run(tmp_path, caplog):
    """No file may grow beyond what a policy needs, as on a disk that is all but full."""
    whole = train(tmp_path / "whole")
    room = whole.best_policy.stat().st_size + 1000
    write_checkpoint(tmp_path / "measured", {}, {}, {"x": torch.zeros(room)})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        result = train(tmp_path / "full", Checkpoints(tmp_path / "full", every_s=0.0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert_same_end(whole, result)
    assert result.n_checkpoints == 0
    assert ": File too large; training continues" in caplog.text
    assert sorted(p.name for p in (tmp_path / "full").iterdir()) == [BEST_POLICY, LAST_POLICY]


KILLED_TRAINING = """
    import os, signal, sys
    from pathlib import Path
    from tests.train.test_checkpoint import KINDS, train
    from train.checkpoint import Checkpoints
    def kill(progress):
        if progress.n_updates == 5:
            os.kill(os.getpid(), signal.SIGKILL)
    folder = Path(sys.argv[2])
    train(folder, Checkpoints(folder, every_s=0.0), kill, **KINDS[sys.argv[1]])
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ppo, scalar", "ppo, 12 native"])
def test_a_process_that_was_killed_is_gone_on_from_in_another_one(kind, whole, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    done = run_python(KILLED_TRAINING, kind, first)
    assert done.returncode == -9, done.stderr
    seen = []
    resumed = train(second, Checkpoints(second, (first,)), lambda p: seen.append(p.n_updates), **KINDS[kind])
    assert seen == [5, 6, 7, 8]
    assert_same_end(whole(kind), resumed)


def test_the_temporary_files_of_this_module_are_those_of_the_atomic_writer(tmp_path):
    """`discard` looks for them by their name."""
    names = []

    def kept_name(*_args):
        names.extend(p.name for p in tmp_path.iterdir())
        raise OSError(errno.EIO, "Input/output error")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drl_agents.atomic_file.os, "fsync", kept_name)
        with pytest.raises(OSError, match="Input/output"):
            write_checkpoint(tmp_path / CHECKPOINT, {}, {}, {})
    (tmp_path / names[0]).touch()
    Checkpoints(tmp_path).discard()
    assert list(tmp_path.iterdir()) == []
