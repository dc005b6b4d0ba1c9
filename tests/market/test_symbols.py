"""Exchanges' spellings of a pair: each is read as the right coin in the right currency, or refused by what it is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market.errors import BarsError
from market.names import currency_of, match_symbols, ticker_of
from market.symbols import KNOWN_COINS, QUOTES, SURE_QUOTES, WHOLE_NAMES, Pair, known_pair, read_symbol

READ = """
    ccxt            BTC/USDT BTC/USDT   BTC/EUR BTC/EUR   ETH/BTC ETH/BTC   1INCH/USD 1INCH/USD
    ccxt-linear     BTC/USDT:USDT BTC/USDT:P   BTC/USDC:USDC BTC/USDC:P   BTC/USD:USD BTC/USD:P
    ccxt-linear     BTC/USD:USDC BTC/USD:P   1000PEPE/USDT:USDT 1000PEPE/USDT:P
    tradingview     BINANCE:BTCUSDT BTC/USDT   COINBASE:BTCUSD BTC/USD   KRAKEN:XBTUSD BTC/USD
    tradingview     BYBIT:BTCUSDT.P BTC/USDT:P
    tradingview     BINANCE:ETHBTC ETH/BTC   BITSTAMP:BTCEUR BTC/EUR   OKX:BTCUSDT.P BTC/USDT:P   UPBIT:BTCKRW BTC/KRW
    binance         BTCUSDT BTC/USDT   ETHBTC ETH/BTC   BNBETH BNB/ETH   BTCTRY BTC/TRY
    binance         USDCUSDT USDC/USDT   BTCDAI BTC/DAI
    binance         1000SHIBUSDT 1000SHIB/USDT   BTCUSDTPERP BTC/USDT:P   BTCPYUSD BTC/PYUSD   EURUSDT EUR/USDT
    coinbase        BTC-USD BTC/USD   COINBASE:BTC-USD BTC/USD   CBETH-USD CBETH/USD   BTC-PERP-INTX BTC/USDC:P
    kraken          XXBTZUSD BTC/USD   XBT/USD BTC/USD   XBTUSD BTC/USD   XETHZEUR ETH/EUR
    kraken          XETHXXBT ETH/BTC   XDGUSD DOGE/USD
    kraken          XXDGZUSD DOGE/USD   XBT/EUR BTC/EUR   XBT/ZUSD BTC/USD   SOLUSD SOL/USD   XXRPZCAD XRP/CAD
    bitfinex        tBTCUSD BTC/USD   tBTCUST BTC/USDT   tETHBTC ETH/BTC   tDUSK:USD DUSK/USD   tBTCF0:USTF0 BTC/USDT:P
    okx             BTC-USDT BTC/USDT   BTC-USDT-SWAP BTC/USDT:P   BTC-USDC-SWAP BTC/USDC:P
    kucoin          BTC-USDT BTC/USDT   XBTUSDTM BTC/USDT:P   ETHUSDTM ETH/USDT:P   XBTUSDCM BTC/USDC:P
    deribit         BTC_USDC-PERPETUAL BTC/USDC:P   DERIBIT:BTC_USDC BTC/USDC
    bitget          BTCUSDT_UMCBL BTC/USDT:P   BTCUSDT BTC/USDT
    others          btcusdt BTC/USDT   BTC_USDT BTC/USDT   btc_idr BTC/IDR
    others          X:BTCUSD BTC/USD   btcinr BTC/INR   BTCAUD BTC/AUD
    others          BTC-MXN BTC/MXN   BTC:USD BTC/USD   BTCUSDT.BINANCE BTC/USDT   BINANCE_SPOT_BTC_USDT BTC/USDT
    others          SPOT_BTC_USDT BTC/USDT   PERP_ETH_USDT ETH/USDT:P   BTCUSDT-PERP.BINANCE BTC/USDT:P
    alone           BTC BTC/   btc BTC/   WBTC WBTC/   wBTC WBTC/   STETH STETH/   stETH STETH/
    alone           CBETH CBETH/   WBETH WBETH/
    alone           RETH RETH/   TBTC TBTC/   tBTC TBTC/   CBBTC CBBTC/   cbBTC CBBTC/   PERP PERP/
    alone           TRX TRX/   USDT USDT/   PYUSD PYUSD/
    alone           MARS MARS/   OPEN OPEN/   TRON TRON/   SOL SOL/   EUR EUR/   BNSOL BNSOL/   PAXG PAXG/   S S/   W W/
"""
WORDS = [word for line in READ.strip().splitlines() for word in line.split()[1:]]
CASES = list(zip(WORDS[::2], WORDS[1::2], strict=True))
# The last one is written in full-width letters.
BLANKS = [
    ("BTC USDT", "BTC/USDT"),
    (" btc / eur ", "BTC/EUR"),
    ("BTC\u00a0USD", "BTC/USD"),
    ("\uff22\uff34\uff23/USD", "BTC/USD"),
]

REFUSED = {
    "a future that expires": "BTC/USDT:USDT-240628 BTCUSDT_240628 BTC-USD-240628 BTC-28JUN24 BTCUSD_240628 "
    "BTCUSDTU2024 BTC-26JUL24 BTC/USD:BTC-240628",
    "an option": "BTC/USD:BTC-240628-50000-C BTC-28JUN24-50000-P BTC-USD-240628-50000-C",
    "inverse": "BTC/USD:BTC BTC-USD-SWAP BTCUSD_PERP BTC-PERPETUAL BTCUSD.P XBTUSDM BTC-PERP "
    "BTCPERP ETH/USD:BTC "
    "BTCUSD_DMCBL BYBIT:BTCUSD.P",
    "has the currency": "KRW-BTC BTC-ETH BTC_ETH USDT_BTC USDT-BTC BTCETH USDTBTC",
    "could be a coin or a pair": "XYZBTC METISBTC UNIBTC JUPSOL XYZAUD BINANCE:XYZETH",
    "is not a known exchange": "BITMEX:XBTUSD CME:BTC1! FOO:BTCUSDT BTC:X",
    "is not a known currency": "BTC-XYZ BTC_FOO tBTCFOO",
    "exchange's prefix letter": "sBTCUSDT tBTCUSDT",
    "Kraken's futures": "PF_XBTUSD PI_XBTUSD FI_XBTUSD_240628",
    "not an ASCII letter": "\u0412TC/USD BT\u0421USDT BTC\u200b/USD BTC\u2212USD",
    "is not the name of a coin": "BTC.D USDC.E BTC/ /USD BTC/USD/EUR @107 BTC1! FX_BTC_JPY",
}  # fmt: skip
REFUSED_CASES = [(symbol, what) for what, symbols in REFUSED.items() for symbol in symbols.split(" ")]


@pytest.mark.parametrize(("symbol", "pair"), [*CASES, *BLANKS])
def test_an_exchanges_spelling_is_read(symbol, pair):
    coin, _, rest = pair.partition("/")
    quote, _, perpetual = rest.partition(":")
    assert read_symbol(symbol) == Pair(coin, quote, is_perpetual=perpetual == "P")


@pytest.mark.parametrize(("symbol", "what"), REFUSED_CASES)
def test_what_cannot_be_read_or_traded_as_spot_is_refused_by_what_it_is(symbol, what):
    with pytest.raises(BarsError, match=what) as caught:
        read_symbol(symbol)
    assert "\n" not in str(caught.value)


def test_a_pair_whose_quote_is_not_certain_is_refused_with_the_spellings_that_work():
    with pytest.raises(BarsError, match="write METISBTC/USD or METIS/BTC"):
        ticker_of("METISBTC")
    assert ticker_of("METIS/BTC") == "METIS/BTC"
    assert ticker_of("METISBTC/USD") == "METISBTC/USD"
    assert match_symbols(["METIS/BTC"], ["METISBTC"]) == ("METISBTC",)
    assert match_symbols(["METISBTC/USD"], ["METISBTC"]) == ("METISBTC",)


STYLES = {
    "{}/{}": True, "{}-{}": True, "{}_{}": True, "{} {}": True, "BINANCE:{}/{}": True, "KRAKEN:{}-{}": True,
    "{}_{}.OKX": True, "{}{}": False, "COINBASE:{}{}": False, "{}{}.BYBIT": False, "SPOT_{}_{}": True,
}  # fmt: skip
each_style = st.sampled_from([*STYLES])
each_quote = st.sampled_from(sorted(QUOTES - {"XBT"}))


@given(st.sampled_from(sorted(KNOWN_COINS - {"XBT", "XDG"})), each_quote, each_style, st.booleans())
def test_a_well_known_coin_is_read_as_that_pair_in_every_style_or_refused(coin, quote, style, is_lower):
    symbol = style.format(coin, quote)
    pair = known_pair(symbol.lower() if is_lower else symbol)
    assert pair in (None, Pair(coin, quote)) or symbol in WHOLE_NAMES
    if quote in SURE_QUOTES and coin not in QUOTES and style == "{}{}" and quote not in ("FDUSD", "BUSD", "TUSD"):
        assert pair == Pair(coin, quote)


@given(st.text("ABCDEFTUXY12", min_size=1, max_size=7), each_quote, each_style)
def test_no_coins_currency_is_misread(coin, quote, style):
    symbol = style.format(coin, quote)
    pair = known_pair(symbol)
    if pair is not None and f"{coin}{quote}" not in WHOLE_NAMES:
        assert currency_of(symbol) == currency_of(f"FOO/{quote}"), symbol


@given(st.text("ABCTUSDE:/-_. 2F0Pt", max_size=14))
def test_any_text_is_read_as_a_name_that_names_itself_or_refused(text):
    try:
        name = ticker_of(text)
    except BarsError:
        return
    assert ticker_of(name) == name
    assert currency_of(name) == currency_of(text)
