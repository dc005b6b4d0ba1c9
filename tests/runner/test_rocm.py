"""What is set for an AMD GPU, when it is, and that a user's own values and other devices are left alone.

A ROCm build of torch is stood in for by its version and its BLAS switch; nothing here needs a GPU.
"""

import logging
import os
import pickle
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from barwise.commands import optimize
from drl_agents import host_copies
from tests.support.train_cases import small_settings
from train import rocm
from train import worker_program as worker_process
from train.device import prepare_device
from train.records.errors import StudyError
from train.rocm import apply_rocm_settings
from train.runner import session
from train.runner.crew import Orders
from train.runner.request import StudyRequest
from train.runner.sharing import SharedData
from train.store.address import absolute_url
from train.study.interruption import Interruption
from train.study.objective import Objective, RunSettings
from train.study.progress import Reporter
from train.study.search_space import build_space
from train.study.split_plan import SplitPlan

OURS = ("MIOPEN_FIND_MODE", "MIOPEN_USER_DB_PATH", "MIOPEN_CUSTOM_CACHE_DIR")


class BlasSwitch:
    """As torch.backends.cuda.preferred_blas_library of a ROCm build."""

    def __init__(self, fails=False):
        self.library, self.asked, self.fails = "hipblas", [], fails

    def __call__(self, library=None):
        if library is not None:
            self.asked.append(library)
            if self.fails:
                raise RuntimeError("Cannot set preferred backend to cuBLASLt if PyTorch was not compiled with it.")
            self.library = library
        return self.library


@pytest.fixture
def blas(monkeypatch):
    switch = BlasSwitch()
    monkeypatch.setattr(torch.backends.cuda, "preferred_blas_library", switch)
    return switch


@pytest.fixture
def a_rocm_build(monkeypatch, blas):
    monkeypatch.setattr(torch.version, "hip", "6.4.43482")
    return blas


@pytest.fixture(autouse=True)
def silent_environment(monkeypatch, tmp_path):
    """No variable of ours, a cache folder of the test's own, and everything put back."""
    for name in (*OURS, *rocm.BLAS_VARIABLES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = dict(os.environ)
    yield
    for name in set(os.environ) - set(before):
        del os.environ[name]
    host_copies.use_asynchronous_copies(False)


def ours():
    return {name: os.environ[name] for name in OURS if name in os.environ}


def lines(caplog):
    return [record.getMessage() for record in caplog.records if "ROCm" in record.getMessage()]


def test_on_a_rocm_build_everything_is_set_and_one_line_says_so(a_rocm_build, caplog, tmp_path):
    caplog.set_level(logging.INFO, "train")
    apply_rocm_settings(0)
    folder = tmp_path / "cache" / "environment_Alpaca" / "miopen"
    assert ours() == {
        "MIOPEN_FIND_MODE": "1", "MIOPEN_USER_DB_PATH": str(folder / "db"),
        "MIOPEN_CUSTOM_CACHE_DIR": str(folder / "kernels"),
    }  # fmt: skip
    assert a_rocm_build.asked == ["hipblaslt"]
    assert host_copies.uses_asynchronous_copies()
    (line,) = lines(caplog)
    for words in (*OURS, "hipblaslt", "asynchronous copies", "--no-rocm-settings"):
        assert words in line
    apply_rocm_settings(0)
    assert len(lines(caplog)) == 1, "a second call changes nothing and says nothing"


@pytest.mark.parametrize("name", OURS)
def test_a_variable_that_the_user_set_stays_and_is_named(name, a_rocm_build, caplog, monkeypatch):
    caplog.set_level(logging.INFO, "train")
    monkeypatch.setenv(name, "")  # an empty value is a value too
    apply_rocm_settings(0)
    assert os.environ[name] == ""
    assert set(ours()) == set(OURS)
    assert f"already set in your environment: {name}" in lines(caplog)[0]


@pytest.mark.parametrize("name", rocm.BLAS_VARIABLES)
@pytest.mark.parametrize("value", ["0", "1"])
def test_a_blas_library_that_the_user_chose_stays(name, value, a_rocm_build, caplog, monkeypatch):
    caplog.set_level(logging.INFO, "train")
    monkeypatch.setenv(name, value)
    apply_rocm_settings(0)
    assert a_rocm_build.asked == []
    assert name in lines(caplog)[0]


@pytest.mark.parametrize("gpu_id", [-1, 0])
def test_nothing_is_set_on_an_nvidia_or_cpu_build(gpu_id, blas, caplog, monkeypatch):
    caplog.set_level(logging.INFO, "train")
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    apply_rocm_settings(gpu_id)
    assert (ours(), blas.asked, host_copies.uses_asynchronous_copies(), lines(caplog)) == ({}, [], False, [])


def test_nothing_is_set_for_the_cpu_of_a_rocm_build(a_rocm_build, caplog):
    caplog.set_level(logging.INFO, "train")
    apply_rocm_settings(-1)
    assert (ours(), a_rocm_build.asked, host_copies.uses_asynchronous_copies(), lines(caplog)) == ({}, [], False, [])


def test_the_flag_leaves_everything_alone(a_rocm_build, caplog):
    caplog.set_level(logging.INFO, "train")
    apply_rocm_settings(0, wanted=False)
    assert (ours(), a_rocm_build.asked, host_copies.uses_asynchronous_copies(), lines(caplog)) == ({}, [], False, [])


def test_a_torch_without_hipblaslt_is_no_error(a_rocm_build, caplog):
    caplog.set_level(logging.INFO, "train")
    a_rocm_build.fails = True
    for _ in range(2):
        apply_rocm_settings(0)
    (line,) = lines(caplog)
    assert "BLAS library" not in line


@pytest.mark.parametrize("place", ["a file", "nowhere"])
def test_without_a_place_for_its_files_miopen_keeps_its_own(place, a_rocm_build, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file") if place == "a file" else "")
    monkeypatch.delenv("HOME", raising=False)
    apply_rocm_settings(0)
    assert set(ours()) == {"MIOPEN_FIND_MODE"}


def test_the_device_is_prepared_with_the_settings_only_where_training_asks_for_them(a_rocm_build, monkeypatch):
    seen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: seen.append(ours()) or False)
    for wanted in (False, True):
        with pytest.raises(ValueError, match="there is no GPU 0"):
            prepare_device(0, torch.get_num_threads(), rocm_settings=wanted)
    assert (seen[0], set(seen[1])) == ({}, set(OURS)), "set before torch looks for the device"


@pytest.mark.parametrize("wanted", [True, False])
def test_a_training_run_asks_for_what_its_settings_say(wanted, a_rocm_build, tmp_path):
    from train.run import train_policy

    with pytest.raises(ValueError, match="there is no GPU 99"):
        train_policy(small_settings(gpu_id=99, rocm_settings=wanted), {}, {}, tmp_path)
    assert bool(ours()) is wanted


# ---------------------------------------------------------------- a study
def request_with(tmp_path, **more):
    return StudyRequest(n_trials=1, study_name="s", storage=absolute_url("sqlite:///s.db", tmp_path),
                        results_dir=tmp_path, data_dir=tmp_path, plan=SplitPlan("standard", 3, 2), **more)  # fmt: skip


@pytest.mark.parametrize(("flags", "wanted"), [((), True), (("--no-rocm-settings",), False)])
def test_the_trainers_flag_reaches_the_study(flags, wanted):
    assert optimize.request(optimize.parser().parse_args(list(flags))).rocm_settings is wanted
    assert "--no-rocm-settings" in optimize.parser().format_help()


@pytest.mark.parametrize("wanted", [True, False])
def test_a_worker_process_sets_them_before_it_builds_anything_on_the_device(
    wanted, a_rocm_build, monkeypatch, tmp_path, caplog
):
    caplog.set_level(logging.INFO, "train")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    request = request_with(tmp_path, gpu_id=1, rocm_settings=wanted)

    def first_step(*_arguments):
        raise StudyError("far enough")

    monkeypatch.setattr(session, "make_space", first_step)
    monkeypatch.setattr(SharedData, "open", lambda _self: ("data",))
    orders = pickle.loads(pickle.dumps(Orders(request, SharedData((), ()), 1, logging.INFO)))
    with Interruption() as interruption:
        ending = worker_process._work(orders, interruption)
    assert ending.error == "worker 1: far enough"
    assert (bool(ours()), a_rocm_build.asked, len(lines(caplog))) == (wanted, ["hipblaslt"] * wanted, int(wanted))


@pytest.mark.parametrize("wanted", [True, False])
def test_every_trial_of_a_study_has_the_flag_among_its_settings(wanted, tmp_path, folded):
    space, run = build_space(), RunSettings(4, 0, 0, tmp_path, "v", rocm_settings=wanted)
    objective = Objective(space, [folded], run, Reporter.__new__(Reporter), Interruption())
    values = {name: r.choices[0] if hasattr(r, "choices") else r.low for name, r in space.ranges.items()}
    assert objective._resolve(values, folded, folded.folds[0]).train["rocm_settings"] is wanted


def test_every_worker_of_a_study_gets_the_flag(monkeypatch, tmp_path, folded):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    request = request_with(tmp_path, gpu_id=0, gpu_ids=(0, 1), workers=2, rocm_settings=False)
    asked = []

    class Recorded:
        def __init__(self, request_of, *_arguments):
            asked.extend(request_of(number, None) for number in range(2))

        def run(self):
            return None

    monkeypatch.setattr(session, "Supervisor", Recorded)
    study = SimpleNamespace(study_name="s")
    session._run_processes(session.OpenedStudy(study, (folded,), build_space(), 4, tmp_path), request, None, None, "")
    assert [(r.gpu_id, r.rocm_settings) for r in asked] == [(0, False), (1, False)]


def test_the_flag_is_no_part_of_what_makes_trials_comparable():
    from train.checkpoint import anywhere
    from train.study.split_files import settings_sha256

    settings = small_settings(gpu_id=0)
    other = replace(settings, rocm_settings=False)
    assert settings_sha256(settings, {}) == settings_sha256(other, {})
    assert anywhere(vars(settings)) == anywhere(vars(other))
