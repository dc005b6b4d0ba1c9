"""Binance spot bars in USDT from the public monthly archives, each verified by its published SHA-256."""

from __future__ import annotations

import hashlib
import io
import logging
import lzma
import os
import struct
import zipfile
from collections.abc import Sequence
from datetime import datetime, timedelta

import numpy as np
import pandas as pd
import requests

from market.bars.candles import tidy_bars
from market.bars.table_files import DECODER_ERRORS
from market.errors import BarsError
from market.names import pair_of, timeframe_seconds
from market.sources.periods import Period, SymbolMonth
from market.sources.transport import (
    DamagedAnswerError,
    Patience,
    be_patient,
    check_reachable,
    one_line,
    patiently,
    refusal,
)

URL = "https://data.binance.vision"
URL_VARIABLE = "CRYPTO_BARS_BINANCE_URL"
LONGEST_LINE_BYTES = 720  # a bar has about 140, and a month of one-minute bars may have 32 MB
LONGEST_MONTH_S = 31 * 86_400
PUBLISHED_WITHIN = timedelta(days=45)  # after the end of a month; archives usually appear within days
ENDS_EARLY = timedelta(days=1)
UNREADABLE = (*DECODER_ERRORS, zipfile.BadZipFile, lzma.LZMAError, struct.error, RuntimeError)
ARCHIVE_COLUMNS = ("timestamp", "open", "high", "low", "close", "volume")  # the first 6 of 12

LOGGER = logging.getLogger(__name__)


class Binance:
    """Source of bars at one timeframe from Binance's archives or another server with the same files."""

    title = "Binance"

    def __init__(self, timeframe: str, url: str | None = None, patience: Patience | None = None) -> None:
        timeframe_seconds(timeframe)
        self.url = (url or os.environ.get(URL_VARIABLE) or URL).rstrip("/")
        self._timeframe = timeframe
        self._patience = patience or Patience()
        self._session = requests.Session()
        be_patient(self._session, self._patience)

    def symbol(self, ticker: str) -> str:
        """Return `BTC/USDT` for any form of the name."""
        return pair_of(ticker, "/", "USDT")

    def check(self, units: Sequence[SymbolMonth], period: Period, now: datetime) -> Period:
        """Raise BarsError early for missing first months, and drop a last month that is not published yet.

        Archives are published a few days after the end of their month. An archive that is still missing weeks later
        will not appear. A period of a single month is never shortened: a missing archive is then an error.
        """
        check_reachable(self.url, self._patience)
        first_months = {unit.symbol: unit for unit in reversed(units)}
        absent = [self._archive(unit) for unit in first_months.values() if not self._is_published(unit)]
        last_month = period.months()[-1]
        if len(period.months()) > 1:
            late = [unit for unit in units if unit.month == last_month and not self._is_published(unit)]
            absent = [name for name in absent if name not in map(self._archive, late)]
            if late and not absent:
                self._check_may_be_late(late, now)
                LOGGER.warning(
                    "Binance has not published the %s archive of %s for %s yet; bars end with %s",
                    self._timeframe, f"{last_month:%Y-%m}", ", ".join(unit.symbol for unit in late),
                    f"{period.months()[-2]:%Y-%m}",
                )  # fmt: skip
                period = Period(period.start, last_month)
        if absent:
            raise BarsError(_absent(", ".join(sorted(absent))))
        return period

    def _check_may_be_late(self, late: Sequence[SymbolMonth], now: datetime) -> None:
        """Raise BarsError if an archive should have been published long ago."""
        if now - late[0].period.end > PUBLISHED_WITHIN:
            raise BarsError(
                f"Binance has no archive {', '.join(self._archive(unit) for unit in late)}, long after its month; "
                f"{', '.join(unit.symbol for unit in late)} may be delisted or renamed. Remove it, or choose an --end "
                "before its last month"
            )

    def is_final(self, unit: SymbolMonth, now: datetime) -> bool:
        """Return True: an archive is published after its month has ended, and is verified."""
        del unit, now
        return True

    def fetch(self, unit: SymbolMonth, period: Period) -> pd.DataFrame:
        """Return one symbol's bars of the whole month, because an archive holds a whole month."""
        del period
        name = self._archive(unit)
        return patiently(lambda: self._month(unit, name), f"Binance, {name}", self._patience)

    def _month(self, unit: SymbolMonth, name: str) -> pd.DataFrame:
        archive = self._get(unit)
        self._check_digest(archive, self._get(unit, ".CHECKSUM"), name)
        table = parse_archive(archive, name, self._timeframe).assign(symbol=unit.symbol)
        bars = tidy_bars(table, f"Binance, {name}")
        whole = unit.period
        first, last = (pd.Timestamp(bars["timestamp"].iloc[row]) for row in (0, -1))
        if first < whole.start or last >= whole.end:
            raise BarsError(
                f"Binance, {name}: contains bars of {first:%Y-%m-%d} .. {last:%Y-%m-%d}; use a different source"
            )
        if whole.end - last > ENDS_EARLY:
            LOGGER.warning("Binance, %s: ends early with the bar of %s UTC", name, f"{last:%Y-%m-%d %H:%M}")
        return bars.assign(symbol=unit.symbol)

    def _check_digest(self, archive: bytes, published: bytes, name: str) -> None:
        """Check the published line `<sha256>  <file>` against the file's name and bytes."""
        words = published.split()
        if [word.lstrip(b"*") for word in words[1:]] != [name.encode()]:
            raise DamagedAnswerError("its published checksum belongs to a different file")
        if words[0].lower() != hashlib.sha256(archive).hexdigest().encode():
            raise DamagedAnswerError("does not match its published SHA-256")

    def _archive(self, unit: SymbolMonth) -> str:
        return f"{unit.symbol.replace('/', '')}-{self._timeframe}-{unit.month:%Y-%m}.zip"

    def _ask(self, unit: SymbolMonth, suffix: str) -> requests.Response:
        pair = unit.symbol.replace("/", "")
        folder = f"{self.url}/data/spot/monthly/klines/{pair}/{self._timeframe}"
        return self._session.get(f"{folder}/{self._archive(unit)}{suffix}")

    def _is_published(self, unit: SymbolMonth) -> bool:
        what = f"Binance, {self._archive(unit)}.CHECKSUM"
        return patiently(lambda: self._ask(unit, ".CHECKSUM"), what, self._patience).status_code != 404

    def _get(self, unit: SymbolMonth, suffix: str = "") -> bytes:
        answer = self._ask(unit, suffix)
        name = self._archive(unit) + suffix
        if answer.status_code == 404:
            raise BarsError(_absent(name))
        if not answer.ok:
            raise BarsError(f"Binance, {name}: {refusal(answer.status_code, answer.reason)}")
        return answer.content


def _absent(names: str) -> str:
    return (
        f"Binance has no archive {names}; check that the ticker is correct, that the coin was listed then, and "
        "that the month has ended. A later --start may help"
    )


def parse_archive(archive: bytes, name: str, timeframe: str) -> pd.DataFrame:
    """Parse a monthly archive: 12 columns without a header, open time first, in ms (since 2025 in microseconds).

    The archive must hold one file with its own name, no larger than a month of the timeframe can be.

    Raises:
        BarsError: the content is not that of such an archive.
        DamagedAnswerError: the archive is damaged or empty.
    """
    largest = (LONGEST_MONTH_S // timeframe_seconds(timeframe) + 1) * LONGEST_LINE_BYTES
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as files:
            members = files.namelist()
            if members != [f"{name.removesuffix('.zip')}.csv"]:
                raise BarsError(
                    f"Binance, {name}: contains {ascii(members)[:80]}, expected one .csv file with the same name"
                )
            with files.open(members[0]) as file:
                lines = file.read(largest + 1)  # regardless of the size in its header
        if len(lines) > largest:
            raise BarsError(
                f"Binance, {name}: more than {largest} bytes decompressed, too large for a month of {timeframe} bars"
            )
        table = pd.read_csv(io.BytesIO(lines), header=None, usecols=range(6), names=ARCHIVE_COLUMNS)
        if table.empty:
            raise DamagedAnswerError("the archive contains no bars")
    except BarsError:
        raise
    except UNREADABLE as error:
        raise DamagedAnswerError(f"not a readable archive ({one_line(error)})") from error
    # Some archives have a header line, which is the only row without numbers.
    numbers = pd.DataFrame({column: pd.to_numeric(table[column], errors="coerce") for column in ARCHIVE_COLUMNS})
    has_header = bool(np.isnan(numbers["timestamp"].to_numpy()[0]))
    return numbers.iloc[int(has_header) :]
