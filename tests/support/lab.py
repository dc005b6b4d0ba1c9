"""A small market on disk, and a stand-in for the training of a split."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from market.dataset import Dataset, save_dataset
from market.sample import synthetic_dataset
from tests.support import fabricated_study as fabricated
from train.finish import run_study
from train.report.artifacts import picture_of
from train.runner.request import StudyRequest
from train.runner.worker import Limits, run_worker
from train.store.address import absolute_url
from train.store.database import open_study
from train.study.folds import fold_data
from train.study.interruption import Interruption
from train.study.objective import ANYTHING, Bounds, Objective, RunSettings
from train.study.progress import Reporter
from train.study.search_space import build_space
from train.study.split import SplitOutcome
from train.study.split_plan import SplitPlan

TICKERS = ("BTC", "ETH", "LTC")
IDENTITY = fabricated.identity() | {"search space": {"x": "1"}}


@pytest.fixture(scope="session")
def market() -> Dataset:
    return synthetic_dataset("5m", 3000, TICKERS, seed=1)


@pytest.fixture(scope="session")
def market_folder(market, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "5m"
    save_dataset(market, folder)
    return folder


@pytest.fixture(scope="session")
def script():
    """The trainer as a module, to call its `main` without starting Python again."""
    path = Path(__file__).resolve().parents[2] / "scripts" / "training" / "1_optimize_unified.py"
    spec = importlib.util.spec_from_file_location("optimize_unified", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def folded(market):
    return fold_data(market, SplitPlan("standard", 3, 2))


def outcome(
    fold: int, sharpe: float, equal_weight: float = 0.0, trades: int = 3, exposure: float = 0.5
) -> SplitOutcome:
    agent = fabricated.figures(sharpe=sharpe, trades=trades, exposure=exposure)
    return SplitOutcome(fold, agent, fabricated.figures(sharpe=equal_weight, trades=3), 1000, 5e4, 1e4, 0.01)


@dataclass
class FakeRunner:
    """Returns the Sharpes it was given, trial after trial and split after split; an exception is raised instead."""

    results: list = field(default_factory=list)
    calls: list = field(default_factory=list)

    def __call__(self, settings, data, fold, out_dir, origin, on_progress=None, checkpoints=None) -> SplitOutcome:
        self.calls.append((settings, fold, out_dir, origin))
        result = self.results.pop(0) if self.results else 1.0
        if isinstance(result, BaseException):
            raise result
        if callable(result):
            result = result()
        return result if isinstance(result, SplitOutcome) else outcome(fold.index, result)


@dataclass
class Lab:
    """A study on a database of its own, with a stand-in for training."""

    folder: Path
    folded: object
    runner: FakeRunner
    interruption: Interruption
    pruner: object
    seed: int = 0
    n_envs: int = 4
    bounds: Bounds = ANYTHING

    @property
    def url(self):
        return absolute_url("sqlite:///study.db", self.folder)

    def open(self, must_exist: bool = False, identity=None):
        return open_study(self.url, "s", identity or IDENTITY, must_exist, self.pruner)

    def run(self, target: int, timeout_s: float | None = None):
        study = self.open()
        space = build_space(longest_episode_bars=self.folded.longest_episode_bars, agent="ppo")
        run = RunSettings(self.n_envs, self.seed, -1, self.folder / "results", "test", bounds=self.bounds)
        reporter = Reporter(study, space, len(self.folded.folds), target)
        objective = Objective(space, [self.folded], run, reporter, self.interruption, self.runner)
        with self.interruption:
            ending = run_worker(study, objective, self.url, Limits(target, timeout_s), self.interruption, picture_of)
        return study, ending


@dataclass(frozen=True)
class TinyStudy:
    """A study of real trials, a second each, with everything it left behind."""

    url: object
    name: str
    results: Path
    data_dir: Path

    @property
    def folder(self) -> Path:
        return self.results / self.name


@pytest.fixture(scope="session")
def tiny_study(market_folder, tmp_path_factory) -> TinyStudy:
    root = tmp_path_factory.mktemp("tiny")
    url = absolute_url("sqlite:///study.db", root)
    run_study(
        StudyRequest(
            n_trials=3, study_name="tiny", storage=url, results_dir=root / "results", data_dir=market_folder,
            plan=SplitPlan("standard", 2, 2), n_envs=4, break_step=1000, use_best_ranges=True, pruner="none",
        )
    )  # fmt: skip
    return TinyStudy(url, "tiny", root / "results", market_folder)


@pytest.fixture
def make_outcome():
    return outcome


@pytest.fixture
def lab(tmp_path, folded):
    from optuna.pruners import NopPruner

    return Lab(tmp_path, folded, FakeRunner(), Interruption(), NopPruner())
