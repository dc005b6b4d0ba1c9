"""The dataset: prices, features, times and a manifest, saved atomically and checked on every load.

A folder holds `price_array.npy (T, A) float64`, `tech_array.npy (T, F) float32`, `time_array.npy (T,) int64` (UTC
seconds of the bar CLOSE), `filled_array.npy (T, A) bool` (bars in which no order fills) and `manifest.json`. Rows form
contiguous segments. Time has gaps only between segments. data/README.md describes every field.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from msgspec import Struct
from msgspec.structs import asdict
from msgspec.structs import replace as struct_with

from market.checks import ARRAYS, check_dataset
from market.codec import decode, encode, read_object
from market.defaults import MIN_SEGMENT_BARS
from market.errors import REBUILD, DatasetError, VenueError
from market.files import (
    put_in_place,
    read_array,
    sweep_leftovers,
    sync_file,
    sync_folder,
    unfinished_folder,
    write_whole,
)
from market.lookahead_record import Declared, LookaheadRecord, Standing, standing
from market.names import counted, timeframe_name
from market.planted import synthetic_kind
from market.times import utc_text
from market.venues import ALPACA, Venue

__all__ = ["MIN_SEGMENT_BARS", "Dataset", "DatasetError", "load_dataset", "make_dataset", "save_dataset"]

FORMAT = 3  # 2 added source and quality to the hash; 3 added filled bars, feature set, warm-up and venue
MANIFEST = "manifest.json"
PICTURE = "quality.png"  # optional and in no hash
OWN_NAMES = frozenset({MANIFEST, PICTURE, *(f"{name}.npy" for name in ARRAYS)})
SECONDS_PER_YEAR = 365.0 * 86_400.0


class Manifest(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Content of manifest.json. data/README.md describes every field."""

    format: int
    kind: Literal["real", "synthetic"]
    source: str
    timeframe: str
    bar_seconds: int
    first_close: str
    last_close: str
    bars: int
    segments: tuple[tuple[int, int], ...]
    tickers: tuple[str, ...]
    feature_set: str
    feature_names: tuple[str, ...]
    warmup_bars: int
    sha256: str
    arrays: dict[str, str]  # name -> sha256 of the values
    venue: Any  # read by `Venue.from_json`
    quality: dict[str, Any]
    feature_coins: tuple[int, ...] | None = None  # absent in older manifests, whose feature names imply it
    lookahead: LookaheadRecord | None = None


SHARED = ("source", "bar_seconds", "segments", "tickers", "feature_set", "feature_names", "warmup_bars", "sha256")
SHARED += ("quality",)  # fields that `Dataset` also has
NO_COIN = -1  # in `feature_coins`: the column belongs to all coins
NOT_HASHED = ("format", "kind", "timeframe", "first_close", "last_close", "bars", "sha256")  # derived fields
NOT_HASHED += ("lookahead",)  # has its own hash


@dataclass(frozen=True)
class Dataset:
    """Market arrays of A coins over T bars with F feature columns. Arrays are shared and must not be modified."""

    price: np.ndarray  # (T, A) float64, close, quote per coin
    tech: np.ndarray  # (T, F) float32, row t uses bars <= t
    time: np.ndarray  # (T,) int64, UTC seconds, bar close
    filled: np.ndarray  # (T, A) bool, True if the bar (or its last part) was missing or had no volume
    tickers: tuple[str, ...]  # A
    feature_set: str  # key of market.features.FEATURE_SETS, or the origin of the columns
    feature_names: tuple[str, ...]  # F, such as `BTC:rsi_14`, or `time:day_sin` for all coins
    warmup_bars: int  # number of bars before a segment on which its first row depends
    bar_seconds: int
    segments: tuple[tuple[int, int], ...]  # contiguous [first, last_exclusive)
    source: str
    synthetic: bool
    venue: Venue  # order rules of these tickers, and fees
    sha256: str  # hash of all other fields except lookahead
    quality: Mapping[str, Any] = field(default_factory=dict)  # report of market.bars.quality on the source bars
    own_coins: tuple[int, ...] | None = None  # `feature_coins` if the names do not imply them
    lookahead: LookaheadRecord | None = None  # record of this dataset, or of the one it was selected from

    @property
    def feature_coins(self) -> tuple[int, ...]:
        """Index in `tickers` of each feature's coin, (F,). NO_COIN marks a column that belongs to all coins."""
        return coins_by_name(self.tickers, self.feature_names) if self.own_coins is None else self.own_coins

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays, keyed by file name without its suffix."""
        named = {"price_array": self.price, "tech_array": self.tech, "time_array": self.time}
        return named | {"filled_array": self.filled}

    @property
    def record(self) -> LookaheadRecord:
        """Look-ahead record of these columns, empty if they have not been checked."""
        return self.lookahead or LookaheadRecord(dataset_sha256=self.sha256)

    @property
    def standing(self) -> Standing:
        """Result of the look-ahead checks on these columns."""
        return standing(self.record, self.feature_set, self.feature_names)

    @property
    def bars_per_year(self) -> float:
        """Number of bars in 365 days. Crypto trades every day."""
        return SECONDS_PER_YEAR / self.bar_seconds

    @property
    def kind_text(self) -> str:
        """`REAL` or `SYNTHETIC`, followed by the law of a demonstration market: `SYNTHETIC, planted signal`."""
        return synthetic_kind(self.source) if self.synthetic else "REAL"

    @property
    def label(self) -> str:
        """One-line description: `REAL 5m, 7 coins, 70144 bars, 2 segments, ... 2024-09-01 00:00 UTC, source ...`."""
        span = f"{utc_text(self.time[0])} .. {utc_text(self.time[-1])} UTC"
        coins, segments = counted(len(self.tickers), "coin"), counted(len(self.segments), "segment")
        size = f"{timeframe_name(self.bar_seconds)}, {coins}, {len(self.time)} bars, {segments}"
        comma = "," if "," in self.kind_text else ""
        return f"{self.kind_text}{comma} {size}, {span}, source {self.source}"

    def with_tickers(self, tickers: Sequence[str]) -> Dataset:
        """Return a dataset with only these coins, in this order, and with its own hash.

        Feature columns that belong to no coin are kept as the last columns.
        """
        columns = [self.tickers.index(ticker) for ticker in tickers]
        places = {coin: place for place, coin in enumerate([*columns, NO_COIN])}
        coins = self.feature_coins
        features = sorted((i for i in range(len(coins)) if coins[i] in places), key=lambda i: places[coins[i]])
        names = tuple(self.feature_names[i] for i in features)
        kept = [NO_COIN if coins[i] == NO_COIN else places[coins[i]] for i in features]
        return _checked(
            replace(
                self,
                price=self.price[:, columns],
                tech=self.tech[:, features],
                filled=self.filled[:, columns],
                tickers=tuple(tickers),
                venue=self.venue.only(tickers),
                feature_names=names,
                own_coins=_unsaid_coins(tickers, names, kept),
            )
        )

    def feature_label(self, column: int) -> str:
        """Return the name of a feature column without its coin, such as `rsi_14`."""
        name, coin = self.feature_names[column], self.feature_coins[column]
        return name.partition(":")[2] or name if coin == NO_COIN else name.removeprefix(f"{self.tickers[coin]}:")

    def with_rows(self, first: int, last: int) -> Dataset:
        """Return a dataset of rows [first, last) with its own hash. Segments are cut to these rows.

        Raises:
            DatasetError: no segment is long enough.
        """
        kept = [(max(a, first) - first, min(b, last) - first) for a, b in self.segments]
        return _checked(
            replace(
                self,
                price=self.price[first:last],
                tech=self.tech[first:last],
                time=self.time[first:last],
                filled=self.filled[first:last],
                segments=tuple((a, b) for a, b in kept if a < b),
            )
        )

    def env_config(self, segments: Sequence[tuple[int, int]] | None = None) -> dict[str, Any]:
        """Return the `config` of an environment.

        Order minimums and lot sizes are joined by ticker, so column order does not matter.

        Args:
            segments: [first, last_exclusive) row ranges, each inside a segment of the dataset; None uses all segments.

        Raises:
            DatasetError: a range is not inside a segment, or there is none.
        """
        chosen = self.segments if segments is None else tuple((int(a), int(b)) for a, b in segments)
        for first, last in chosen:
            if not any(a <= first < last <= b for a, b in self.segments):
                raise DatasetError(
                    f"({first}, {last}) is not inside a segment of the dataset; its segments are {self.segments}"
                )
        if not chosen:
            raise DatasetError("segments must hold at least one segment")
        rules = self.venue.order_rules(self.tickers)
        return {
            "price_array": self.price,
            "tech_array": self.tech,
            "time_array": self.time,
            "tickers": self.tickers,
            "segments": chosen,
            "min_order_qty": rules.min_order_qty,
            "qty_increment": rules.qty_increment,
            "filled_array": self.filled,
        }


def make_dataset(
    *,
    price: np.ndarray,
    tech: np.ndarray,
    time: np.ndarray,
    tickers: Sequence[str],
    feature_names: Sequence[str],
    bar_seconds: int,
    segments: Sequence[tuple[int, int]],
    source: str,
    synthetic: bool,
    filled: np.ndarray | None = None,
    feature_set: str = "given",
    warmup_bars: int = 0,
    venue: Venue = ALPACA,
    quality: Mapping[str, Any] | None = None,
    feature_coins: Sequence[int] | None = None,
) -> Dataset:
    """Create a checked dataset with its hash. `Dataset` describes shapes and units.

    If `filled` is None, orders fill in every bar. Entries of `venue` for other coins are dropped. If `feature_coins` is
    None, a column belongs to the coin whose ticker and a colon start its name.

    Raises:
        DatasetError: the arrays or names are not valid.
    """
    dataset = Dataset(
        price=price,
        tech=tech,
        time=time,
        filled=np.zeros(price.shape, dtype=bool) if filled is None else filled,
        tickers=tuple(tickers),
        feature_set=feature_set,
        feature_names=tuple(feature_names),
        own_coins=_unsaid_coins(tickers, feature_names, feature_coins),
        warmup_bars=warmup_bars,
        bar_seconds=bar_seconds,
        segments=tuple((int(a), int(b)) for a, b in segments),
        source=source,
        synthetic=synthetic,
        venue=venue.only(tickers),
        sha256="",
        quality=dict(quality or {}),
    )
    return _checked(dataset)


def coins_by_name(tickers: Sequence[str], feature_names: Sequence[str]) -> tuple[int, ...]:
    """Return for each feature the index of the longest ticker that starts its name before a colon, or NO_COIN."""
    longest_first = sorted(range(len(tickers)), key=lambda coin: -len(tickers[coin]))
    return tuple(
        next((coin for coin in longest_first if name.startswith(f"{tickers[coin]}:")), NO_COIN)
        for name in feature_names
    )


def _unsaid_coins(
    tickers: Sequence[str], feature_names: Sequence[str], coins: Sequence[int] | None
) -> tuple[int, ...] | None:
    """Return the coins of the features, or None if the feature names imply the same coins."""
    return None if coins is None or tuple(coins) == coins_by_name(tickers, feature_names) else tuple(coins)


def _checked(dataset: Dataset) -> Dataset:
    """Return the dataset with its hash after checking it."""
    check_dataset(dataset, "dataset")
    return replace(dataset, sha256=dataset_hash(_manifest(dataset)))


def _array_hashes(dataset: Dataset) -> dict[str, str]:
    """Return the SHA-256 of each array's values in C order."""
    return {
        name: hashlib.sha256(np.ascontiguousarray(array).data).hexdigest() for name, array in dataset.arrays.items()
    }


def dataset_hash(manifest: Manifest) -> str:
    """Return one hash of the arrays, their meaning and their origin.

    `feature_coins` is included only if the names do not imply it, so manifests without the field keep their hash.
    """
    meaning = {name: value for name, value in asdict(manifest).items() if name not in NOT_HASHED}
    if manifest.feature_coins in (None, coins_by_name(manifest.tickers, manifest.feature_names)):
        del meaning["feature_coins"]
    meaning["synthetic"] = manifest.kind == "synthetic"
    return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()


def save_dataset(dataset: Dataset, folder: Path | str, overwrite: bool = False, picture: bytes | None = None) -> None:
    """Write the folder atomically. If the process is killed, either the old folder or the new one remains.

    Hidden folders that killed processes left when saving to the same folder are deleted.

    Args:
        dataset: dataset to save.
        folder: target folder.
        overwrite: if True, an existing dataset is replaced. Other folders are never replaced.
        picture: PNG of `market.pictures.quality_picture`; None saves no picture.

    Raises:
        DatasetError: the dataset is not valid, or the folder must not be replaced.
    """
    folder = Path(folder).absolute()
    check_dataset(dataset, str(folder))
    check_target(folder, overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    sweep_leftovers(folder, OWN_NAMES)
    with unfinished_folder(folder) as unfinished:
        _write_files(dataset, unfinished, picture)
        put_in_place(unfinished, folder)


def with_declaration(dataset: Dataset, columns: Sequence[str], by: str, why: str) -> Dataset:
    """Return the dataset with a declaration in its look-ahead record: a person vouches for flagged columns.

    Args:
        dataset: dataset of the columns.
        columns: names of the columns.
        by: name of the person.
        why: reason why the columns do not look ahead.

    Raises:
        DatasetError: a column does not exist, or name or reason is empty.
    """
    unknown = [name for name in columns if name not in dataset.feature_names]
    if unknown:
        raise DatasetError(f"--declare {unknown[0]}: no such column; scripts/data/inspect_dataset.py lists them")
    if not (by.strip() and why.strip()):
        raise DatasetError("--declare requires --by NAME and --why TEXT")
    record = dataset.record
    declared = (*record.declared, Declared(tuple(columns), by, why))
    return replace(dataset, lookahead=struct_with(record, declared=declared).sealed())


def write_record(folder: Path | str, record: LookaheadRecord) -> Dataset:
    """Replace the look-ahead record in a dataset's manifest and return the dataset.

    Raises:
        DatasetError: the folder is not a valid dataset, or the record belongs to a different one.
    """
    dataset = replace(load_dataset(folder), lookahead=record)
    manifest = _manifest(dataset)
    if manifest.lookahead is None:
        raise DatasetError(f"{folder}: the look-ahead record belongs to a different dataset; run the check on this one")
    write_whole(Path(folder) / MANIFEST, encode(manifest))
    return dataset


def check_target(folder: Path | str, overwrite: bool) -> None:
    """Raise DatasetError early if `folder` must not be replaced."""
    folder = Path(folder)
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise DatasetError(f"{folder}: is a link or a file; choose a different folder")
    around = next((parent for parent in folder.absolute().parents if (parent / MANIFEST).exists()), None)
    if around is not None:
        raise DatasetError(f"{folder}: is inside the dataset {around}; choose a folder outside it")
    names = {entry.name for entry in folder.iterdir()} if folder.exists() else set()
    foreign = sorted(names - OWN_NAMES)
    if foreign:
        raise DatasetError(
            f"{folder}: contains {foreign[0]}, which is not part of a dataset; choose a different folder"
        )
    if names and not overwrite:
        raise DatasetError(f"{folder}: already contains a dataset; pass --overwrite to replace it")


def _write_files(dataset: Dataset, folder: Path, picture: bytes | None) -> None:
    for name, array in dataset.arrays.items():
        with (folder / f"{name}.npy").open("wb") as file:
            np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)
            sync_file(file)
    if picture is not None:
        with (folder / PICTURE).open("wb") as file:
            file.write(picture)
            sync_file(file)
    with (folder / MANIFEST).open("wb") as file:
        file.write(encode(_manifest(dataset)))
        sync_file(file)
    sync_folder(folder)


def _manifest(dataset: Dataset) -> Manifest:
    record = dataset.lookahead
    return Manifest(
        **{name: getattr(dataset, name) for name in SHARED},
        feature_coins=dataset.feature_coins,
        format=FORMAT,
        kind="synthetic" if dataset.synthetic else "real",
        timeframe=timeframe_name(dataset.bar_seconds),
        first_close=utc_text(dataset.time[0]),
        last_close=utc_text(dataset.time[-1]),
        bars=len(dataset.time),
        arrays=_array_hashes(dataset),
        venue=dataset.venue.to_json(),
        lookahead=record if record and record.is_of(dataset.sha256) else None,
    )


def load_dataset(folder: Path | str, mmap: bool = True) -> Dataset:
    """Read a dataset and check all of it, including its hash.

    Args:
        folder: folder written by `save_dataset`.
        mmap: if True, map the arrays into memory instead of reading them. Changes to the arrays would be visible only
            to this process.

    Raises:
        DatasetError: the dataset is missing, damaged or edited; the message names the file and suggests a fix.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DatasetError(
            f"{folder}: no such dataset folder; build one with scripts/data/build_dataset.py, or "
            "a synthetic one with scripts/data/make_sample.py"
        )
    manifest = _read_manifest(folder / MANIFEST)
    arrays = {name: read_array(folder / f"{name}.npy", mmap) for name in ARRAYS}
    dataset = _from_manifest(manifest, arrays, folder / MANIFEST)
    check_dataset(dataset, str(folder))
    found = _manifest(dataset)
    if manifest.feature_coins is None:
        found = struct_with(found, feature_coins=None)
    for name, digest in found.arrays.items():
        if manifest.arrays.get(name) != digest:
            raise DatasetError(f"{folder / name}.npy: content does not match its hash in the manifest; {REBUILD}")
    if manifest.lookahead is not None and found.lookahead is None:
        raise DatasetError(
            f"{folder / MANIFEST}: field lookahead was edited or belongs to a different dataset; {REBUILD}"
        )
    # Derived fields are in no hash, but must agree with the hashed fields.
    if found != manifest or dataset_hash(found) != dataset.sha256:
        raise DatasetError(f"{folder / MANIFEST}: was edited (it does not match its hash); {REBUILD}")
    return dataset


def _read_manifest(path: Path) -> Manifest:
    what = f"a dataset manifest of format {FORMAT}"
    content = read_object(path, DatasetError, REBUILD, what=what)
    if content.get("format") in range(1, FORMAT):
        older = f"of format {content['format']}, from an older version of this program"
        raise DatasetError(f"{path}: {older}; {REBUILD}")
    if content.get("format") != FORMAT:
        raise DatasetError(f"{path}: not {what}; {REBUILD}")
    return decode(content, Manifest, DatasetError, str(path), REBUILD)


def _from_manifest(manifest: Manifest, arrays: Mapping[str, np.ndarray], path: Path) -> Dataset:
    try:
        venue = Venue.from_json(manifest.venue)
    except VenueError as error:
        raise DatasetError(f"{path}: field venue: {error}; {REBUILD}") from error
    return Dataset(
        **{name: getattr(manifest, name) for name in SHARED},
        own_coins=_unsaid_coins(manifest.tickers, manifest.feature_names, manifest.feature_coins),
        price=arrays["price_array"],
        tech=arrays["tech_array"],
        time=arrays["time_array"],
        filled=arrays["filled_array"],
        synthetic=manifest.kind == "synthetic",
        venue=venue,
        lookahead=manifest.lookahead,
    )
