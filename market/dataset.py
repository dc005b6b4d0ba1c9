"""The dataset: prices, features, times and their manifest, saved whole or not at all and checked on every load.

A folder holds `price_array.npy (T, A) float64`, `tech_array.npy (T, F) float32`, `time_array.npy (T,) int64` (UTC
seconds of the bar CLOSE), `filled_array.npy (T, A) bool` (bars in which no order fills) and `manifest.json`. Rows
belong to contiguous segments; time jumps only between segments. See data/README.md for every field.
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

FORMAT = 3  # 2: the hash covers source and quality; 3: filled bars, feature set, warm-up and venue
MANIFEST = "manifest.json"
PICTURE = "quality.png"  # for people: in no hash, may be absent
OWN_NAMES = frozenset({MANIFEST, PICTURE, *(f"{name}.npy" for name in ARRAYS)})
SECONDS_PER_YEAR = 365.0 * 86_400.0


class Manifest(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What manifest.json holds; data/README.md explains every field."""

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
    feature_coins: tuple[int, ...] | None = None  # older manifests have none: the names say it
    lookahead: LookaheadRecord | None = None


SHARED = ("source", "bar_seconds", "segments", "tickers", "feature_set", "feature_names", "warmup_bars", "sha256")
SHARED += ("quality",)  # fields that a dataset has, too
NO_COIN = -1  # in `feature_coins`: a column of all coins
NOT_HASHED = ("format", "kind", "timeframe", "first_close", "last_close", "bars", "sha256")  # repeat what is hashed
NOT_HASHED += ("lookahead",)  # has a hash of its own


@dataclass(frozen=True)
class Dataset:
    """Market arrays of A coins over T bars with F feature columns. Arrays are shared, never to be written."""

    price: np.ndarray  # (T, A) float64, close, quote per coin
    tech: np.ndarray  # (T, F) float32, row t uses bars <= t
    time: np.ndarray  # (T,) int64, UTC seconds, bar close
    filled: np.ndarray  # (T, A) bool, nobody traded in the bar (or its last part): it was missing or had no volume
    tickers: tuple[str, ...]  # A
    feature_set: str  # a name in market.features.FEATURE_SETS, or where the columns come from
    feature_names: tuple[str, ...]  # F, `BTC:rsi_14`, or `time:day_sin` for a column of all coins
    warmup_bars: int  # bars before each segment that its first row depends on
    bar_seconds: int
    segments: tuple[tuple[int, int], ...]  # contiguous [first, last_exclusive)
    source: str
    synthetic: bool
    venue: Venue  # order rules of these tickers, and fees
    sha256: str  # over everything else here
    quality: Mapping[str, Any] = field(
        default_factory=dict
    )  # market.bars.quality's report of the bars it was built from
    own_coins: tuple[int, ...] | None = None  # `feature_coins` where the names do not say them
    lookahead: LookaheadRecord | None = None  # of this dataset, or of the one that its rows and columns were taken from

    @property
    def feature_coins(self) -> tuple[int, ...]:
        """(F,) place in `tickers` of the coin whose column it is; NO_COIN for a column of all coins."""
        return coins_by_name(self.tickers, self.feature_names) if self.own_coins is None else self.own_coins

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays under the names of their files."""
        named = {"price_array": self.price, "tech_array": self.tech, "time_array": self.time}
        return named | {"filled_array": self.filled}

    @property
    def record(self) -> LookaheadRecord:
        """What is known of look-ahead in these columns; an empty record where nothing is."""
        return self.lookahead or LookaheadRecord(dataset_sha256=self.sha256)

    @property
    def standing(self) -> Standing:
        """What the record says of these columns."""
        return standing(self.record, self.feature_set, self.feature_names)

    @property
    def bars_per_year(self) -> float:
        """Bars in 365 days: crypto trades every day."""
        return SECONDS_PER_YEAR / self.bar_seconds

    @property
    def kind_text(self) -> str:
        """`REAL`, `SYNTHETIC`, or with the law of a demonstration: `SYNTHETIC, planted signal`."""
        return synthetic_kind(self.source) if self.synthetic else "REAL"

    @property
    def label(self) -> str:
        """One line for logs: `REAL 5m, 7 coins, 70144 bars, 2024-01-01 10:45 .. 2024-09-01 00:00 UTC, source ...`."""
        span = f"{utc_text(self.time[0])} .. {utc_text(self.time[-1])} UTC"
        coins, segments = counted(len(self.tickers), "coin"), counted(len(self.segments), "segment")
        size = f"{timeframe_name(self.bar_seconds)}, {coins}, {len(self.time)} bars, {segments}"
        comma = "," if "," in self.kind_text else ""
        return f"{self.kind_text}{comma} {size}, {span}, source {self.source}"

    def with_tickers(self, tickers: Sequence[str]) -> Dataset:
        """The same bars with only these coins' columns, in this order, under a hash of its own.

        Feature columns that belong to no coin stay, last.
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
        """The name of a feature column without its coin: `rsi_14`."""
        name, coin = self.feature_names[column], self.feature_coins[column]
        return name.partition(":")[2] or name if coin == NO_COIN else name.removeprefix(f"{self.tickers[coin]}:")

    def with_rows(self, first: int, last: int) -> Dataset:
        """Rows [first, last) only, segments cut to them, under a hash of its own.

        Raises:
            DatasetError: no segment of a useful length is left.
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
        """The `config` of an environment, on all segments or on the given parts of them.

        Order minima and increments are joined by ticker name, so column order does not matter.
        """
        chosen = self.segments if segments is None else tuple((int(a), int(b)) for a, b in segments)
        for first, last in chosen:
            if not any(a <= first < last <= b for a, b in self.segments):
                raise DatasetError(f"segment ({first}, {last}) lies in none of the dataset's {self.segments}")
        if not chosen:
            raise DatasetError("no segments given; an environment needs at least one")
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
    """A checked dataset with its hash; shapes as in `Dataset`. Without `filled` every bar trades.

    Of `venue` the entries of these tickers are kept. Without `feature_coins` a column belongs to the coin whose name
    and a colon its name begins with.
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
    """The place in `tickers` of the longest one that each feature's name begins with, before a colon; else NO_COIN."""
    longest_first = sorted(range(len(tickers)), key=lambda coin: -len(tickers[coin]))
    return tuple(
        next((coin for coin in longest_first if name.startswith(f"{tickers[coin]}:")), NO_COIN)
        for name in feature_names
    )


def _unsaid_coins(
    tickers: Sequence[str], feature_names: Sequence[str], coins: Sequence[int] | None
) -> tuple[int, ...] | None:
    """The coins of features; None where their names say the same."""
    return None if coins is None or tuple(coins) == coins_by_name(tickers, feature_names) else tuple(coins)


def _checked(dataset: Dataset) -> Dataset:
    """The dataset, found valid, under the hash of what it now holds."""
    check_dataset(dataset, "dataset")
    return replace(dataset, sha256=dataset_hash(_manifest(dataset)))


def _array_hashes(dataset: Dataset) -> dict[str, str]:
    """Sha256 of the values of each array, row by row, little endian."""
    return {
        name: hashlib.sha256(np.ascontiguousarray(array).data).hexdigest() for name, array in dataset.arrays.items()
    }


def dataset_hash(manifest: Manifest) -> str:
    """One hash over the arrays and everything that says what their numbers mean and where they come from.

    `feature_coins` counts where the names alone do not say it, so a manifest without the field keeps its hash.
    """
    meaning = {name: value for name, value in asdict(manifest).items() if name not in NOT_HASHED}
    if manifest.feature_coins in (None, coins_by_name(manifest.tickers, manifest.feature_names)):
        del meaning["feature_coins"]
    meaning["synthetic"] = manifest.kind == "synthetic"
    return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()


def save_dataset(dataset: Dataset, folder: Path | str, overwrite: bool = False, picture: bytes | None = None) -> None:
    """Write the folder whole or not at all: a kill at any moment leaves the old folder or the new one.

    Hidden folders that a killed save of this folder left beside it are swept away. `picture` is the PNG of
    `market.pictures.quality_picture`; without one the folder holds none.

    Raises:
        DatasetError: the dataset is not valid, or something is there already; only a dataset folder is ever replaced,
            and only with `overwrite`.
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
    """The dataset with a declaration in its record: someone vouches for columns that correlate with later bars.

    Raises:
        DatasetError: a column that the dataset lacks, or no name or reason.
    """
    unknown = [name for name in columns if name not in dataset.feature_names]
    if unknown:
        raise DatasetError(f"--declare {unknown[0]}: no such column; scripts/data/inspect_dataset.py lists them")
    if not (by.strip() and why.strip()):
        raise DatasetError("--declare needs --by NAME and --why TEXT")
    record = dataset.record
    declared = (*record.declared, Declared(tuple(columns), by, why))
    return replace(dataset, lookahead=struct_with(record, declared=declared).sealed())


def write_record(folder: Path | str, record: LookaheadRecord) -> Dataset:
    """Put a record of look-ahead into a dataset's manifest, in place of the one that it has; the dataset.

    Raises:
        DatasetError: the folder is no whole dataset, or the record is another's.
    """
    dataset = replace(load_dataset(folder), lookahead=record)
    manifest = _manifest(dataset)
    if manifest.lookahead is None:
        raise DatasetError(f"{folder}: the record of look-ahead is another dataset's; check this one")
    write_whole(Path(folder) / MANIFEST, encode(manifest))
    return dataset


def check_target(folder: Path | str, overwrite: bool) -> None:
    """Refuse a folder that must not be replaced, before any long work."""
    folder = Path(folder)
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise DatasetError(f"{folder}: is a link or a file; choose another folder")
    around = next((parent for parent in folder.absolute().parents if (parent / MANIFEST).exists()), None)
    if around is not None:
        raise DatasetError(f"{folder}: lies inside the dataset {around}; choose a folder outside it")
    names = {entry.name for entry in folder.iterdir()} if folder.exists() else set()
    foreign = sorted(names - OWN_NAMES)
    if foreign:
        raise DatasetError(f"{folder}: holds {foreign[0]}, which is not part of a dataset; choose another folder")
    if names and not overwrite:
        raise DatasetError(f"{folder}: holds a dataset already; pass --overwrite to replace it")


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
    """Read a dataset and check everything about it, hash included.

    Args:
        folder: as `save_dataset` wrote it.
        mmap: map the arrays instead of reading them; writes to them would stay private to this process.

    Raises:
        DatasetError: one line that names the file and says what to do.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DatasetError(
            f"{folder}: no such dataset folder; build one with scripts/data/build_dataset.py, or "
            "a made-up one with scripts/data/make_sample.py"
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
        raise DatasetError(f"{folder / MANIFEST}: field lookahead was edited or is another dataset's; {REBUILD}")
    # Fields that only repeat others for the reader are in no hash; they must still say the same.
    if found != manifest or dataset_hash(found) != dataset.sha256:
        raise DatasetError(f"{folder / MANIFEST}: does not match its own hash, so it was edited; {REBUILD}")
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
