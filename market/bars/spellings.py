"""Symbols of one coin in a table: spellings of one pair are joined, its other pairs are left out by name."""

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
    """Every symbol that is written in several ways -> the one of them with a slash, or the first."""
    groups: dict[Pair, list[str]] = {}
    for symbol in sorted(symbols):
        if pair := known_pair(symbol):
            groups.setdefault(pair._replace(quote=pair.quote or DOLLARS[0]), []).append(symbol)
    several = [names for names in groups.values() if len(names) > 1]
    return {name: next((n for n in names if "/" in n), names[0]) for names in several for name in names}


def join_spellings(bars: pd.DataFrame, where: str) -> pd.DataFrame:
    """The bars with one symbol for each pair; a bar that two spellings hold alike is kept once.

    Args:
        bars: with a column `symbol` of categories, and `timestamp` in UTC seconds.
        where: names the table in errors and warnings.

    Raises:
        BarsError: two spellings of one pair hold different bars of one time.
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
                f"{where}: {text} are spellings of one coin, and {int(is_other.sum())} bars of the same time differ, "
                f"first {utc_text(int(at))}; keep one of them"
            )
        LOGGER.warning("%s: %s are spellings of one coin and are joined", where, text)
        is_copy |= is_second.reindex(bars.index, fill_value=False).to_numpy()
    return bars.loc[~is_copy].reset_index(drop=True)


def chosen_symbols(bars: pd.DataFrame, tickers: Sequence[str], where: str) -> tuple[str, ...]:
    """The symbol for each ticker, in their order; other pairs of the same coins are said to be left out.

    Args:
        bars: as `market.bars.candles.read_bars` returns them.
        tickers: names in any form.
        where: names the table in errors and warnings.

    Raises:
        BarsError: what `match_symbols` refuses; or a coin's bars go on in another pair, and the ticker does not say
            which pair is meant.
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
    """One line for each perpetual contract, whose bars are taken for those of its coin."""
    pairs = {symbol: known_pair(symbol) for symbol in symbols}
    return [
        f"{symbol}: is a perpetual contract, traded here as {pair.text} on cash; its funding payments are left out"
        for symbol, pair in pairs.items()
        if pair and pair.is_perpetual
    ]


def _say_left_out(bars: pd.DataFrame, ticker: str, symbol: str, other: str, where: str) -> None:
    """Warn of a second pair of a coin; refuse to choose where its bars lie before or after those of the first."""
    times = [bars.loc[(bars["symbol"] == name).to_numpy(), "timestamp"] for name in (symbol, other)]
    (first, last), (begin, end) = ((t.min(), t.max()) for t in times)
    text = [f"{name} ({counted(len(t), 'bar')})" for name, t in zip((symbol, other), times, strict=True)]
    if ticker not in (symbol, other) and (last < begin or end < first):
        raise BarsError(
            f"{where}: {text[0]} and {text[1]} are both {ticker_of(symbol)} and never overlap; "
            f"pass {symbol} or {other} in --tickers for one of them, or give both one symbol in the file"
        )
    LOGGER.warning("%s: %s is taken, %s is left out: %s, %s", where, symbol, other, *text)
