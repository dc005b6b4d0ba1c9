"""An account has one cash: tickers in several currencies are refused by every environment."""

import numpy as np
import pytest

from environment_Alpaca import CryptoEnvAlpaca
from environment_Alpaca_vectorized import (
    VectorizedCryptoEnvAlpaca,
    VectorizedCryptoEnvAlpacaOptimized,
    cash_of,
)

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
