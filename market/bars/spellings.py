"""Symbols of one coin in a table: spellings of the same pair are joined, and other pairs are dropped with a warning."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from market.errors import BarsError
from market.names import counted, currency_fault, currency_of, match_symbols, ticker_for, ticker_of
from market.symbols import DOLLARS, Pair, known_pair
from market.times import utc_text

LOGGER = logging.getLogger(__name__)


def spellings(symbols: Iterable[str]) -> dict[str, str]:
    """Map every symbol with several spellings to the one with a slash, or to the first."""
    groups: dict[Pair, list[str]] = {}
    for symbol in sorted(symbols):
        if pair := known_pair(symbol):
            groups.setdefault(pair._replace(quote=pair.quote or DOLLARS[0]), []).append(symbol)
    several = [names for names in groups.values() if len(names) > 1]
    return {name: next((n for n in names if "/" in n), names[0]) for names in several for name in names}


def join_spellings(bars: pd.DataFrame, where: str) -> pd.DataFrame:
    """Return the bars with one symbol per pair. Duplicate bars of two spellings are kept once.

    Args:
        bars: a table with categorical `symbol`, and `timestamp` in UTC seconds.
        where: name of the table in errors and warnings.

    Raises:
        BarsError: two spellings of one pair have different bars at the same time.
    """
    one_name = spellings(bars["symbol"].cat.categories)
    if not one_name:
        return bars
    spelled = bars["symbol"].astype(str)
    bars = bars.assign(symbol=spelled.replace(one_name).astype("category"))
    is_copy = np.zeros(len(bars), dtype=bool)
    for name in sorted(set(one_name.values())):
        group = bars.loc[(bars["symbol"] == name).to_numpy()].assign(spelled=spelled)
        names = sorted(set(group["spelled"]))
        text = " and ".join(f"{n} ({counted(int((group['spelled'] == n).sum()), 'bar')})" for n in names)
        is_second = group.duplicated("timestamp") & ~group.duplicated(["timestamp", "spelled"])
        is_other = is_second & ~group.duplicated([name for name in group.columns if name != "spelled"])
        if is_other.any():
            at = group.loc[is_other, "timestamp"].iloc[0]
            raise BarsError(
                f"{where}: {text} are spellings of one pair, but {int(is_other.sum())} bars at the same time differ, "
                f"first {utc_text(int(at))}; keep one of them"
            )
        LOGGER.warning("%s: joined %s, which are spellings of one pair", where, text)
        is_copy |= is_second.reindex(bars.index, fill_value=False).to_numpy()
    return bars.loc[~is_copy].reset_index(drop=True)


def chosen_symbols(bars: pd.DataFrame, tickers: Sequence[str], where: str) -> tuple[str, ...]:
    """Return the symbol for each ticker, in order. Dropped pairs of the same coins are logged.

    Args:
        bars: tidy bars, as returned by `market.bars.candles.read_bars`.
        tickers: coin names in any form.
        where: name of the table in errors and warnings.

    Raises:
        BarsError: `match_symbols` fails, or a coin continues under a different pair and the ticker does not name one.
    """
    there = set(map(str, bars["symbol"].unique()))
    try:
        symbols = match_symbols(tickers, there)
        currencies = {name: currency_of(name) for name in map(ticker_for, tickers, symbols)}
    except BarsError as error:
        raise BarsError(f"{where}: {error}") from error
    if fault := currency_fault(currencies):
        raise BarsError(f"{where}: {fault}")
    for ticker, symbol in zip(tickers, symbols, strict=True):
        for other in sorted(there - set(symbols)):
            if known_pair(other) and ticker_of(other) == ticker_for(ticker, symbol):
                _say_left_out(bars, ticker, symbol, other, where)
    return symbols


def perpetual_warnings(symbols: Iterable[str]) -> list[str]:
    """Return one warning per perpetual contract whose bars are used for its coin."""
    pairs = {symbol: known_pair(symbol) for symbol in symbols}
    return [
        f"{symbol}: is a perpetual contract, traded here as {pair.text} on cash; its funding payments are not included"
        for symbol, pair in pairs.items()
        if pair and pair.is_perpetual
    ]


def _say_left_out(bars: pd.DataFrame, ticker: str, symbol: str, other: str, where: str) -> None:
    """Log a second pair of a coin. Raise BarsError if its bars are entirely before or after those of the first."""
    times = [bars.loc[(bars["symbol"] == name).to_numpy(), "timestamp"] for name in (symbol, other)]
    (first, last), (begin, end) = ((t.min(), t.max()) for t in times)
    text = [f"{name} ({counted(len(t), 'bar')})" for name, t in zip((symbol, other), times, strict=True)]
    if ticker not in (symbol, other) and (last < begin or end < first):
        raise BarsError(
            f"{where}: {text[0]} and {text[1]} are both {ticker_of(symbol)} and do not overlap; "
            f"pass {symbol} or {other} in --tickers, or use one symbol for both in the file"
        )
    LOGGER.warning("%s: using %s, dropping %s: %s, %s", where, symbol, other, *text)
