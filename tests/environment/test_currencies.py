"""An account has one cash: tickers in several currencies are refused by every environment."""

import numpy as np
import pytest

from environment_Alpaca import CryptoEnvAlpaca
from environment_Alpaca_vectorized import (
    VectorizedCryptoEnvAlpaca,
    VectorizedCryptoEnvAlpacaOptimized,
    cash_of,
)
from market.names import known_currency
from market.symbols import KNOWN_COINS, QUOTES, WHOLE_NAMES

CLASSES = [CryptoEnvAlpaca, VectorizedCryptoEnvAlpaca, VectorizedCryptoEnvAlpacaOptimized]


def config(*tickers):
    n_assets = len(tickers)
    return {"price_array": np.ones((40, n_assets)), "tech_array": np.zeros((40, n_assets)), "tickers": tickers}


@pytest.mark.parametrize("env_class", CLASSES)
@pytest.mark.parametrize(
    "tickers", [("BTCUSDT", "ETHBTC"), ("BTC", "ETH/EUR"), ("BTC-USD", "BTC_GBP"), ("S/BTC", "S/USD")]
)
def test_several_currencies_are_refused(env_class, tickers):
    with pytest.raises(ValueError, match="an account has one cash"):
        env_class(config(*tickers), {"rules": "standard", "lookback": 2})


@pytest.mark.parametrize("env_class", CLASSES)
@pytest.mark.parametrize(
    "tickers", [("BTC", "WBTC", "STETH"), ("BTC/USDT:USDT", "ETHUSDC"), ("ETH/BTC", "LTCBTC"), (1, 2)]
)
def test_one_currency_in_any_spelling_is_taken(env_class, tickers):
    assert env_class(config(*tickers), {"rules": "standard", "lookback": 2}).action_dim == len(tickers)


@pytest.mark.parametrize(("cash", "tickers"), [
    ("USD", "BTC WBTC STETH CBETH CBBTC USDT EUR BTCUSDT BTC/USDC CRVUSD/USD btc-usd BTC/USDT:USDT BINANCE:BTCUSDT"),
    ("BTC", "ETHBTC ETH/BTC BINANCE:ETHBTC S/BTC eth_btc"), ("EUR", "BTCEUR BTC/EUR BTC/EUR:EUR"), ("TRY", "BTCTRY"),
])  # fmt: skip
def test_the_cash_of_a_ticker(cash, tickers):
    assert {cash_of(ticker) for ticker in tickers.split()} == {cash}


OF_EUROS = {"AEUR", "AGEUR", "CEUR", "IBEUR", "VEUR"}  # five coins that need a mark here


@pytest.mark.parametrize("name", sorted((WHOLE_NAMES | KNOWN_COINS) - OF_EUROS))
def test_what_stands_alone_is_a_coin_in_dollars_here_and_in_datasets(name):
    assert cash_of(name) == known_currency(name) == "USD"


@pytest.mark.parametrize("quote", sorted(QUOTES))
def test_a_marked_currency_is_the_same_here_and_in_datasets(quote):
    for mark in "/-_":
        known = quote if quote == "XBT" else known_currency(f"PEPE{mark}{quote}")
        assert cash_of(f"PEPE{mark}{quote}") in (known, "USD" if "USD" in quote else known)
