"""A small real study whose winner can trade, one whose winner cannot, and both ready to be handed over."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.trial import FrozenTrial, create_trial

from market import lookahead_record
from market.dataset import save_dataset
from market.sample import synthetic_dataset
from tests.support.lookahead_cases import as_checked
from train.checkpoint import copy_policy
from train.deploy.case import Request
from train.deploy.folder import Deployments
from train.deploy.gates import Limits
from train.deploy.judge import Verdict, look
from train.deploy.refit import refit
from train.findings.stored_trial import StoredStudy, StoredTrial, open_stored, read_trial
from train.finish import run_study
from train.records.results import trial_folder
from train.records.seals import seal
from train.runner.request import StudyRequest
from train.store.address import absolute_url
from train.study.interruption import Interruption
from train.study.split_plan import SplitPlan


@pytest.fixture(autouse=True)
def short_data_is_enough(monkeypatch):
    """Bars ahead that columns must be compared with: data sets here are short."""
    monkeypatch.setattr(lookahead_record, "LEAST_LAGS", 0)


N_BARS, HELD_OUT = 2000, 0.2


@dataclass(frozen=True)
class World:
    """A study's database, results, data and deployments, in one folder."""

    root: Path
    name: str

    @property
    def url(self):
        return absolute_url("sqlite:///study.db", self.root)

    @property
    def data_dir(self) -> Path:
        return self.root / "5m"

    @property
    def deployments(self) -> Deployments:
        return Deployments(self.root / "deployments")

    def request(self, **changes: Any) -> Request:
        limits = Limits(**({"allow_synthetic": True} | changes.pop("limits", {})))
        values = {"storage": self.url, "study_name": self.name, "deployments": self.root / "deployments"}
        values |= {"results": self.root / "results", "data_dir": self.data_dir, "limits": limits}
        return Request(**(values | changes))

    def look(self, **changes: Any) -> Verdict:
        request = self.request(**changes)
        if not request.dry_run:
            self.deployments.prepare()
        return look(request, self.deployments, Interruption())

    def trial(self, which: str = "best") -> StoredTrial:
        return read_trial(open_stored(self.url, self.name, self.root / "results"), which, self.data_dir)

    def events(self, *kinds: str) -> list[dict[str, Any]]:
        return [event for event in self.deployments.log.read() if not kinds or event["event"] in kinds]

    def flags(self) -> list[str]:
        return [
            "--study-name", self.name, "--storage", f"sqlite:///{self.root / 'study.db'}", "--results-dir",
            str(self.root / "results"), "--data-dir", str(self.data_dir), "--deployments-dir",
            str(self.root / "deployments"),
        ]  # fmt: skip


def make_world(root: Path, name: str, market: Any, n_trials: int, break_step: int) -> World:
    """Run the study and refit its winner."""
    save_dataset(as_checked(market), root / "5m")
    world = World(root, name)
    run_study(
        StudyRequest(
            n_trials=n_trials, study_name=name, storage=world.url, results_dir=root / "results",
            data_dir=world.data_dir, plan=SplitPlan("kfold", 2, 2, HELD_OUT), n_envs=12, break_step=break_step,
            use_best_ranges=True, pruner="none", seed=1,
        )
    )  # fmt: skip
    return world


def add_idle_trials(world: World, n: int) -> None:
    """Completed trials whose accounts move without aim, from the files of trial 0: PBO asks for ten trials."""
    stored, random = open_stored(world.url, world.name, world.root / "results"), np.random.default_rng(0)
    pattern = stored.study.trials[0]
    for _ in range(n):
        number = copied_trial(stored, 0)
        for path in trial_folder(stored.folder, number).glob("split_*/equity.npz"):
            with np.load(path) as file:
                columns = {name: file[name] for name in file.files}
            moves = 1.0 + 0.001 * random.standard_normal(len(columns["equity"]))
            moves[np.diff(columns["segment"], prepend=-1) != 0] = 1.0
            for segment in np.unique(columns["segment"]):
                rows = columns["segment"] == segment
                columns["equity"][rows] = columns["equity"][rows][0] * np.cumprod(moves[rows])
            np.savez(path, **columns)
        add_copied(stored, pattern, number, min(t.value for t in stored.study.trials) - 1.0)


def copied_trial(stored: StoredStudy, source: int) -> int:
    """The files of a trial as those of the study's next one; its number."""
    number = len(stored.study.get_trials(deepcopy=False))
    target = trial_folder(stored.folder, number)
    shutil.copytree(trial_folder(stored.folder, source), target, ignore=shutil.ignore_patterns("refit_*"))
    settings = json.loads((target / "settings.json").read_text()) | {"trial": number}
    (target / "settings.json").write_text(json.dumps(settings))
    for path in target.glob("split_*/policy_*.safetensors"):
        copy_policy(path, path, {"trial": number})
    return number


def add_copied(stored: StoredStudy, pattern: FrozenTrial, number: int, value: float) -> None:
    """The database's part of `copied_trial`."""
    attributes = dict(pattern.user_attrs)
    for split in pattern.intermediate_values:
        attributes[f"split_{split}"] |= seal(stored.folder, number, split)
    stored.study.add_trial(
        create_trial(value=value, params=pattern.params, distributions=pattern.distributions, user_attrs=attributes,
                     intermediate_values=pattern.intermediate_values)
    )  # fmt: skip


@pytest.fixture(scope="session")
def planted_study(tmp_path_factory) -> World:
    from benchmarks.calibration import PLANTED, make_market  # loads what draws pictures

    market = make_market(PLANTED, 1, N_BARS)
    world = make_world(tmp_path_factory.mktemp("planted study"), "planted", market, 3, 150_000)
    add_idle_trials(world, 8)
    refit(world.trial(), 1, 0)
    return world


@pytest.fixture(scope="session")
def noise_study(tmp_path_factory) -> World:
    market = synthetic_dataset("5m", N_BARS, ("BTC", "ETH", "LTC"), seed=1)
    world = make_world(tmp_path_factory.mktemp("noise"), "noise", market, 2, 1000)
    refit(world.trial(), 1, 0)
    return world


@pytest.fixture
def planted(planted_study, tmp_path) -> World:
    return copied(planted_study, tmp_path / "planted")


@pytest.fixture
def noise(noise_study, tmp_path) -> World:
    return copied(noise_study, tmp_path / "noise")


def copied(world: World, root: Path) -> World:
    """One that a test may change."""
    shutil.copytree(world.root, root)
    return World(root, world.name)
