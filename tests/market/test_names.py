import pytest

from market.errors import BarsError
from market.names import currency_of, match_symbols, split_symbol, ticker_of, timeframe_name, timeframe_seconds


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
    ],
)
def test_a_symbol_is_split_into_coin_and_quote(symbol, coin, quote):
    assert split_symbol(symbol) == (coin, quote)


def test_dollar_names_are_one_coin_and_other_currencies_are_not():
    assert {ticker_of(name) for name in ("BTC", "BTC/USD", "BTCUSDT", "btc-usdc")} == {"BTC"}
    assert ticker_of("BTC/EUR") == "BTC/EUR"
    assert currency_of("BTC/EUR") == "EUR"
    assert currency_of("BTC") == "USD"


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
        (["BTC", "BTCUSD"], "asked for twice"),
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
