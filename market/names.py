"""Names of coins and timeframes, and their comparison.

`BTC`, `btc`, `BTC/USD`, `BTC/USDT`, `BTC-USD`, `BTC_USDT` and `BTCUSD` name the same coin. `BTC/EUR` does not, because
a dataset has one cash currency. Dollar stablecoins count as US dollars. `market.symbols` parses the symbols of
exchanges.

A name without a separator can be ambiguous: `ARBUSD` is ARB in USD or AR in BUSD. If the available symbols are known,
the name is matched with them, and an ambiguous match is an error. Otherwise `split_symbol` decides. `CRVUSD` means the
coin CRV in dollars, so the coin CRVUSD is written `CRVUSD/USD`, also in datasets. Names in a dataset are never split
again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from market.errors import BarsError
from market.symbols import CHANCE_QUOTES, DOLLARS, QUOTES, Pair, known_pair, pairs_of, read_symbol
from market.symbols import WHOLE_NAMES as WHOLE_NAMES

DEFAULT_TICKERS = ("AAVE", "AVAX", "BTC", "LINK", "ETH", "LTC", "UNI")

TIMEFRAME_SECONDS = {
    "1m": 60,
    "5m": 300,
    "15m": 900,
    "30m": 1_800,
    "1h": 3_600,
    "4h": 14_400,
    "12h": 43_200,
    "1d": 86_400,
}


def timeframe_seconds(timeframe: str) -> int:
    """Return the bar length in seconds of a timeframe such as `5m`.

    Raises:
        BarsError: the timeframe is unknown.
    """
    if timeframe not in TIMEFRAME_SECONDS:
        raise BarsError(f"unknown timeframe {timeframe!r}; choose one of {', '.join(TIMEFRAME_SECONDS)}")
    return TIMEFRAME_SECONDS[timeframe]


def counted(n: int, noun: str) -> str:
    """Return a number with its noun: `1 segment`, `2 segments`."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def timeframe_name(bar_seconds: int) -> str:
    """Return the timeframe of a bar length: `5m` for 300, or seconds such as `90s` if it has no name."""
    names = {seconds: name for name, seconds in TIMEFRAME_SECONDS.items()}
    return names.get(bar_seconds, f"{bar_seconds}s")


def split_symbol(symbol: str) -> tuple[str, str]:
    """Return (coin, quote) in upper case: `("BTC", "USDT")` for `btc/usdt` or `BTCUSDT`. A missing quote is empty.

    Raises:
        BarsError: the symbol is ambiguous or is not a spot pair.
    """
    pair = read_symbol(symbol)
    return pair.coin, pair.quote


def pair_of(ticker: str, mark: str, dollar: str) -> str:
    """Return the pair as which a source lists a ticker, such as `BTC/USD`.

    A missing quote, USD and USDT become `dollar`, the dollar of the source.

    Args:
        ticker: coin name in any form.
        mark: separator between coin and quote.
        dollar: quote of the source's dollar pairs.

    Raises:
        BarsError: the ticker is a perpetual contract or cannot be read.
    """
    pair = read_symbol(ticker)
    if pair.is_perpetual:
        raise BarsError(f"{ticker!r} is a perpetual contract, but downloads are spot bars; write {pair.text}")
    return f"{pair.coin}{mark}{dollar if pair.quote in ('', 'USD', 'USDT') else pair.quote}"


def ticker_of(symbol: str) -> str:
    """Return a symbol's name in a dataset: the coin (`BTC`) for dollars, the pair (`BTC/EUR`) for other currencies.

    A coin whose bare name would be parsed as a pair, or not at all, keeps its quote (`CRVUSD/USD`). Parsing a dataset's
    name therefore always returns the same name.
    """
    pair = read_symbol(symbol)
    if pair.quote and pair.quote not in DOLLARS:
        return f"{pair.coin}/{pair.quote}"
    return pair.coin if known_pair(pair.coin) == Pair(pair.coin, "") else f"{pair.coin}/{DOLLARS[0]}"


def ticker_for(wanted: str, symbol: str) -> str:
    """Return the dataset name of a symbol matched to a wanted ticker. The ticker decides if the symbol is ambiguous."""
    return ticker_of(wanted if known_pair(symbol) is None and symbol != wanted else symbol)


def currency_of(symbol: str) -> str:
    """Return the cash currency of a symbol. Dollar stablecoins and bare coin names count as USD."""
    return _currency(read_symbol(symbol).quote)


def known_currency(ticker: str) -> str | None:
    """Return the cash currency of a name, or None if it is unknown."""
    pair = known_pair(ticker)
    return None if pair is None or (pair.quote and pair.quote not in QUOTES) else _currency(pair.quote)


def is_readable(ticker: str) -> bool:
    """Return True if the name can be a coin or a spot pair."""
    try:
        return bool(pairs_of(ticker))
    except BarsError:
        return False


def currency_fault(currencies: Mapping[str, str | None]) -> str | None:
    """Describe tickers with different cash currencies, which cannot share an account. Return None if there are none."""
    coins = {currency: ticker for ticker, currency in [*currencies.items()][::-1] if currency}
    if len(coins) < 2:
        return None
    found = ", ".join(f"{ticker} is in {currency}" for currency, ticker in sorted(coins.items()))
    mixed = f"tickers {', '.join(currencies)} mix the currencies {', '.join(sorted(coins))}"
    return f"{mixed} ({found}); an account has only one, so choose one"


def _currency(quote: str) -> str:
    return quote if quote and quote not in DOLLARS else DOLLARS[0]


def match_symbols(wanted: Sequence[str], available: Iterable[str]) -> tuple[str, ...]:
    """Return the available symbol for each wanted ticker, in the order of `wanted`.

    An exact match has priority, followed by the same coin in the first available of USD, USDT, USDC, and so on. An
    ambiguous symbol is matched only by a ticker with a separator.

    Raises:
        BarsError: a ticker is unknown, ambiguous or repeated, or the cash currencies differ. The message lists the
            available symbols.
    """
    names = tuple(available)
    found = [match_symbol(ticker, names) for ticker in wanted]
    unknown = [ticker for ticker, symbol in zip(wanted, found, strict=True) if symbol is None]
    if unknown:
        listed = ", ".join(sorted(names)) or "none"
        raise BarsError(f"unknown ticker {', '.join(unknown)}; available: {listed}{_unreadable(unknown, names)}")
    symbols = tuple(symbol for symbol in found if symbol is not None)
    repeated = sorted({s for s in symbols if symbols.count(s) > 1})
    if repeated:
        raise BarsError(f"ticker {', '.join(repeated)} is repeated in {', '.join(wanted)}; name each coin once")
    if fault := currency_fault({symbol: known_currency(symbol) for symbol in symbols}):
        raise BarsError(fault)
    return symbols


def _unreadable(unknown: Sequence[str], names: Sequence[str]) -> str:
    """Explain why the first symbol that starts with an unknown ticker's coin does not match it."""
    coins = tuple(pair.coin for ticker in unknown if (pair := known_pair(ticker)))
    for name in sorted(names):
        if coins and name.upper().startswith(coins) and known_pair(name) is None:
            try:
                read_symbol(name)
            except BarsError as error:
                return f"; {error}"
    return ""


def match_symbol(ticker: str, names: Sequence[str]) -> str | None:
    """Return the name among `names` that a ticker means, or None.

    Raises:
        BarsError: the ticker cannot be read, or has no separator and matches two coins equally well.
    """
    if ticker in names:
        return ticker
    possible = pairs_of(ticker)
    there = [(name, pair) for name in names for pair in _meanings(name, is_marked=len(possible) == 1)]
    exact: set[str] = set()
    close: set[str] = set()  # the right coin, quoted in a different dollar
    for wanted in possible:
        same = [
            (name, pair)
            for name, pair in there
            if (pair.coin, _currency(pair.quote)) == (wanted.coin, _currency(wanted.quote))
            and not (wanted.is_perpetual and _is_spot(name, pair))
        ]
        preferred = (wanted.quote, "", *DOLLARS)
        best = min(same, key=lambda fit: (fit[1].is_perpetual, _place(fit[1].quote, preferred)), default=None)
        if best is None:
            continue
        if not wanted.quote or (best[1].quote or DOLLARS[0]) == wanted.quote:
            exact.add(best[0])
        elif wanted.quote not in CHANCE_QUOTES or known_pair(ticker) == wanted:
            # AR/USDT does not match ARBUSD.
            close.add(best[0])
    fitting = sorted(exact or close)
    if len(fitting) > 1:
        raise BarsError(
            f"ticker {ticker} could be {' or '.join(fitting)}; write it with a separator, such as {fitting[0]}"
        )
    return fitting[0] if fitting else None


def _meanings(name: str, is_marked: bool) -> tuple[Pair, ...]:
    """Return the possible readings of an available name. An ambiguous name has readings only if `is_marked` is True."""
    try:
        return (known,) if (known := known_pair(name)) else pairs_of(name) if is_marked else ()
    except BarsError:
        return ()


def _is_spot(name: str, pair: Pair) -> bool:
    """Return True if a name is that of a spot pair. A dataset's own name does not tell."""
    return bool(pair.quote) and not pair.is_perpetual and (known_pair(name) is None or ticker_of(name) != name)


def _place(quote: str, preferred: Sequence[str]) -> int:
    return preferred.index(quote) if quote in preferred else len(preferred)
