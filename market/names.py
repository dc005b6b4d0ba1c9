"""Names of coins and of timeframes, and the one way to compare them.

`BTC`, `btc`, `BTC/USD`, `BTC/USDT`, `BTC-USD`, `BTC_USDT` and `BTCUSD` are the same coin; `BTC/EUR` is not, because a
dataset has one cash currency. Dollar stablecoins count as US dollars. `market.symbols` reads exchanges' spellings.

A name without a mark can be read in several ways: `ARBUSD` is ARB in USD or AR in BUSD. Where symbols are at hand it is
matched against them, and refused if two coins fit. Where none are, `split_symbol` decides. `CRVUSD` is the coin CRV in
dollars, so the coin of that name is written `CRVUSD/USD`, in a dataset too: a dataset's name is never split again.
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
    """Seconds per bar of a timeframe such as `5m`."""
    if timeframe not in TIMEFRAME_SECONDS:
        raise BarsError(f"unknown timeframe {timeframe!r}; choose one of {', '.join(TIMEFRAME_SECONDS)}")
    return TIMEFRAME_SECONDS[timeframe]


def counted(n: int, noun: str) -> str:
    """`1 segment`, `2 segments`."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def timeframe_name(bar_seconds: int) -> str:
    """`5m` for 300; a length without a name of its own is written in seconds, as `90s`."""
    names = {seconds: name for name, seconds in TIMEFRAME_SECONDS.items()}
    return names.get(bar_seconds, f"{bar_seconds}s")


def split_symbol(symbol: str) -> tuple[str, str]:
    """(coin, quote) in capitals, `("BTC", "USDT")` for `btc/usdt` or `BTCUSDT`; the quote is empty when not given.

    Raises:
        BarsError: the symbol may mean several pairs, or none that can be traded as spot.
    """
    pair = read_symbol(symbol)
    return pair.coin, pair.quote


def pair_of(ticker: str, mark: str, dollar: str) -> str:
    """The pair that a source sells a ticker as, `BTC/USD`; no quote, USD and USDT become the source's own `dollar`."""
    pair = read_symbol(ticker)
    if pair.is_perpetual:
        raise BarsError(f"{ticker!r} is a perpetual contract, and spot bars are downloaded; write {pair.text}")
    return f"{pair.coin}{mark}{dollar if pair.quote in ('', 'USD', 'USDT') else pair.quote}"


def ticker_of(symbol: str) -> str:
    """The dataset's name of a symbol: the coin alone in dollars (`BTC`), the pair in another currency (`BTC/EUR`).

    A coin whose name alone would be read as a pair, or not at all, keeps its dollars (`CRVUSD/USD`), so a dataset's
    name names itself.
    """
    pair = read_symbol(symbol)
    if pair.quote and pair.quote not in DOLLARS:
        return f"{pair.coin}/{pair.quote}"
    return pair.coin if known_pair(pair.coin) == Pair(pair.coin, "") else f"{pair.coin}/{DOLLARS[0]}"


def ticker_for(wanted: str, symbol: str) -> str:
    """The dataset's name of a symbol that was matched to a wanted ticker, which decides where the symbol does not."""
    return ticker_of(wanted if known_pair(symbol) is None and symbol != wanted else symbol)


def currency_of(symbol: str) -> str:
    """The cash currency of a symbol; every dollar stablecoin and a bare coin name count as USD."""
    return _currency(read_symbol(symbol).quote)


def known_currency(ticker: str) -> str | None:
    """The cash currency of any name; None where it names none that is known."""
    pair = known_pair(ticker)
    return None if pair is None or (pair.quote and pair.quote not in QUOTES) else _currency(pair.quote)


def is_readable(ticker: str) -> bool:
    """Whether a name can be that of a coin or of a pair that is traded as spot."""
    try:
        return bool(pairs_of(ticker))
    except BarsError:
        return False


def currency_fault(currencies: Mapping[str, str | None]) -> str | None:
    """Describe tickers that cannot share an account, by their currencies; None where all known ones are the same."""
    coins = {currency: ticker for ticker, currency in [*currencies.items()][::-1] if currency}
    if len(coins) < 2:
        return None
    found = ", ".join(f"{ticker} is in {currency}" for currency, ticker in sorted(coins.items()))
    mixed = f"tickers {', '.join(currencies)} mix the currencies {', '.join(sorted(coins))}"
    return f"{mixed} ({found}); an account has one, so choose one"


def _currency(quote: str) -> str:
    return quote if quote and quote not in DOLLARS else DOLLARS[0]


def match_symbols(wanted: Sequence[str], available: Iterable[str]) -> tuple[str, ...]:
    """The available symbol for each wanted ticker, in the order wanted.

    An exact match wins, then the same coin in the first of USD, USDT, USDC, ... that is there. A symbol that may be a
    coin or a pair is taken only for a ticker with a mark.

    Raises:
        BarsError: unknown, ambiguous or repeated tickers, or several cash currencies; unknown ones are named with what
            there is.
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
        raise BarsError(f"ticker {', '.join(repeated)} is asked for twice in {', '.join(wanted)}; name each coin once")
    if fault := currency_fault({symbol: known_currency(symbol) for symbol in symbols}):
        raise BarsError(fault)
    return symbols


def _unreadable(unknown: Sequence[str], names: Sequence[str]) -> str:
    """Why the first name that begins with an unknown ticker's coin cannot be taken for it."""
    coins = tuple(pair.coin for ticker in unknown if (pair := known_pair(ticker)))
    for name in sorted(names):
        if coins and name.upper().startswith(coins) and known_pair(name) is None:
            try:
                read_symbol(name)
            except BarsError as error:
                return f"; {error}"
    return ""


def match_symbol(ticker: str, names: Sequence[str]) -> str | None:
    """The name among `names` that a ticker means, or None.

    Raises:
        BarsError: the ticker cannot be read, or has no mark and two coins among the names fit it equally well.
    """
    if ticker in names:
        return ticker
    possible = pairs_of(ticker)
    there = [(name, pair) for name in names for pair in _meanings(name, is_marked=len(possible) == 1)]
    exact: set[str] = set()
    close: set[str] = set()  # the right coin in another dollar
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
            # AR/USDT is no answer to ARBUSD.
            close.add(best[0])
    fitting = sorted(exact or close)
    if len(fitting) > 1:
        raise BarsError(f"ticker {ticker} may mean {' or '.join(fitting)}; write it with a mark, as {fitting[0]}")
    return fitting[0] if fitting else None


def _meanings(name: str, is_marked: bool) -> tuple[Pair, ...]:
    """What an available name may mean; one that may mean several things does so only to a ticker with a mark."""
    try:
        return (known,) if (known := known_pair(name)) else pairs_of(name) if is_marked else ()
    except BarsError:
        return ()


def _is_spot(name: str, pair: Pair) -> bool:
    """Whether a name is that of a spot pair; a dataset's own name does not say."""
    return bool(pair.quote) and not pair.is_perpetual and (known_pair(name) is None or ticker_of(name) != name)


def _place(quote: str, preferred: Sequence[str]) -> int:
    return preferred.index(quote) if quote in preferred else len(preferred)
