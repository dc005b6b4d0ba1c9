"""Names of coins and of timeframes, and the one way to compare them.

`BTC`, `btc`, `BTC/USD`, `BTC/USDT`, `BTC-USD`, `BTC_USDT` and `BTCUSD` are the same coin; `BTC/EUR` is not, because a
dataset has one cash currency. Dollar stablecoins count as US dollars.

A name without a mark can be read in several ways: `ARBUSD` is ARB in USD or AR in BUSD. Where symbols are at hand it is
matched against them, and refused if two coins fit. Where none are, `split_symbol` decides. `CRVUSD` is the coin CRV in
dollars, so the coin of that name is written `CRVUSD/USD`, in a dataset too: a dataset's name is never split again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from market.errors import BarsError

DEFAULT_TICKERS = ("AAVE", "AVAX", "BTC", "LINK", "ETH", "LTC", "UNI")
DOLLARS = ("USD", "USDT", "USDC", "FDUSD", "BUSD", "TUSD")  # in order of preference
QUOTES = (*DOLLARS, "EUR", "GBP", "JPY", "TRY", "BRL")
MARKS = "/-_"
# Coins whose own name ends with that of a currency, and that are meant when it stands alone.
WHOLE_NAMES = frozenset(
    (*QUOTES, "AEUR", "AUSD", "BFUSD", "GUSD", "HUSD", "LUSD", "MUSD", "PYUSD", "RLUSD", "SUSD", "XUSD")
)
# Quotes that themselves end with USD; DOTUSD ends with TUSD by chance. Read so only with one of these coins before it.
CHANCE_QUOTES = ("FDUSD", "BUSD", "TUSD")
KNOWN_COINS = """
    AAVE ADA ALGO ARB ATOM AVAX BCH BNB BTC DOGE DOT EOS ETC ETH FIL FTM GALA ICP LINK LTC MANA MATIC NEAR PEPE SAND
    SHIB SOL SUI TRX UNI WBTC WLD XLM XRP
"""
COINS_OF_CHANCE_QUOTES = frozenset(KNOWN_COINS.split())

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

    Without a mark USD, USDT and USDC win over FDUSD, BUSD and TUSD, unless only those leave a well-known coin: DOTUSD
    is DOT in USD, BTCBUSD is BTC in BUSD.
    """
    name, *others = readings(symbol)
    if name[0] in WHOLE_NAMES or not others:
        return name
    known = {*COINS_OF_CHANCE_QUOTES, *WHOLE_NAMES}
    plain = [reading for reading in others if reading[1] not in CHANCE_QUOTES]
    by_chance = [reading for reading in others if reading[1] in CHANCE_QUOTES and reading[0] in known]
    return next((reading for reading in plain if reading[0] in known), None) or [*by_chance, *plain, *others][0]


def readings(symbol: str) -> tuple[tuple[str, str], ...]:
    """Every (coin, quote) a symbol may mean: one where it has a mark, else the whole name first, then its splits."""
    name = symbol.strip().upper()
    for mark in MARKS:
        coin, found, quote = name.partition(mark)
        if found:
            return ((coin.strip(), quote.strip()),)
    splits = [(name.removesuffix(quote), quote) for quote in QUOTES if name.endswith(quote)]
    # USDTUSD is tether in dollars, not dollars in TUSD.
    return ((name, ""), *((coin, quote) for coin, quote in splits if coin not in ("", "USD")))


def pair_of(ticker: str, mark: str, dollar: str) -> str:
    """The pair that a source sells a ticker as, `BTC/USD`; no quote, USD and USDT become the source's own `dollar`."""
    coin, quote = split_symbol(ticker)
    # A name goes into addresses and file names.
    if not coin.isalnum() or not (quote or dollar).isalnum():
        raise BarsError(f"{ticker!r} is not the name of a coin; expected letters and digits, as BTC or BTC/USD")
    return f"{coin}{mark}{dollar if quote in ('', 'USD', 'USDT') else quote}"


def ticker_of(symbol: str) -> str:
    """The dataset's name of a symbol: the coin alone in dollars (`BTC`), the pair in another currency (`BTC/EUR`).

    A coin whose name alone would be read as a pair keeps its dollars (`CRVUSD/USD`), so a dataset's name names itself.
    """
    coin, quote = split_symbol(symbol)
    if quote and quote not in DOLLARS:
        return f"{coin}/{quote}"
    return coin if split_symbol(coin) == (coin, "") else f"{coin}/{DOLLARS[0]}"


def currency_of(symbol: str) -> str:
    """The cash currency of a symbol; every dollar stablecoin and a bare coin name count as USD."""
    return _currency(split_symbol(symbol)[1])


def _currency(quote: str) -> str:
    return quote if quote and quote not in DOLLARS else DOLLARS[0]


def match_symbols(wanted: Sequence[str], available: Iterable[str]) -> tuple[str, ...]:
    """The available symbol for each wanted ticker, in the order wanted.

    An exact match wins, then the same coin in the first of USD, USDT, USDC, ... that is there.

    Raises:
        BarsError: unknown, ambiguous or repeated tickers, or several cash currencies; unknown ones are named with what
            there is.
    """
    names = tuple(available)
    found = [match_symbol(ticker, names) for ticker in wanted]
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


def match_symbol(ticker: str, names: Sequence[str]) -> str | None:
    """The name among `names` that a ticker means, or None.

    Raises:
        BarsError: the ticker has no mark, and two coins among the names fit it equally well.
    """
    if ticker in names:
        return ticker
    there = {name: split_symbol(name) for name in names}
    exact: set[str] = set()
    close: set[str] = set()  # the right coin in another dollar
    for coin, quote in readings(ticker):
        same = [name for name in names if (there[name][0], _currency(there[name][1])) == (coin, _currency(quote))]
        best = min(same, key=lambda name: _place(there[name][1], (quote, "", *DOLLARS)), default=None)
        if best is None:
            continue
        if not quote or (there[best][1] or DOLLARS[0]) == quote:
            exact.add(best)
        elif quote not in CHANCE_QUOTES or split_symbol(ticker) == (coin, quote):
            # AR/USDT is no answer to ARBUSD.
            close.add(best)
    fitting = sorted(exact or close)
    if len(fitting) > 1:
        raise BarsError(f"ticker {ticker} may mean {' or '.join(fitting)}; write it with a mark, as {fitting[0]}")
    return fitting[0] if fitting else None


def _place(quote: str, preferred: Sequence[str]) -> int:
    return preferred.index(quote) if quote in preferred else len(preferred)
