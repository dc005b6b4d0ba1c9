"""One study on machines that share a database and an artifact store, and no folder.

A results folder stands for a machine; the store is a real S3 server, and a folder where that does not matter.
"""

from __future__ import annotations

import copy
import logging
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from dataclasses import replace as changed
from functools import partial
from pathlib import Path

import optuna
import pytest

from barwise.commands import clean_artifacts
from tests.support import real_study
from tests.support.markets import REPO
from tests.support.moto_server import KEY_ID, SECRET
from train.deploy import refit as refitting
from train.deploy.case import Request
from train.deploy.folder import Deployments
from train.deploy.gates import Limits
from train.deploy.judge import REPLACED, look
from train.deploy.refit import refit
from train.findings.reseed import retrain
from train.findings.returns import read_returns
from train.findings.stored_trial import open_stored, read_trial
from train.finish import run_study
from train.records.errors import StudyError
from train.records.keys import RETRY_OF, WORKER
from train.records.results import split_folder
from train.records.seals import BEST_POLICY, EQUITY
from train.report.collect import write_report
from train.runner.request import StudyRequest
from train.runner.session import missing_here
from train.store.address import absolute_url
from train.store.artifact_files import artifacts_of, fetch_splits, pictures_in
from train.store.artifact_store import artifacts_url, open_artifacts
from train.store.worker_identity import this_worker
from train.study.eligibility import best_trial
from train.study.interruption import Interruption
from train.study.split_plan import SplitPlan

SHARED_BUCKET = "two-machines"
URL = f"s3://{SHARED_BUCKET}/studies"
N_SPLITS = 3
KINDS = ("equity.npz", "band.npz", "result.json", "policy_best.safetensors", "policy_last.safetensors")
PICTURES = 2  # equity.png and band.png


@dataclass(frozen=True)
class Shared:
    """A study whose first trial ran on machine `a` and whose second ran on machine `b`."""

    root: Path
    request: StudyRequest
    calls_of_b: tuple[tuple[str, int], ...]  # method and body bytes of the requests that machine b made

    def stored(self, machine: str):
        return open_stored(self.request.storage, "shared", self.root / machine)

    def page(self, machine: str) -> str:
        stored = self.stored(machine)
        return undated(write_report(stored.study, stored.folder).read_text())

    def trial(self, machine: str):
        return read_trial(self.stored(machine), "best", self.request.data_dir)


def undated(page: str) -> str:
    return re.sub(r"Written [^.]* UTC", "", page)


@pytest.fixture(scope="module")
def shared(moto_process, market_folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("shared")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in moto_process.variables().items():
            patch.setenv(name, value)
        moto_process.client().create_bucket(Bucket=SHARED_BUCKET)
        open_artifacts.cache_clear()
        request = StudyRequest(
            n_trials=1, study_name="shared", storage=absolute_url("sqlite:///study.db", root), results_dir=root / "a",
            data_dir=market_folder, plan=SplitPlan("standard", 2, 2), n_envs=4, break_step=1000, pruner="none",
            artifacts=URL,
        )  # fmt: skip
        run_study(request)
        calls: list[tuple[str, int]] = []

        def count(request, **_: object) -> None:
            calls.append((request.method, int(request.headers.get("Content-Length", 0))))

        open_artifacts(URL).backend.client.meta.events.register("before-send.s3", count)
        run_study(changed(request, n_trials=2, results_dir=root / "b", artifacts=None))
        yield Shared(root, request, tuple(calls))
    open_artifacts.cache_clear()


def test_every_machine_writes_the_same_page_but_for_its_date(shared):
    pages = {machine: shared.page(machine) for machine in ("a", "fresh")}
    pages["b"] = undated((shared.root / "b" / "shared" / "report.html").read_text())  # as its trainer ended with it
    assert pages["a"] == pages["b"] == pages["fresh"]
    assert "are missing" not in pages["a"]
    assert not (shared.root / "fresh" / "shared" / "trial_0" / "split_0" / BEST_POLICY).exists()  # no page needs it
    for page in pages.values():
        assert KEY_ID not in page
        assert SECRET not in page


def test_a_trial_costs_so_many_bytes_and_calls(shared):
    """Six splits of a band study cost at most 33 calls: 5 files a split, settings.json and two pictures.

    A policy whose last weights are its best ones is sent once.
    """
    methods = Counter(method for method, _ in shared.calls_of_b)
    attributes = shared.stored("b").study.trials[1].user_attrs
    sealed = [set(attributes[f"split_{k}"]["files"].values()) for k in range(N_SPLITS)]
    probe = 1
    assert methods["PUT"] == probe + sum(len(hashes) - 1 for hashes in sealed) + 1 + PICTURES
    assert methods["PUT"] <= probe + N_SPLITS * len(KINDS) + 1 + PICTURES
    assert methods["DELETE"] == probe
    assert methods["HEAD"] == methods["POST"] == 0
    sent = sum(n_bytes for method, n_bytes in shared.calls_of_b if method == "PUT")
    trial = shared.root / "b" / "shared" / "trial_1"
    files = [trial / "settings.json", *(trial / f"split_{k}" / name for k in range(N_SPLITS) for name in KINDS)]
    assert sent < sum(path.stat().st_size for path in files) + 400_000  # of the pictures
    # What machine b fetched: the other trial's curves, and what the page shows of it if it is the best.
    assert methods["GET"] <= 2 + N_SPLITS * 3 + 1 + 6


def test_a_machine_that_has_nothing_evaluates_the_best_trial(shared):
    here, there = (shared.trial(machine) for machine in ("a", "c"))
    assert [path.read_bytes() for path in here.policies] == [path.read_bytes() for path in there.policies]
    returns = [read_returns(shared.stored(machine).study, shared.stored(machine).folder) for machine in ("a", "d")]
    assert (returns[0].account == returns[1].account).all()


def test_a_refit_and_other_seeds_are_trained_on_one_machine_only(shared, monkeypatch):
    refit(shared.trial("a"), 0, 0)
    rows = retrain(shared.trial("a"), 0, 1)

    def train(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(refitting, "train_policy", train)
    assert refit(shared.trial("e"), 0, 0).metadata["refit_seed"] == 0
    assert retrain(shared.trial("e"), 0, 1, runner=train) == rows


def test_a_deployment_is_judged_from_the_store_alone(shared, tmp_path):
    verdicts = []
    for machine in ("b", "f"):
        deployments = Deployments(tmp_path / machine)
        deployments.prepare()
        request = Request(
            storage=shared.request.storage, study_name="shared", deployments=tmp_path / machine,
            results=shared.root / machine, data_dir=shared.request.data_dir,
            limits=Limits(allow_synthetic=True, allow_unproven=True, allow_unchecked=True),
        )  # fmt: skip
        verdicts.append(look(request, deployments, Interruption()))
    texts = [re.sub(r"\d{8}T\d+Z", "", verdict.text) for verdict in verdicts]  # the name has the time and a hash
    assert texts[0] == texts[1]
    assert [verdict.kind for verdict in verdicts] == [REPLACED] * 2


@pytest.mark.parametrize("name", [EQUITY, BEST_POLICY])
def test_a_file_that_was_changed_in_the_store_is_refused(shared, name, caplog):
    stored = shared.stored("a")
    ours, best = artifacts_of(stored.study), best_trial(stored.study)
    digest = best.user_attrs["split_0"]["files"][name]
    (content,) = ours.store.insist([lambda: ours.store.read(f"{ours.uuid}/{digest}")])

    def read() -> None:
        if name == EQUITY:
            there = shared.stored(name)
            read_returns(there.study, there.folder)
        else:
            shared.trial(name)

    ours.store.write(f"{ours.uuid}/{digest}", content[:-1])
    with pytest.raises(StudyError, match="splits have an equity.npz" if name == EQUITY else "lacks 1 of 3 policies"):
        read()
    assert "was altered, so it is not used" in caplog.text
    ours.store.write(f"{ours.uuid}/{digest}", content)
    read()


def test_a_copy_of_another_machines_file_that_is_not_the_databases_is_fetched_again(shared):
    """As after a database was restored from an earlier copy, and another machine ran a trial of the same number."""
    stored = shared.stored("a")
    trial, path = copy.deepcopy(stored.study.trials[0]), split_folder(stored.folder, 0, 0) / EQUITY
    whole, other = path.read_bytes(), b"of a trial that is gone"
    path.write_bytes(other)
    fetch_splits(stored.study, stored.folder, [trial], (EQUITY,))
    assert path.read_bytes() == other  # of this machine's own trial: its reader refuses it
    trial.user_attrs[WORKER] = trial.user_attrs[WORKER] | {"host": "elsewhere"}
    fetch_splits(stored.study, stored.folder, [trial], (EQUITY,))
    assert path.read_bytes() == whole
    assert path.with_name(f"{EQUITY}.stale").read_bytes() == other


def test_pictures_of_trials_are_in_the_store(shared):
    study = shared.stored("a").study
    pictures = pictures_in(study.user_attrs)
    for trial in study.trials:
        found = optuna.artifacts.get_all_artifact_meta(trial, storage=study._storage)
        assert {meta.filename for meta in found} == {"equity.png", "band.png"}
        assert all(pictures.open_reader(meta.artifact_id).read(4) == b"\x89PNG" for meta in found)
    assert not (shared.root / "a" / "artifacts").exists()


def test_a_study_keeps_its_store(shared, tmp_path):
    with pytest.raises(StudyError, match=rf"study shared uses {URL}; omit the flag"):
        run_study(changed(shared.request, artifacts="s3://other"))
    assert "artifacts" not in collect_text(shared)


def collect_text(shared) -> str:
    """What the study's attributes say besides the identity and hashes."""
    attributes = shared.stored("a").study.user_attrs
    return str({name: attributes[name] for name in ("data", "command", "results")})


def test_a_study_without_a_store_does_not_get_one_later_and_says_what_is_missing(tmp_path, lab, caplog):
    study, _ = lab.run(1)
    assert missing_here(study, lab.folder / "results") == {}
    trial = study.ask()
    trial.set_user_attr(WORKER, {**vars(this_worker()), "host": "elsewhere", "machine": "of another boot"})
    assert missing_here(study, lab.folder / "results") == {"elsewhere": 1}
    split_folder(lab.folder / "results", trial.number, 0).mkdir(parents=True)  # a file system that both see
    assert missing_here(study, lab.folder / "results") == {}


# ------------------------------------------------------------------------------------------------- another's retry
@pytest.mark.slow
def test_a_killed_trial_goes_on_on_another_machine_from_its_split_and_its_checkpoint(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    store = artifacts_url(str(tmp_path / "store"), tmp_path)
    open_artifacts(store).reach()
    shared = tmp_path / "shared"
    shared.mkdir()
    command = [sys.executable, "-m", "tests.support.real_study", str(shared), "4", "1", "3", str(shared / "a"), store]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)}
    assert subprocess.run(command, cwd=REPO, env=environment, check=False).returncode == -signal.SIGKILL
    study, _ = real_study.run(shared, 4, results=shared / "results", artifacts=store)
    assert study.trials[1].user_attrs[RETRY_OF] == [0]
    assert "trial 1 split 0: reused from trial 0" in caplog.text
    assert re.search(r"resuming from .*trial_0/split_1/checkpoint.safetensors: 2 of 5 updates are done", caplog.text)
    first, second = (split_folder(shared / place, n, 0) / EQUITY for n, place in enumerate(("a", "results")))
    assert first.read_bytes() == second.read_bytes()
    uuid = study.user_attrs["uuid"]
    kept = {found.key.partition("/")[2] for found in open_artifacts(store).listed(uuid)}
    assert any(name.startswith("checkpoint_") for trial in study.trials for name in trial.user_attrs)
    splits = [v for trial in study.trials for name, v in trial.user_attrs.items() if name.startswith("split_")]
    assert kept == {digest for split in splits for digest in split["files"].values()}  # no checkpoint is left


# ------------------------------------------------------------------------------------------------------ cleaning up
def test_what_a_deleted_study_left_is_listed_and_removed_by_its_id(tmp_path, capsys):
    (tmp_path / "here").mkdir()
    store = open_artifacts(artifacts_url(str(tmp_path / "store"), tmp_path))
    store.reach()
    kept = real_study.run(tmp_path / "here", 4, target=1, runner=quick, artifacts=store.url)[0].user_attrs["uuid"]
    deleted = "d" * 32
    store.insist([partial(store.write, f"{deleted}/{i}", bytes(1000)) for i in range(3)])
    flags = ["--artifacts", store.url, "--storage", f"sqlite:///{tmp_path}/here/study.db"]

    def clean(*more: str) -> str:
        assert clean_artifacts.clean(clean_artifacts.parser().parse_args([*flags, *more])) is None
        return capsys.readouterr().out

    said = clean()
    assert re.search(rf"{deleted}  \(not in this database\) +3 files", said)
    assert re.search(rf"{kept}  s ", said)
    with pytest.raises(StudyError, match="study s is in the database"):
        clean("--remove", kept)
    with pytest.raises(StudyError, match="has no files of this study"):
        clean("--remove", "e" * 32)
    assert f"removed 3 files of {deleted}" in clean("--remove", deleted)
    assert deleted not in clean()
    assert kept in clean()


def quick(settings, data, fold, out_dir, origin, on_progress=None, checkpoints=None):
    """A split that leaves one file."""
    from tests.support.lab import outcome

    out_dir.mkdir(parents=True, exist_ok=True)
    (out_dir / "result.json").write_text("{}")
    return outcome(fold.index, 1.0)
