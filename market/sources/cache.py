"""Cache of downloaded bars, one Parquet file per server, symbol, timeframe and calendar month.

Files are written atomically, describe their content, and have a SHA-256 of their values that is checked on every read.
A file that fails the check is downloaded again. An empty file means that the symbol had no bars in that month.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from market.bars.candles import COLUMNS, PRICES
from market.bars.table_files import DECODER_ERRORS
from market.bars.time_grid import off_grid, opens_of
from market.errors import BarsError
from market.files import whole_file
from market.names import timeframe_name, timeframe_seconds
from market.sources.periods import SymbolMonth

VALUES = (*PRICES, "volume")
LARGEST_FILE_BYTES = 64 * 2**20  # a month of one-minute bars is about 2 MB
FEW_STEPS = 10  # too few steps to infer the bar length of an illiquid coin from the most common step
LABEL, DIGEST = b"bars", b"bars_sha256"

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class BarsCache:
    """Cached months of one server at one timeframe."""

    folder: Path
    url: str  # URL of the server
    timeframe: str

    def __post_init__(self) -> None:
        """Raise BarsError if the folder is a file."""
        if self.folder.exists() and not self.folder.is_dir():
            raise BarsError(f"cache {self.folder}: not a folder; choose a different one, or disable the cache")

    def path(self, unit: SymbolMonth) -> Path:
        """Return the file of a month, such as `data.alpaca.markets/BTC-USD/5m/2024-01.parquet` in the folder."""
        server, symbol = urlsplit(self.url).netloc.replace(":", "_"), unit.symbol.replace("/", "-")
        return self.folder / server / symbol / self.timeframe / f"{unit.month:%Y-%m}.parquet"

    def read(self, unit: SymbolMonth) -> pd.DataFrame | None:
        """Return the month's tidy bars, or None if the file is missing or fails its check. A failed check is logged."""
        path = self.path(unit)
        try:
            return self._checked(path, unit)
        except FileNotFoundError:
            return None
        except DECODER_ERRORS as error:
            reason = ascii(" ".join(str(error).split())[:120])[1:-1]
            LOGGER.warning("cache %s: cannot be used (%s); downloading %s again", path, reason, unit)
            return None

    def _checked(self, path: Path, unit: SymbolMonth) -> pd.DataFrame:
        n_bytes = path.stat().st_size
        if n_bytes > LARGEST_FILE_BYTES:
            raise ValueError(f"{n_bytes} bytes is too large for a month of bars")
        table = pq.ParquetFile(path, page_checksum_verification=True).read()
        notes = table.schema.metadata or {}
        if LABEL not in notes or DIGEST not in notes:
            raise ValueError("not a file of this cache")
        if notes[LABEL] != self._label(unit):
            raise ValueError(f"it contains {notes[LABEL].decode(errors='replace')}")
        arrays = {name: table.column(name).to_numpy() for name in ("timestamp", *VALUES)}
        if notes[DIGEST] != _digest(arrays):
            raise ValueError("the values do not match their SHA-256")
        bars = _tidy(arrays, unit.symbol)
        check_timeframe(bars, self.timeframe, "the file")
        return bars

    def write(self, unit: SymbolMonth, bars: pd.DataFrame) -> None:
        """Store one month of tidy bars of one symbol.

        Raises:
            BarsError: the bars have a different timeframe; nothing is written.
        """
        check_timeframe(bars, self.timeframe, str(unit))
        arrays = {name: bars[name].to_numpy(dtype=np.float64) for name in VALUES}
        arrays["timestamp"] = opens_of(bars)
        notes = {LABEL: self._label(unit), DIGEST: _digest(arrays)}
        table = pa.table({name: pa.array(arrays[name]) for name in ("timestamp", *VALUES)}, metadata=notes)
        with whole_file(self.path(unit)) as file:
            pq.write_table(table, file, write_page_checksum=True)

    def _label(self, unit: SymbolMonth) -> bytes:
        fields = [self.url, unit.symbol, self.timeframe, f"{unit.month:%Y-%m}"]
        return json.dumps(fields).encode()


def check_timeframe(bars: pd.DataFrame, timeframe: str, where: str) -> None:
    """Check that one symbol's bars have a timeframe and open on its UTC grid. Gaps and strays are allowed.

    Raises:
        BarsError: the check failed; the message is one line and starts with `where`.
    """
    step = timeframe_seconds(timeframe)
    opens = opens_of(bars)
    is_off, are_strays = off_grid(bars, step)
    if not are_strays:
        first = bars["timestamp"].iloc[int(is_off.argmax())]
        raise BarsError(
            f"{where}: the bar of {first:%Y-%m-%d %H:%M:%S} UTC does not open on the UTC grid of {timeframe}"
        )
    lengths, counts = np.unique(np.diff(opens), return_counts=True)
    common = lengths[counts == counts.max()] if len(lengths) else lengths
    if len(opens) <= FEW_STEPS and len(opens) > 2:
        common = np.append(common, np.gcd.reduce(lengths))
    if len(opens) > 2 and step not in common:
        found = timeframe_name(int(common[0]))
        raise BarsError(
            f"{where}: the bars are {found} apart, expected {timeframe}; use a different source or timeframe"
        )


def _digest(arrays: dict[str, np.ndarray]) -> bytes:
    """Return the SHA-256 of the values in a fixed order of columns, types and bytes."""
    digest = hashlib.sha256()
    for name in ("timestamp", *VALUES):
        digest.update(np.ascontiguousarray(arrays[name], dtype="<i8" if name == "timestamp" else "<f8").tobytes())
    return digest.hexdigest().encode()


def _tidy(arrays: dict[str, np.ndarray], symbol: str) -> pd.DataFrame:
    time = pd.to_datetime(arrays["timestamp"], unit="s", utc=True).as_unit("s")
    columns = {"timestamp": time, "symbol": symbol} | {name: arrays[name] for name in VALUES}
    return pd.DataFrame(columns, columns=list(COLUMNS))


def no_bars(symbol: str) -> pd.DataFrame:
    """Return a tidy table without rows."""
    return _tidy({"timestamp": np.zeros(0, np.int64)} | {name: np.zeros(0) for name in VALUES}, symbol)
