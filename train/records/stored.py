"""Records of a study's results. `train.records.record_files` reads and writes them.

Fields without a default must be present in the file. Fields with a default were added after commit c6a6d1f, or are
unknown for some studies. Fields are in the order of the file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from train.records.account import Metrics

Blocks = tuple[tuple[int, int], ...]  # (first, last_exclusive) bar of each block
# A figure added after commit c6a6d1f. None: undefined; UNSET: not in the file.
LaterFigure = float | None | msgspec.UnsetType


@dataclass(frozen=True)
class Holdout:
    """Description of the hold-out of a dataset, without its bars."""

    first_time_s: int  # close of the first bar of the hold-out, UTC
    last_time_s: int
    bars: int
    purged_bars: int  # bars dropped between the study's last bar and the hold-out
    sha256: str  # hash of the hold-out and of the purged bars before it, which observations include
    parent_sha256: str  # hash of the dataset on disk


@dataclass(frozen=True, kw_only=True)
class VenueTerms:
    """Order rules and fees of a study: source, dates and assumed volume."""

    name: str
    volume_30d: float  # USD
    order_rules_as_of: str
    order_rules_source: str = ""
    fees_as_of: str


@dataclass(frozen=True)
class OrderRules:
    """Smallest order of a coin and the increment of its quantity, in coins."""

    min_order_qty: float
    qty_increment: float


@dataclass(frozen=True)
class Rules:
    """Simulator rules that readers of results use, as in `environment_Alpaca_vectorized.EnvParams`."""

    initial_capital: float
    buy_fee_rate: float  # fraction of notional
    sell_fee_rate: float
    slippage_rate: float
    trailing_stop_pct: float = 0.0
    stale_bars: int = 0


# ----------------------------------------------------------------------------------------------------------- provenance
@dataclass(frozen=True)
class Origin:
    """Bars that a result was computed on."""

    synthetic: bool
    data_label: str
    data_sha256: str


@dataclass(frozen=True)
class Made:
    """Origin of a result file: the first fields of every such file."""

    study: str
    uuid: str
    trial: int | None
    data_sha256: str
    seed: int | None  # the study's seed; in a split's result, the training seed
    code_version: str = ""


@dataclass(frozen=True, kw_only=True)
class PolicyOrigin:
    """Origin of a policy file, in addition to the settings and the layout that the policy itself stores."""

    study: str
    uuid: str | None = None  # uuid of the study
    trial: int
    split: int | None = None
    reseeded: int | None = None  # number of the additional seed
    refit_seed: int | None = None
    data_sha256: str
    data_source: str
    synthetic: bool
    tickers: tuple[str, ...]
    feature_names: tuple[str, ...]
    bar_seconds: int
    venue: VenueTerms | None
    validation_segments: Blocks | None = None
    seed: int | None = None  # training seed
    code_version: str

    def to_metadata(self) -> dict[str, Any]:
        """Return plain values without the fields that are None."""
        return {name: value for name, value in msgspec.to_builtins(self).items() if value is not None}


# ---------------------------------------------------------------------------------------------------------- study.json
@dataclass(frozen=True)
class Owner:
    """Owner of a results folder: the first fields of its `study.json`."""

    study: str
    uuid: str


@dataclass(frozen=True)
class StudyFile(Owner):
    """`study.json`: owner and data of a results folder."""

    synthetic: bool | None = None
    data: tuple[Origin, ...] = ()
    holdout: dict[str, Holdout | None] = field(default_factory=dict)  # by timeframe


# ------------------------------------------------------------------------------------------------------- settings.json
@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """Dataset of a trial."""

    label: str
    sha256: str
    parent_sha256: str = ""  # hash of the dataset on disk
    tickers: tuple[str, ...]
    source: str = ""
    synthetic: bool = False


@dataclass(frozen=True)
class FoldBars:
    """One split of the dataset, as ranges of bar indices."""

    index: int
    fit: Blocks
    validation: Blocks
    test: Blocks
    test_groups: tuple[int, ...]  # group number of each test fold


@dataclass(frozen=True, kw_only=True)
class TrialSettings:
    """`settings.json`: everything needed to repeat a trial in a new run."""

    study: str
    trial: int
    sampled: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any]  # fields of `train.config.TrainConfig`; "seed" lists the seeds of all splits
    env: dict[str, Any]  # env_params passed to the simulator
    env_resolved: Rules | None = None  # resolved from `env`
    venue: VenueTerms | None = None
    data: DataFacts
    folds: tuple[FoldBars, ...]
    purge_bars: int = 0
    embargo_bars: int = 0
    code_version: str = ""
    code_sha256: str = ""

    @property
    def timeframe(self) -> str | None:
        """Timeframe that the trial chose, or None if the study has only one."""
        return self.sampled.get("timeframe")

    @property
    def split_seeds(self) -> tuple[int, ...]:
        """Training seed of every split."""
        seeds = self.train.get("seed", ())
        return tuple(seeds) if isinstance(seeds, list | tuple) else (seeds,)


# -------------------------------------------------------------------------------------------------- identity of a study
@dataclass(frozen=True)
class Purge:
    """Bars dropped around the test folds of one timeframe."""

    purge_bars: int  # before and after the test fold
    embargo_bars: int  # additional bars after it


@dataclass(frozen=True)
class RunTerms:
    """Run settings common to all trials of a study."""

    n_envs: int
    seed: int
    artifacts: str | None = None  # URL of the artifact store


@dataclass(frozen=True)
class PlanTerms:
    """Division of a study's data into splits."""

    mode: str
    num_paths: int
    k_test_groups: int


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Identity of a study as stored in the database, limited to the parts that readers use."""

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
        """Check the parts of `splits`.

        Raises:
            msgspec.ValidationError: a part is missing or has the wrong type.
        """
        _ = self.plan, self.purges

    @property
    def agent(self) -> str:
        """Agent of the study. Older studies without this entry used PPO."""
        return str(self.learner.get("agent", "ppo"))

    @property
    def plan(self) -> PlanTerms:
        """Division of the data."""
        return msgspec.convert(self.splits, PlanTerms)

    @property
    def purges(self) -> dict[str, Purge]:
        """Bars dropped around test folds, by timeframe."""
        parts = {name: part for name, part in self.splits.items() if isinstance(part, dict) and "purge_bars" in part}
        return {name: msgspec.convert(part, Purge) for name, part in parts.items()}

    @property
    def holds_out(self) -> bool:
        """True if the study has a hold-out."""
        return any(self.holdout.values())


# ----------------------------------------------------------------------------------------------------- deployment.json
@dataclass(frozen=True, kw_only=True)
class DeployedData:
    """Bars that a deployed policy was trained on."""

    label: str = ""
    source: str = ""
    parent_sha256: str = ""
    first_time_s: int = 0
    last_time_s: int  # close of the last bar, UTC


@dataclass(frozen=True, kw_only=True)
class DeploymentFacts:
    """`deployment.json` without file hashes: everything needed to trade the policy, and the results of its gates."""

    format: str = ""
    format_version: int = 0
    name: str  # name of the folder at its creation
    created: str = ""
    study: str
    study_uuid: str = ""
    trial: int
    trial_value: float | None = None
    seed: int
    refit_seed: int = 0
    proven: bool  # True if every gate passed
    waived: tuple[str, ...] = ()
    synthetic: bool  # True if trained on a generated market
    tickers: tuple[str, ...]  # (A,) in the order of the actions
    feature_set: str = ""
    feature_names: tuple[str, ...]  # (F,) in the order of the observation
    bar_seconds: int
    warmup_bars: int  # bars before the first observed bar that its features depend on
    observation_layout: tuple[tuple[str, int], ...]  # (block, width), in order
    env_params: dict[str, Any]
    env_resolved: dict[str, Any] = field(default_factory=dict)
    venue: VenueTerms | None = None
    order_rules: dict[str, OrderRules] = field(default_factory=dict)
    data_sha256: str
    data: DeployedData
    holdout: Holdout | None = None
    test: int = 0
    scores: dict[str, Any]  # scores on the hold-out
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
        """Hash of the weights that the scores refer to."""
        return self.scores.get("weights_sha256")


# ------------------------------------------------------------------------------------------------ attributes of a trial
@dataclass(frozen=True)
class SplitFigures:
    """Metrics of one split in `result.json` and in the database, limited to those that readers use."""

    agent: Metrics
    equal_weight: Metrics
    excess_sharpe: float | None = None  # None: undefined
    hindsight_growth: LaterFigure = msgspec.UNSET
    of_hindsight: LaterFigure = msgspec.UNSET
    break_even_cost: LaterFigure = msgspec.UNSET


@dataclass(frozen=True, kw_only=True)
class SplitResult(SplitFigures):
    """`result.json`: outcome of one split of one trial, written last."""

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
    """Process that runs a trial."""

    host: str
    machine: str = ""
    pid: int
    started: float  # start of the process, UTC seconds by the current clock setting; not compared on Linux
    started_ticks: int | None = None  # clock ticks from boot to the start of the process; None: unknown
    code: str = ""  # first 12 digits of the SHA-256 of the code that trials run; "": an earlier version recorded none


# -------------------------------------------------------------------------------------------------------- holdout.json
@dataclass(frozen=True)
class Look:
    """Data needed to tell whether a different study was evaluated on the same bars."""

    uuid: str
    holdout: Holdout
    synthetic: bool


@dataclass(frozen=True)
class Begun(Look):
    """Study attribute that marks the start of a hold-out evaluation."""

    trial: int
    policies: tuple[str, ...]  # SHA-256 of the policy files


@dataclass(frozen=True)
class TestedBars:
    """Bars that a study's trials were tested on. Choosing among these trials uses these bars."""

    first_time_s: int  # close of the first bar, UTC
    last_time_s: int
    synthetic: bool
    parent_sha256: str  # hash of the dataset on disk


@dataclass(frozen=True)
class PolicyScore:
    """Score of one of the winner's policies on the hold-out."""

    file: str
    sha256: str
    agent: Metrics
    equal_weight: Metrics
    excess_sharpe: float | None  # None: undefined, also in the fields below
    excess_sharpe_error: float | None = None
    lead_sharpe: float | None = None
    growth: LaterFigure = msgspec.UNSET
    hindsight_growth: LaterFigure = msgspec.UNSET
    break_even_cost: LaterFigure = msgspec.UNSET
    of_hindsight: LaterFigure = msgspec.UNSET


@dataclass(frozen=True, kw_only=True)
class HoldoutScore:
    """`holdout.json`: scores of the winner's policies on the hold-out, written once."""

    study: str
    uuid: str
    trial: int
    holdout: Holdout
    data_label: str
    synthetic: bool
    env: dict[str, Any]
    earlier_looks: tuple[str, ...] = ()  # studies that were scored earlier on some of these bars
    policies: tuple[PolicyScore, ...]
    mean_excess_sharpe: float | None
    excess_sharpe_error: LaterFigure = msgspec.UNSET  # standard error of the mean
    mean_lead_sharpe: float | None = None
    sharpe_standard_error: float | None = None  # standard error of a single ratio, such as that of alpha returns
    code_version: str = ""
    stepped_by: str = ""
    scored_s: int = 0
