"""How a study divides its data: what the command line names, without the data."""

from __future__ import annotations

from dataclasses import dataclass

from train.records.errors import StudyError

TIMEFRAMES = ("1m", "5m", "15m", "30m", "1h", "4h", "12h", "1d")
MODES = ("standard", "rolling", "expanding", "kfold", "multi-timeframe")
COMBINATORIAL_MODES = ("standard", "multi-timeframe")  # the others test every block alone
HOLDOUT_FRACTION = 0.15  # of the data, its last part


@dataclass(frozen=True)
class SplitPlan:
    """How the data is divided; part of a study's identity."""

    mode: str  # one of MODES
    num_paths: int  # test blocks; of the combinatorial modes one less than their groups
    k_test_groups: int  # of the combinatorial modes
    holdout_fraction: float = HOLDOUT_FRACTION  # of each data set, cut off its end; 0: none

    def __post_init__(self) -> None:
        """Refuse numbers that divide nothing."""
        if self.num_paths < 1:
            raise StudyError(f"--num-paths must be at least 1; received {self.num_paths}")
        if self.mode == "kfold" and self.num_paths < 2:
            raise StudyError(f"--num-paths must be at least 2 with --mode kfold; received {self.num_paths}")
        if not 0.0 <= self.holdout_fraction < 1.0:
            raise StudyError(
                f"--holdout is a fraction of the data, at least 0 and below 1; received {self.holdout_fraction}"
            )
        if self.mode in COMBINATORIAL_MODES and not 1 <= self.k_test_groups <= self.num_paths:
            raise StudyError(
                f"--k-test-groups must be between 1 and --num-paths ({self.num_paths}), because the data is cut into "
                f"num_paths + 1 groups and one must train; received {self.k_test_groups}"
            )
