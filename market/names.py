"""Names of coins and of timeframes, and the one way to compare them.

`BTC`, `btc`, `BTC/USD`, `BTC/USDT`, `BTC-USD`, `BTC_USDT` and `BTCUSD` are the same coin; `BTC/EUR` is not, because a
dataset has one cash currency. Dollar stablecoins count as US dollars.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from market.errors import BarsError

DEFAULT_TICKERS = ("AAVE", "AVAX", "BTC", "LINK", "ETH", "LTC", "UNI")
DOLLARS = ("USD", "USDT", "USDC", "FDUSD", "BUSD", "TUSD")  # in order of preference
QUOTES = (*DOLLARS, "EUR", "GBP", "JPY", "TRY", "BRL")

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


def timeframe_name(bar_seconds: int) -> str:
    """`5m` for 300; a length without a name of its own is written in seconds, as `90s`."""
    names = {seconds: name for name, seconds in TIMEFRAME_SECONDS.items()}
    return names.get(bar_seconds, f"{bar_seconds}s")


def split_symbol(symbol: str) -> tuple[str, str]:
    """(coin, quote) in capitals, `("BTC", "USDT")` for `btc/usdt` or `BTCUSDT`; the quote is empty when not given."""
    name = symbol.strip().upper()
    for mark in "/-_":
        coin, found, quote = name.partition(mark)
        if found:
            return coin, quote
    if name in QUOTES:
        return name, ""
    for quote in sorted(QUOTES, key=len, reverse=True):
        # USDTUSD is tether in dollars, not dollars in TUSD.
        if name.endswith(quote) and name.removesuffix(quote) != "USD":
            return name.removesuffix(quote), quote
    return name, ""


def pair_of(ticker: str, mark: str, dollar: str) -> str:
    """The pair that a source sells a ticker as, `BTC/USD`; no quote, USD and USDT become the source's own `dollar`."""
    coin, quote = split_symbol(ticker)
    # A name goes into addresses and file names.
    if not coin.isalnum() or not (quote or dollar).isalnum():
        raise BarsError(f"{ticker!r} is not the name of a coin; expected letters and digits, as BTC or BTC/USD")
    return f"{coin}{mark}{dollar if quote in ('', 'USD', 'USDT') else quote}"


def ticker_of(symbol: str) -> str:
    """The dataset's name of a symbol: the coin alone in dollars (`BTC`), the pair in another currency (`BTC/EUR`)."""
    coin, quote = split_symbol(symbol)
    return f"{coin}/{quote}" if quote and quote not in DOLLARS else coin


def currency_of(symbol: str) -> str:
    """The cash currency of a symbol; every dollar stablecoin and a bare coin name count as USD."""
    quote = split_symbol(symbol)[1]
    return quote if quote and quote not in DOLLARS else "USD"


def match_symbols(wanted: Sequence[str], available: Iterable[str]) -> tuple[str, ...]:
    """The available symbol for each wanted ticker, in the order wanted.

    An exact match wins, then the same coin in the first of USD, USDT, USDC, ... that is there.

    Raises:
        BarsError: unknown or repeated tickers, or several cash currencies; unknown ones are named with what there is.
    """
    names = tuple(available)
    found = [_match_one(ticker, names) for ticker in wanted]
    unknown = [ticker for ticker, symbol in zip(wanted, found, strict=True) if symbol is None]
    if unknown:
        raise BarsError(f"unknown ticker {', '.join(unknown)}; available: {', '.join(sorted(names)) or 'none'}")
    symbols = tuple(symbol for symbol in found if symbol is not None)
    repeated = sorted({s for s in symbols if symbols.count(s) > 1})
    if repeated:
        raise BarsError(f"ticker {', '.join(repeated)} is asked for twice in {', '.join(wanted)}; name each coin once")
    currencies = sorted({currency_of(symbol) for symbol in symbols})
    if len(currencies) > 1:
        raise BarsError(f"tickers {', '.join(symbols)} mix the currencies {', '.join(currencies)}; choose one")
    return symbols


def _match_one(ticker: str, names: Sequence[str]) -> str | None:
    if ticker in names:
        return ticker
    same = [name for name in names if ticker_of(name) == ticker_of(ticker)]
    preferred = [split_symbol(ticker)[1], "", *DOLLARS]

    def place(name: str) -> int:
        quote = split_symbol(name)[1]
        return preferred.index(quote) if quote in preferred else len(preferred)

    return min(same, key=place, default=None)
