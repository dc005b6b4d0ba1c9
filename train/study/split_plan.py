"""How a study divides its data, as given on the command line."""

from __future__ import annotations

from dataclasses import dataclass

from train.records.errors import StudyError

TIMEFRAMES = ("1m", "5m", "15m", "30m", "1h", "4h", "12h", "1d")
MODES = ("standard", "rolling", "expanding", "kfold", "multi-timeframe")
COMBINATORIAL_MODES = ("standard", "multi-timeframe")  # the other modes have one test fold per split
HOLDOUT_FRACTION = 0.15  # fraction of the data, at its end


@dataclass(frozen=True)
class SplitPlan:
    """Division of the data into hold-out and splits; part of a study's identity."""

    mode: str  # one of MODES
    num_paths: int  # number of test folds; in combinatorial modes, the number of groups minus 1
    k_test_groups: int  # test groups per split in combinatorial modes
    holdout_fraction: float = HOLDOUT_FRACTION  # fraction at the end of each dataset; 0: no hold-out

    def __post_init__(self) -> None:
        """Raise StudyError if a number is out of range."""
        if self.num_paths < 1:
            raise StudyError(f"--num-paths must be at least 1; received {self.num_paths}")
        if self.mode == "kfold" and self.num_paths < 2:
            raise StudyError(f"--num-paths must be at least 2 with --mode kfold; received {self.num_paths}")
        if not 0.0 <= self.holdout_fraction < 1.0:
            raise StudyError(
                f"--holdout must be a fraction of the data, at least 0 and below 1; received {self.holdout_fraction}"
            )
        if self.mode in COMBINATORIAL_MODES and not 1 <= self.k_test_groups <= self.num_paths:
            raise StudyError(
                f"--k-test-groups must be between 1 and --num-paths ({self.num_paths}), so that at least one of the "
                f"num_paths + 1 groups is left for training; received {self.k_test_groups}"
            )
