"""Parser of exchange symbols: coin, currency, and whether the symbol is a perpetual contract.

There are three outcomes. An unambiguous symbol has one reading. `ETHFOOBTC` could be a coin or a pair, so it has
several readings and is rejected until it is written with a separator. A future, an option or an inverse contract is
rejected with its kind, because its bars are not those of the coin bought with cash.

A linear perpetual (`BTC/USDT:USDT`) is read as its coin. It is settled in its quote currency, so an account in that
currency earns its price change. The bars do not contain funding payments.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from itertools import chain
from typing import NamedTuple

from market.errors import BarsError


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


DOLLARS = ("USD", "USDT", "USDC", "FDUSD", "BUSD", "TUSD", "PYUSD", "RLUSD", "GUSD")  # in order of preference
SURE_QUOTES = (*DOLLARS, "EUR", "GBP", "JPY", "TRY", "BRL")
# Coin names without a separator may also end with these: MARS, NEURON, WBTC. So the coin before
# them must be a well-known one.
FIATS = _words("""
    AED ARS AUD CAD CHF CLP CNY COP CZK DKK HKD HUF IDR ILS INR KRW KZT MXN NGN NOK NZD PEN PHP PLN RON RUB SAR SEK SGD
    THB TWD UAH VND ZAR
""")
CRYPTO_QUOTES = ("BTC", "ETH", "BNB")  # by decreasing number of pairs
STABLE_COINS = _words("DAI USD1 USDD USDE USDP USDS EURI EURC EURT IDRT")
RARE_QUOTES = (*FIATS, *STABLE_COINS, *CRYPTO_QUOTES, "XBT", "SOL", "TRX", "XRP", "DOGE", "DOT", "OKB", "KCS")
QUOTES = frozenset((*SURE_QUOTES, *RARE_QUOTES))
STABLE_DOLLARS = frozenset(DOLLARS) - {"USD"}
# Quotes that end with USD. DOTUSD ends with TUSD by chance, so a well-known coin must precede them.
CHANCE_QUOTES = ("FDUSD", "BUSD", "TUSD", "PYUSD", "RLUSD", "GUSD")
NO_ENDINGS = ("FDUSD", "PYUSD", "RLUSD")  # hardly any coin name ends with FD, PY or RL
KNOWN_COINS = frozenset(_words("""
    1INCH AAVE ACH ADA AGIX AGLD AKT ALGO ALICE AMP ANKR APE API3 APT ARB ARKM ATOM AUCTION AUDIO AVAX AXS BABYDOGE BAL
    BAND BAT BCH BICO BLUR BNB BNT BONK BSV BTC BTT CAKE CELO CELR CFX CHZ CKB COMP COTI CRO CRV CVC CVX DAI DASH DENT
    DGB DOGE DOT DYDX EGLD EIGEN ENA ENJ ENS EOS ETC ETH ETHFI ETHW FET FIL FLOKI FLOW FLR FTM FTT FXS GALA GLM GMT GMX
    GNO GRT HBAR HNT HOT HYPE ICP ICX IMX INJ IOST IOTA IOTX JASMY JTO JUP KAS KAVA KNC KSM LDO LINK LIT LPT LRC LSK LTC
    LUNA LUNC MAGIC MANA MASK MATIC MINA MKR MNT MOVE MULTI NANO NEAR NEO NEXO NMR OCEAN OGN OMG ONDO ONE ONT ORDI PAXG
    PENDLE PENGU PEPE PERP PNUT POL POLYX PYTH QNT QTUM RARE RAY RDNT REN RENDER REQ RLC RNDR ROSE RPL RSR RUNE RVN SAND
    SEI SHIB SKL SLP SNT SNX SOL SPELL SSV STORJ STRK STX SUI SUPER SUSHI SXP TAO THETA TIA TON TRB TRUMP TRX TWT UMA
    UNI USTC VET VTHO WAVES WAXP WBTC WIF WLD WOO XBT XDG XEC XEM XLM XMR XNO XRP XTZ YFI YGG ZEC ZEN ZIL ZRO ZRX
"""))  # fmt: skip
# Coins whose name ends with that of a currency. The bare name means the coin.
WHOLE_NAMES = frozenset((*SURE_QUOTES, *RARE_QUOTES, *_words("""
    AEUR AGEUR AUSD BFUSD CEUR CUSD HUSD IBEUR LUSD MUSD SDAI SUSD SUSDE SUSDS USDG VEUR XUSD
    BBTC CBBTC CLBTC EBTC FBTC HBTC IBTC KBTC LBTC MBTC OBTC PBTC PUMPBTC RENBTC SBTC SOLVBTC STBTC SWBTC TBTC WBTC XBTC
    ZBTC ENZOBTC
    BETH CBETH CMETH EETH EZETH FRXETH LSETH METH OETH OSETH PUFETH RETH RSETH SETH SFRXETH STETH SWETH WBETH WEETH
    WETH WSTETH ASBNB SLISBNB STBNB WBNB BBSOL BNSOL BSOL JITOSOL JSOL MSOL STSOL WSOL DDOT WDOGE WTRX STRX
    COPEN MARS NEURON OPEN PULSAR QUASAR STARS TRON XSGD XIDR ZCHF GYEN
""")))  # fmt: skip
# A pair on one exchange and a coin on another: UNI in BTC, or Bedrock's uniBTC.
BOTH = frozenset(("UNIBTC", "JUPSOL", "ANKRETH", "ANKRBNB"))
OTHER_NAMES = {"XBT": "BTC", "XXBT": "BTC", "XDG": "DOGE", "XXDG": "DOGE"}
EXCHANGES = frozenset(_words("""
    ALPACA BINANCE BINANCEUS BINGX BITFINEX BITFLYER BITGET BITHUMB BITRUE BITSO BITSTAMP BITTREX BITVAVO BTSE BYBIT
    COINBASE COINEX CRYPTO CRYPTOCOM DERIBIT EXMO GATE GATEIO GEMINI HITBTC HTX HUOBI KRAKEN KUCOIN LBANK MEXC OKCOIN
    OKX PHEMEX POLONIEX PROBIT UPBIT WHITEBIT WOO WOOX X
"""))  # fmt: skip

COLON_PREFIX = re.compile(r"([A-Z0-9]+):([^:]+(?:/[^:]+:.+)?)")
KRAKEN_PAIR = re.compile(r"X(XBT|XDG|ETH|ETC|LTC|XRP|XLM|XMR|ZEC|REP|MLN)(?:Z(USD|EUR|GBP|JPY|CAD|AUD)|X(XBT|ETH))")
BITFINEX_PAIR = re.compile(r"t(?:([A-Z0-9]{3})([A-Z0-9]{3})|([A-Z0-9]+):([A-Z0-9]+))")
VENUE_LETTER = re.compile(r"[a-z]([A-Z0-9]{5,})")
SORTED_PAIR = re.compile(r"(?:[A-Z0-9]+_)?(SPOT|PERP)_(.+)")
OPTION = re.compile(r".*[-_]\d+(?:[.D]\d+)?-[CP]")
DATED = re.compile(r".*(?:[-_:](?:\d{6}|\d{8}|\d{1,2}[A-Z]{3}\d{2,4})|USD[TC]?[FGHJKMNQUVXZ]\d{2,4})")
PERPETUAL = re.compile(r"(.+?)[-_.](?:SWAP|PERP|PERPETUAL|P|UMCBL|DMCBL)")
JOINED_PERPETUAL = re.compile(r"(.+)(?:PERP|(?<=USD)M|(?<=USDT)M|(?<=USDC)M)")
KRAKEN_FUTURES = re.compile(r"(?:PI|FI|PF|FF|PV)_.+")
WORKS = "write it as BTC/USDT"


class Pair(NamedTuple):
    """One reading of a symbol."""

    coin: str
    quote: str  # empty if the symbol does not name it
    is_perpetual: bool = False

    @property
    def text(self) -> str:
        """The pair as `ETH/BTC`. A missing currency is shown as USD, such as `XBTC/USD`."""
        return f"{self.coin}/{self.quote or DOLLARS[0]}"


def read_symbol(symbol: str) -> Pair:
    """Return the pair that an unambiguous symbol means.

    Raises:
        BarsError: the symbol is ambiguous, not a spot pair, or not a symbol. The message is one line and says how to
            write it.
    """
    certain = certain_pair(symbol)
    if certain is None:
        possible = pairs_of(symbol)
        spelled = " or ".join(pair.text for pair in possible)
        raise BarsError(f"{symbol!r} could be a coin or a pair; write {spelled}")
    return certain


@lru_cache(maxsize=65_536)
def pairs_of(symbol: str) -> tuple[Pair, ...]:
    """Return every pair that a symbol may mean. With a separator, there is one. Otherwise the whole name is first.

    Raises:
        BarsError: the text is not a symbol, or no reading is a spot pair.
    """
    text = _plain(symbol)
    name = text.upper()
    if found := BITFINEX_PAIR.fullmatch(text):
        return (_bitfinex(symbol, *(part for part in found.groups() if part)),)
    if (found := VENUE_LETTER.fullmatch(text)) and any(pair.quote for pair in _splits(found[1])):
        raise BarsError(f"{symbol!r} starts with an exchange's prefix letter; {WORKS}")
    name = _without_exchange(name, symbol)
    _refuse_contracts(name, symbol)
    if found := KRAKEN_PAIR.fullmatch(name):
        return (_pair(found[1], found[2] or found[3], symbol),)
    if found := SORTED_PAIR.fullmatch(name):
        return (_marked(found[2], symbol)._replace(is_perpetual=found[1] == "PERP"),)
    if ":" in name:
        return (_settled(name, symbol),)
    if name.endswith("-PERP-INTX"):
        return (_pair(name.removesuffix("-PERP-INTX"), "USDC", symbol, is_perpetual=True),)
    if found := PERPETUAL.fullmatch(name) or (JOINED_PERPETUAL.fullmatch(name) if _is_joined(name) else None):
        return (_perpetual(found[1], symbol),)
    if not name.isalnum():
        return (_marked(name, symbol),)
    return _splits(name)


def certain_pair(symbol: str) -> Pair | None:
    """Return the pair that a symbol means, or None if it is ambiguous.

    Without a separator, USD, USDT and USDC have priority over BUSD, TUSD and GUSD, unless only the latter leave a
    well-known coin: DOTUSD is DOT in USD, and BTCBUSD is BTC in BUSD. FDUSD, PYUSD and RLUSD have priority over USD. If
    coin names also end with a quote, a well-known coin must precede it: ETHBTC is ETH in BTC.
    """
    whole, *splits = pairs_of(symbol)
    if not splits or whole.coin in WHOLE_NAMES:
        return whole
    known = [pair for pair in splits if pair.coin in KNOWN_COINS or pair.coin in WHOLE_NAMES]
    sure = [pair for pair in splits if pair.quote in SURE_QUOTES]
    if sure:
        order = [(pair not in known, pair.quote not in NO_ENDINGS, pair.quote in CHANCE_QUOTES) for pair in sure]
        return sure[order.index(min(order))]
    if whole.coin in BOTH or len(known) > 1:
        return None
    if known:
        return _pair(*known[0][:2], symbol)
    return whole if whole.coin in KNOWN_COINS else None


def known_pair(symbol: str) -> Pair | None:
    """Return the pair that a symbol means, or None if it is ambiguous or cannot be read."""
    try:
        return certain_pair(symbol)
    except BarsError:
        return None


def _plain(symbol: str) -> str:
    """Return the symbol with full-width letters converted to ASCII. Letters that only look Latin raise an error."""
    text = unicodedata.normalize("NFKC", symbol).strip()
    strange = next((letter for letter in text if not " " <= letter <= "~"), None)
    if strange is not None:
        raise BarsError(
            f"{symbol!a} contains the character U+{ord(strange):04X}, which is not an ASCII letter; type it again"
        )
    if not text:
        raise BarsError(f"{symbol!r} is not the name of a coin; expected letters and digits, such as BTC or BTC/USD")
    return text


def _without_exchange(name: str, symbol: str) -> str:
    """Remove an exchange: `BTCUSDT` for `BINANCE:BTCUSDT` and `BTCUSDT.BINANCE`. `BTC:USD` becomes `BTC/USD`."""
    stem, _, venue = name.rpartition(".")
    name = stem if stem and venue in EXCHANGES else name
    found = COLON_PREFIX.fullmatch(name)
    if found is None:
        return name
    if found[1] in EXCHANGES:
        return found[2]
    if found[2] in QUOTES:
        return f"{found[1]}/{found[2]}"
    raise BarsError(f"{symbol!r}: {found[1]} is not a known exchange of spot pairs; {WORKS}")


def _refuse_contracts(name: str, symbol: str) -> None:
    """Raise BarsError for options, expiring futures and Kraken futures."""
    kinds = {OPTION: "an option", KRAKEN_FUTURES: "a contract of Kraken's futures", DATED: "a future that expires"}
    for pattern, kind in kinds.items():
        if pattern.fullmatch(name):
            raise BarsError(
                f"{symbol!r} is {kind}, which cannot be traded as spot; use bars of a pair such as BTC/USDT"
            )


def _settled(name: str, symbol: str) -> Pair:
    """Parse ccxt's `BTC/USDT:USDT`. The contract is linear if it is settled in its own quote currency."""
    body, _, settlement = name.partition(":")
    pair = _marked(body, symbol)
    if settlement == pair.quote or {settlement, pair.quote} <= set(DOLLARS):
        return pair._replace(is_perpetual=True)
    raise BarsError(_inverse(symbol))


def _perpetual(body: str, symbol: str) -> Pair:
    """Return the pair before a suffix such as SWAP.

    With plain USD the contract is settled in its coin, or the settlement is unknown. Both raise an error.
    """
    pair = _marked(body, symbol) if not body.isalnum() else read_symbol(body)
    if pair.quote not in STABLE_DOLLARS:
        raise BarsError(_inverse(symbol))
    return pair._replace(is_perpetual=True)


def _inverse(symbol: str) -> str:
    return (
        f"{symbol!r} is a contract settled in its coin (inverse) or with unknown settlement, which cannot be "
        "traded as spot; write BTC/USDT:USDT if it is linear"
    )


def _is_joined(name: str) -> bool:
    """Return True if a name without separator is a pair plus PERP or M, or a well-known coin plus PERP."""
    found = JOINED_PERPETUAL.fullmatch(name) if name.isalnum() and name not in KNOWN_COINS else None
    if found is None:
        return False
    pair = known_pair(found[1])
    return pair is not None and (bool(pair.quote) or (pair.coin in KNOWN_COINS and name.endswith("PERP")))


def _bitfinex(symbol: str, coin: str, quote: str) -> Pair:
    """Parse `tBTCUSD` or `tDUSK:USD`. On Bitfinex UST is USDT, UDC is USDC, and F0 marks a perpetual."""
    is_perpetual = quote.endswith("F0") and coin.endswith("F0")
    codes = {"UST": "USDT", "UDC": "USDC"}
    coin, quote = (code.removesuffix("F0") if is_perpetual else code for code in (coin, quote))
    coin, quote = codes.get(coin, coin), codes.get(quote, quote)
    if quote not in QUOTES or (is_perpetual and quote not in STABLE_DOLLARS):
        raise BarsError(f"{symbol!r}: {quote} is not a known currency; {WORKS}")
    return _pair(coin, quote, symbol, is_perpetual)


def _marked(name: str, symbol: str) -> Pair:
    """Parse a name with one separator: a slash, a hyphen, an underscore or a space."""
    coin, *others = re.split(r"\s*[/_-]\s*|\s+", name)
    if len(others) != 1 or not coin.isalnum() or not others[0].isalnum():
        raise BarsError(f"{symbol!r} is not the name of a coin; expected letters and digits, such as BTC or BTC/USD")
    quote = others[0].removeprefix("Z") if others[0][1:] in QUOTES else others[0]  # Kraken's ZUSD
    if quote not in QUOTES and "/" not in name:
        raise BarsError(f"{symbol!r}: {quote} is not a known currency; write {coin}/{quote} if it is one")
    return _pair(coin, quote, symbol)


def _pair(coin: str, quote: str, symbol: str, is_perpetual: bool = False) -> Pair:
    """Return a pair with its usual names. A pair that is written with its currency first raises an error."""
    coin, quote = OTHER_NAMES.get(coin, coin), OTHER_NAMES.get(quote, quote)
    is_reversed = _rank(coin) < _rank(quote) and (quote in KNOWN_COINS or quote in QUOTES)
    if is_reversed or (coin == quote and quote not in DOLLARS):
        raise BarsError(f"{symbol!r} has the currency {coin} first; write {quote}/{coin}")
    return Pair(coin, quote, is_perpetual)


def _rank(name: str) -> int:
    """Return the rank of a currency: money, then BTC, ETH, BNB, then other coins. The quote has the lower rank."""
    ranks = {name: 1 + place for place, name in enumerate(CRYPTO_QUOTES)}
    is_money = name in SURE_QUOTES or name in FIATS or name in STABLE_COINS
    return 0 if is_money else ranks.get(name, 1 + len(ranks))


def _splits(name: str) -> tuple[Pair, ...]:
    """Return the whole name as a coin, followed by its splits before each currency with which it ends."""
    whole = OTHER_NAMES.get(name, name)
    is_coin = name in WHOLE_NAMES or (name in KNOWN_COINS and name not in BOTH)
    quotes = SURE_QUOTES if is_coin else chain(SURE_QUOTES, RARE_QUOTES)
    cuts = [(name.removesuffix(quote), quote) for quote in quotes if name.endswith(quote)]
    # USDTUSD is tether in dollars, not dollars in TUSD.
    found = [
        (OTHER_NAMES.get(coin, coin), OTHER_NAMES.get(quote, quote)) for coin, quote in cuts if coin not in ("", "USD")
    ]
    return (Pair(whole, ""), *(Pair(coin, quote) for coin, quote in found))
