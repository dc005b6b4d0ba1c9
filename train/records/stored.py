"""Records of what a study leaves behind; `train.records.record_files` reads and writes them.

A field without a default must be in the file. One with a default came later than commit c6a6d1f, or is not known of
every study. Fields are in the order of the file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from train.records.account import Metrics

Blocks = tuple[tuple[int, int], ...]  # first, last_exclusive bar of each
# A figure that came later than commit c6a6d1f: None is undefined, UNSET that the file does not have it.
LaterFigure = float | None | msgspec.UnsetType


@dataclass(frozen=True)
class Holdout:
    """Which bars of a data set are held out, without the bars themselves."""

    first_time_s: int  # close of the first held-out bar, UTC
    last_time_s: int
    bars: int
    purged_bars: int  # between the study's last bar and the first held-out one; of neither
    sha256: str  # of the held-out bars and the purged ones before them, which an observation reaches back to
    parent_sha256: str  # of the data set on disk


@dataclass(frozen=True, kw_only=True)
class VenueTerms:
    """Whose order rules and fees a study trades under, of when, and at which volume."""

    name: str
    volume_30d: float  # USD
    order_rules_as_of: str
    order_rules_source: str = ""
    fees_as_of: str


@dataclass(frozen=True)
class OrderRules:
    """Smallest order of a coin and the step of its quantity, in coins."""

    min_order_qty: float
    qty_increment: float


@dataclass(frozen=True)
class Rules:
    """Rules of the simulator that readers of results use, as `environment_Alpaca_vectorized.EnvParams` has them."""

    initial_capital: float
    buy_fee_rate: float  # fraction of notional
    sell_fee_rate: float
    slippage_rate: float
    trailing_stop_pct: float = 0.0
    stale_bars: int = 0


# ----------------------------------------------------------------------------------------------------------- provenance
@dataclass(frozen=True)
class Origin:
    """Which bars a result stands on."""

    synthetic: bool
    data_label: str
    data_sha256: str


@dataclass(frozen=True)
class Made:
    """What made a file of figures, from what; the first fields of every such file."""

    study: str
    uuid: str
    trial: int | None
    data_sha256: str
    seed: int | None  # of the study; of a split's result, that it was trained from
    code_version: str = ""


@dataclass(frozen=True, kw_only=True)
class PolicyOrigin:
    """What a policy file says of where it comes from, beside the settings and the layout that it knows itself."""

    study: str
    uuid: str | None = None  # of the study
    trial: int
    split: int | None = None
    reseeded: int | None = None  # number of the other seed
    refit_seed: int | None = None
    data_sha256: str
    data_source: str
    synthetic: bool
    tickers: tuple[str, ...]
    feature_names: tuple[str, ...]
    bar_seconds: int
    venue: VenueTerms | None
    validation_segments: Blocks | None = None
    seed: int | None = None  # of the training
    code_version: str

    def to_metadata(self) -> dict[str, Any]:
        """Plain values, without those that do not apply."""
        return {name: value for name, value in msgspec.to_builtins(self).items() if value is not None}


# ---------------------------------------------------------------------------------------------------------- study.json
@dataclass(frozen=True)
class Owner:
    """Whose results a folder holds, whatever else its `study.json` says."""

    study: str
    uuid: str


@dataclass(frozen=True)
class StudyFile(Owner):
    """`study.json`: whose results the folder holds, and which data they stand on."""

    synthetic: bool | None = None
    data: tuple[Origin, ...] = ()
    holdout: dict[str, Holdout | None] = field(default_factory=dict)  # by timeframe


# ------------------------------------------------------------------------------------------------------- settings.json
@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """The data set of a trial."""

    label: str
    sha256: str
    parent_sha256: str = ""  # of the data set on disk
    tickers: tuple[str, ...]
    source: str = ""
    synthetic: bool = False


@dataclass(frozen=True)
class FoldBars:
    """One split of the data set, as bars."""

    index: int
    fit: Blocks
    validation: Blocks
    test: Blocks
    test_groups: tuple[int, ...]  # of each test block


@dataclass(frozen=True, kw_only=True)
class TrialSettings:
    """`settings.json`: everything another run needs to repeat a trial."""

    study: str
    trial: int
    sampled: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any]  # fields of `train.config.TrainConfig`; "seed" has that of every split
    env: dict[str, Any]  # env_params that the simulator is called with
    env_resolved: Rules | None = None  # what they come to
    venue: VenueTerms | None = None
    data: DataFacts
    folds: tuple[FoldBars, ...]
    purge_bars: int = 0
    embargo_bars: int = 0
    code_version: str = ""
    code_sha256: str = ""

    @property
    def timeframe(self) -> str | None:
        """That the trial chose; None where the study has one only."""
        return self.sampled.get("timeframe")

    @property
    def split_seeds(self) -> tuple[int, ...]:
        """Seed of the training of every split."""
        seeds = self.train.get("seed", ())
        return tuple(seeds) if isinstance(seeds, list | tuple) else (seeds,)


# -------------------------------------------------------------------------------------------------- identity of a study
@dataclass(frozen=True)
class Purge:
    """Bars left out around the test blocks of one timeframe."""

    purge_bars: int  # on both sides
    embargo_bars: int  # more after it


@dataclass(frozen=True)
class RunTerms:
    """How a study's trials are run."""

    n_envs: int
    seed: int
    artifacts: str | None = None  # URL of the artifact store


@dataclass(frozen=True)
class PlanTerms:
    """How a study divides its data."""

    mode: str
    num_paths: int
    k_test_groups: int


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """What a study was begun under, as the database keeps it; only what readers use."""

    data_sha256: dict[str, str]  # by timeframe
    run: RunTerms
    splits: dict[str, Any]
    holdout: dict[str, Holdout | None] = {}
    holdout_fraction: float = msgspec.field(name="--holdout", default=0.0)
    search_space: dict[str, Any] = msgspec.field(name="search space", default_factory=dict)
    simulator_rules: Rules | None = msgspec.field(name="simulator rules", default=None)
    learner: dict[str, Any] = {}
    venue: VenueTerms | None = None

    def __post_init__(self) -> None:
        """Read the parts of `splits`, too.

        Raises:
            msgspec.ValidationError: one is missing or of another type.
        """
        _ = self.plan, self.purges

    @property
    def agent(self) -> str:
        """The learner; PPO where the study is older than the choice."""
        return str(self.learner.get("agent", "ppo"))

    @property
    def plan(self) -> PlanTerms:
        """How the data is divided."""
        return msgspec.convert(self.splits, PlanTerms)

    @property
    def purges(self) -> dict[str, Purge]:
        """Bars left out around test blocks, by timeframe."""
        parts = {name: part for name, part in self.splits.items() if isinstance(part, dict) and "purge_bars" in part}
        return {name: msgspec.convert(part, Purge) for name, part in parts.items()}

    @property
    def holds_out(self) -> bool:
        """Whether bars are held out."""
        return any(self.holdout.values())


# ----------------------------------------------------------------------------------------------------- deployment.json
@dataclass(frozen=True, kw_only=True)
class DeployedData:
    """The bars that a deployment's policy was trained on."""

    label: str = ""
    source: str = ""
    parent_sha256: str = ""
    first_time_s: int = 0
    last_time_s: int  # close of the last bar, UTC


@dataclass(frozen=True, kw_only=True)
class DeploymentFacts:
    """`deployment.json`, but for the hashes of the files: everything that trading the policy needs, and why it may."""

    format: str = ""
    format_version: int = 0
    name: str  # of the folder when it was made
    created: str = ""
    study: str
    study_uuid: str = ""
    trial: int
    trial_value: float | None = None
    seed: int
    refit_seed: int = 0
    proven: bool  # passed every gate
    waived: tuple[str, ...] = ()
    synthetic: bool  # trained on a generated market
    tickers: tuple[str, ...]  # (A,) in the order of the actions
    feature_set: str = ""
    feature_names: tuple[str, ...]  # (F,) in the order of the observation
    bar_seconds: int
    warmup_bars: int  # before the first observed bar, that its features depend on
    observation_layout: tuple[tuple[str, int], ...]  # (block, width), in order
    env_params: dict[str, Any]
    env_resolved: dict[str, Any] = field(default_factory=dict)
    venue: VenueTerms | None = None
    order_rules: dict[str, OrderRules] = field(default_factory=dict)
    data_sha256: str
    data: DeployedData
    holdout: Holdout | None = None
    test: int = 0
    scores: dict[str, Any]  # on the held-out bars
    gates: tuple[dict[str, Any], ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    sampled: dict[str, Any] | None = None
    code_version: str = ""
    trained_by: str = ""
    stepped_by: str | None = None
    scoring_stepped_by: str = ""
    weights_sha256: str

    @property
    def scored_weights_sha256(self) -> str | None:
        """Of the weights that the scores are of."""
        return self.scores.get("weights_sha256")


# ------------------------------------------------------------------------------------------------ attributes of a trial
@dataclass(frozen=True)
class SplitFigures:
    """One split of a trial: `result.json`, and the study's copy of it, as far as readers use it."""

    agent: Metrics
    equal_weight: Metrics
    excess_sharpe: float | None = None  # None: undefined
    hindsight_growth: LaterFigure = msgspec.UNSET
    of_hindsight: LaterFigure = msgspec.UNSET
    break_even_cost: LaterFigure = msgspec.UNSET


@dataclass(frozen=True, kw_only=True)
class SplitResult(SplitFigures):
    """`result.json`: what one split of one trial showed, written last."""

    fold: int
    env_steps: int
    explore_steps_per_s: float | None = None
    update_samples_per_s: float | None = None
    wall_s: float | None = None
    stepped_by: str = ""
    scoring_stepped_by: str = ""
    study: str | None = None
    uuid: str | None = None
    trial: int | None = None
    data_sha256: str = ""
    seed: int | None = None
    code_version: str = ""
    settings_sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class WorkerIdentity:
    """The process that runs a trial."""

    host: str
    machine: str = ""
    pid: int
    started: float  # UTC seconds when the process began, by the clock as it is set now; not compared on Linux
    started_ticks: int | None = None  # clock ticks from the machine's start to the process's; None: not known
    code: str = ""  # first 12 digits of the SHA-256 of the code that trials run; "": of an earlier version


# -------------------------------------------------------------------------------------------------------- holdout.json
@dataclass(frozen=True)
class Look:
    """What decides whether another study's score was a look at the same bars."""

    uuid: str
    holdout: Holdout
    synthetic: bool


@dataclass(frozen=True)
class Begun(Look):
    """The study's attribute that says whose look at the held-out bars has begun."""

    trial: int
    policies: tuple[str, ...]  # SHA-256 of their files


@dataclass(frozen=True)
class TestedBars:
    """Bars that a study's trials were tested on, so that whoever chose by them has seen them."""

    first_time_s: int  # close of the first bar, UTC
    last_time_s: int
    synthetic: bool
    parent_sha256: str  # of the data set on disk


@dataclass(frozen=True)
class PolicyScore:
    """One policy of the winner on the held-out bars."""

    file: str
    sha256: str
    agent: Metrics
    equal_weight: Metrics
    excess_sharpe: float | None  # None: undefined, as everywhere below
    excess_sharpe_error: float | None = None
    lead_sharpe: float | None = None
    growth: LaterFigure = msgspec.UNSET
    hindsight_growth: LaterFigure = msgspec.UNSET
    break_even_cost: LaterFigure = msgspec.UNSET
    of_hindsight: LaterFigure = msgspec.UNSET


@dataclass(frozen=True, kw_only=True)
class HoldoutScore:
    """`holdout.json`: the winner's policies on the bars held out, written once."""

    study: str
    uuid: str
    trial: int
    holdout: Holdout
    data_label: str
    synthetic: bool
    env: dict[str, Any]
    earlier_looks: tuple[str, ...] = ()  # studies that were scored on some of these bars before
    policies: tuple[PolicyScore, ...]
    mean_excess_sharpe: float | None
    excess_sharpe_error: LaterFigure = msgspec.UNSET  # of the mean
    mean_lead_sharpe: float | None = None
    sharpe_standard_error: float | None = None  # of ONE ratio, such as the lead's
    code_version: str = ""
    stepped_by: str = ""
    scored_s: int = 0
