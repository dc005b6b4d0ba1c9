import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from market.errors import BarsError
from market.names import (
    WHOLE_NAMES,
    currency_of,
    match_symbols,
    pair_of,
    split_symbol,
    ticker_of,
    timeframe_name,
    timeframe_seconds,
)
from market.symbols import known_pair

COINS = """
    1000PEPE 1INCH AAVE ACH ADA AEUR AGLD ALGO ALICE ANKR APE APT AR ARB ATOM AUSD AVAX AXS BAT BCH BNB BTC BUSD
    CAKE CHZ COMP CRV CRVUSD DAI DASH DOGE DOT EGLD ENA ENJ ENS EOS ETC ETH FDUSD FET FIL FLOKI FTM FTT GALA GRT
    GUSD HBAR ICP IMX INJ JASMY JUP KAVA KSM LDO LINK LRC LTC LUNC MANA MASK MATIC MKR NEAR NEO OP PEPE POL PYTH
    PYUSD QNT QTUM RENDER RLUSD RUNE SAND SEI SHIB SNT SNX SOL STRK STUSD STX SUI SUSD SUSHI SYRUPUSD TAO THETA
    TIA TRUMP TRX TUSD TWT UNI USDC USDG USDT VET WBT WIF WLD XLM XRP XTZ XUSD YFI ZEC ZRX
"""
LISTED = COINS.split()
IN_DOLLARS = [coin for coin in LISTED if f"{coin}USD" not in LISTED]


@pytest.mark.parametrize(
    ("symbol", "coin", "quote"),
    [
        ("BTC", "BTC", ""),
        ("btc/usdt", "BTC", "USDT"),
        ("BTC-USD", "BTC", "USD"),
        ("BTC_EUR", "BTC", "EUR"),
        ("BTCUSD", "BTC", "USD"),
        ("BTCUSDT", "BTC", "USDT"),
        ("USDT", "USDT", ""),
        ("USDTUSD", "USDT", "USD"),
        ("1INCHUSDC", "1INCH", "USDC"),
        ("1000PEPEUSDT", "1000PEPE", "USDT"),
        ("ETHBTC", "ETH", "BTC"),
        ("USDCUSDT", "USDC", "USDT"),
        ("TUSDUSDT", "TUSD", "USDT"),
        ("BTCBUSD", "BTC", "BUSD"),
        ("BTCFDUSD", "BTC", "FDUSD"),
        ("ETHTUSD", "ETH", "TUSD"),
        ("TUSDBUSD", "TUSD", "BUSD"),
        ("ARBUSD", "ARB", "USD"),
        ("ARBBUSD", "ARB", "BUSD"),
        ("STUSD", "ST", "USD"),
        ("PYUSD", "PYUSD", ""),
        ("PYUSDUSD", "PYUSD", "USD"),
        ("CRVUSD", "CRV", "USD"),
        ("CRVUSD/USD", "CRVUSD", "USD"),
        ("BTC / EUR", "BTC", "EUR"),
    ],
)
def test_a_symbol_is_split_into_coin_and_quote(symbol, coin, quote):
    assert split_symbol(symbol) == (coin, quote)


def test_dollar_names_are_one_coin_and_other_currencies_are_not():
    assert {ticker_of(name) for name in ("BTC", "BTC/USD", "BTCUSDT", "btc-usdc")} == {"BTC"}
    assert ticker_of("BTC/EUR") == "BTC/EUR"
    assert currency_of("BTC/EUR") == "EUR"
    assert currency_of("BTC") == "USD"


@pytest.mark.parametrize("coin", LISTED)
def test_a_coin_of_a_venue_keeps_its_name_in_every_form(coin):
    name = ticker_of(f"{coin}/USD")
    assert name in (coin, f"{coin}/USD")
    assert {ticker_of(f"{coin}{mark}{dollar}") for mark in "/-_" for dollar in ("USD", "usdt", "USDC")} == {name}
    assert ticker_of(name) == name
    assert currency_of(name) == "USD"
    assert split_symbol(name)[0] == coin
    assert pair_of(name, "/", "USD") == f"{coin}/USD"
    assert ticker_of(f"{coin}/EUR") == f"{coin}/EUR"
    assert [ticker_of(f"{other}/USD") for other in LISTED].count(name) == 1


@pytest.mark.parametrize("coin", LISTED)
def test_a_coin_of_a_venue_is_found_among_all_of_them(coin):
    for dollar in ("USD", "USDT"):
        pairs = [f"{other}/{dollar}" for other in LISTED]
        assert match_symbols([f"{coin}/USD"], pairs) == (f"{coin}/{dollar}",)
        assert match_symbols([ticker_of(f"{coin}/USD")], pairs) == (f"{coin}/{dollar}",)
    dataset = [ticker_of(f"{other}/USD") for other in LISTED]
    assert match_symbols([f"{coin}/USD"], dataset) == (ticker_of(f"{coin}/USD"),)


@pytest.mark.parametrize("coin", IN_DOLLARS)
def test_a_coin_run_together_with_dollars_is_that_coin_or_none(coin):
    if f"{coin}USD" not in WHOLE_NAMES:
        assert split_symbol(f"{coin}USD") == (coin, "USD")
    for dollar in ("USD", "USDT"):
        pairs = [f"{other}/{dollar}" for other in LISTED]
        assert match_symbols([f"{coin}USD"], pairs) == (f"{coin}/{dollar}",)
        with pytest.raises(BarsError, match="unknown ticker"):
            match_symbols([f"{coin}USD"], [pair for pair in pairs if pair != f"{coin}/{dollar}"])


def test_a_name_that_two_coins_fit_is_refused_with_both():
    for available in (["CRV/USD", "CRVUSD/USD"], ["CRV", "CRVUSD/USD"]):
        with pytest.raises(BarsError, match=f"CRVUSD could be {' or '.join(available)}; write it with a separator"):
            match_symbols(["CRVUSD"], available)
    with pytest.raises(BarsError, match="ARBUSD could be AR/BUSD or ARB/USD"):
        match_symbols(["ARBUSD"], ["AR/BUSD", "ARB/USD"])
    assert match_symbols(["CRVUSD"], ["CRVUSD/USD"]) == ("CRVUSD/USD",)
    assert match_symbols(["CRVUSD"], ["CRV/USDT"]) == ("CRV/USDT",)


def test_a_coin_is_never_taken_for_another_in_a_rare_dollar():
    assert match_symbols(["ARBUSD"], ["AR/USDT", "ARB/USDT"]) == ("ARB/USDT",)
    assert match_symbols(["ARBUSD"], ["AR/BUSD", "BTC/BUSD"]) == ("AR/BUSD",)
    with pytest.raises(BarsError, match="unknown ticker ARBUSD"):
        match_symbols(["ARBUSD"], ["AR/USDT"])
    assert match_symbols(["BTCBUSD"], ["BTC/USDT"]) == ("BTC/USDT",)


@given(st.text(alphabet="ABRTUSDCFEP1/-_ eur", max_size=14))
def test_a_datasets_name_names_itself(symbol):
    assume(known_pair(symbol) is not None)
    assert ticker_of(ticker_of(symbol)) == ticker_of(symbol)
    assert currency_of(ticker_of(symbol)) == currency_of(symbol)


def test_a_spot_pair_is_taken_before_a_perpetual_and_never_for_one():
    available = ["BTC/USDT:USDT", "BTC/USDT", "ETH/USDT:USDT"]
    assert match_symbols(["BTC", "ETH"], available) == ("BTC/USDT", "ETH/USDT:USDT")
    assert match_symbols(["BTCUSDT.P"], available) == ("BTC/USDT:USDT",)
    assert match_symbols(["BTC/USDT:USDT"], ["BTC", "ETH"]) == ("BTC",)  # a dataset's name does not say
    for spot in ("BTC/USDT", "BTCUSDT", "METISBTC"):
        with pytest.raises(BarsError, match="unknown ticker BTC/USDT:USDT"):
            match_symbols(["BTC/USDT:USDT"], [spot])
    with pytest.raises(BarsError, match="downloads are spot bars; write BTC/USDT"):
        pair_of("BTC/USDT:USDT", "/", "USDT")


@pytest.mark.parametrize("wanted", ["BTC", "BTC/USD", "BTC/USDT", "BTCUSD", "btcusdt"])
def test_any_form_finds_the_symbol(wanted):
    assert match_symbols([wanted], ["ETH/USDT", "BTC/USDT"]) == ("BTC/USDT",)


def test_the_quote_asked_for_wins_then_dollars_in_order():
    available = ["BTC/EUR", "BTC/USDC", "BTC/USDT", "BTC/USD"]
    assert match_symbols(["BTC/USDC"], available) == ("BTC/USDC",)
    assert match_symbols(["BTCUSDC"], available) == ("BTC/USDC",)
    assert match_symbols(["BTC"], available) == ("BTC/USD",)
    assert match_symbols(["BTC"], available[:3]) == ("BTC/USDT",)
    assert match_symbols(["BTC/EUR"], available) == ("BTC/EUR",)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (["BTC", "XYZ", "ABC"], "unknown ticker XYZ, ABC; available: BTC/EUR, BTC/USD, ETH/USD"),
        (["BTC", "BTCUSD"], "is repeated in"),
        (["ETH", "BTC/EUR"], "mix the currencies EUR, USD"),
    ],
)
def test_tickers_that_cannot_be_matched_are_named(wanted, message):
    with pytest.raises(BarsError, match=message):
        match_symbols(wanted, ["BTC/USD", "BTC/EUR", "ETH/USD"])


def test_timeframes_have_seconds_and_unknown_ones_are_refused():
    assert timeframe_seconds("15m") == 900
    assert timeframe_name(86_400) == "1d"
    assert timeframe_name(90) == "90s"
    with pytest.raises(BarsError, match="7m"):
        timeframe_seconds("7m")
