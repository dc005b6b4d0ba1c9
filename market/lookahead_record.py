"""Record of the look-ahead checks on a dataset, stored in its manifest and tied to it by hashes.

The record is not part of the dataset's hash, so a later check does not change that hash. `market.lookahead` fills in
the first half (features rebuilt from cut bars) and `market.foresight` the second half (correlations with later bars).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from msgspec import Struct
from msgspec.structs import asdict, replace

from market.defaults import FEATURE_SET_NAMES
from market.names import counted

RECHECK = "run scripts/validation/lookahead.py --bars FILE --record DIR"
DECLARE = "declare each with lookahead.py --data-dir DIR --declare COLUMN --by NAME --why TEXT"
LEAST_LAGS = 2_016  # a week of 5-minute bars
CLEAN, FOUND, UNEXPLAINED, UNCHECKED = "clean", "found", "unexplained", "not checked"


class Declared(Struct, frozen=True, forbid_unknown_fields=True):
    """Columns that correlate with later bars, but use none of them according to the person named here."""

    columns: tuple[str, ...]
    by: str
    why: str


class LookaheadRecord(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Content of the manifest's field `lookahead`."""

    dataset_sha256: str
    bars_sha256: str = ""  # hash of the bars from which the dataset was rebuilt; empty if it was not
    cuts: int = 0
    rows_compared: int = 0
    finding: str = ""  # first row that later bars change; empty if none
    suspects: dict[str, str] | None = None  # column -> its correlation; None if not tested
    lags: int = 0  # number of later bars with which columns were compared
    declared: tuple[Declared, ...] = ()
    sha256: str = ""  # hash of all other fields

    def sealed(self) -> LookaheadRecord:
        """Return the record with its own hash."""
        content = {name: value for name, value in asdict(self).items() if name != "sha256"}
        content["declared"] = [asdict(one) for one in self.declared]
        return replace(self, sha256=hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest())

    def is_of(self, dataset_sha256: str) -> bool:
        """Return True if this is an unedited record of the dataset with that hash."""
        return self.dataset_sha256 == dataset_sha256 and self.sealed().sha256 == self.sha256

    @property
    def declared_columns(self) -> set[str]:
        """Columns in all declarations."""
        return {column for one in self.declared for column in one.columns}


@dataclass(frozen=True)
class Standing:
    """Result of a look-ahead record for a dataset's columns."""

    kind: str  # CLEAN, FOUND, UNEXPLAINED or UNCHECKED
    text: str

    @property
    def line(self) -> str:
        """One line for a log."""
        return f"look-ahead: {self.kind}; {self.text}"


def standing(record: LookaheadRecord, feature_set: str, feature_names: Sequence[str]) -> Standing:
    """Return the result of the look-ahead checks on these columns.

    Args:
        record: record of the dataset, or of one with more columns or rows.
        feature_set: feature set of the dataset. Columns of the built-in sets must be rebuilt from bars.
        feature_names: feature columns of the dataset.
    """
    names = sorted({f"{one.by}: {one.why}" for one in record.declared})
    declared = f"; declared by {', '.join(names)}" if names else ""
    if record.finding:
        return Standing(FOUND, record.finding)
    if record.cuts:
        made = f"features rebuilt from bars {record.bars_sha256[:12]}, {counted(record.cuts, 'cut')}"
        return Standing(CLEAN, f"{made}, record {record.sha256[:12]}{declared}")
    suspects = {name: text for name, text in (record.suspects or {}).items() if name in set(feature_names)}
    unexplained = [text for name, text in suspects.items() if name not in record.declared_columns]
    if unexplained:
        more = f" (and {counted(len(unexplained) - 1, 'more column')})" if len(unexplained) > 1 else ""
        return Standing(UNEXPLAINED, f"{unexplained[0]}{more}; {DECLARE}")
    if feature_set in FEATURE_SET_NAMES:
        return Standing(UNCHECKED, f"features were not rebuilt from cut bars; {RECHECK}")
    if record.suspects is None:
        return Standing(UNCHECKED, "columns were not compared with later bars")
    if record.lags < LEAST_LAGS:
        return Standing(UNCHECKED, f"the data are only long enough to compare columns with {record.lags:,} later bars")
    n_known = f"{len(suspects)} suspicious" if suspects else "none suspicious"
    tested = f"{counted(len(feature_names), 'column')} compared with later bars, {n_known}"
    return Standing(CLEAN, f"{tested}, record {record.sha256[:12]}{declared}")
