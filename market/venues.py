"""Order rules of the venue by coin NAME, never by column.

Alpaca's smallest crypto order is worth about one US dollar, restated in coins as the price moves; quantities move in
steps of 1e-9 coins; a buy under 10 USD is rejected (code 40310000). The table below is one US dollar of coin at the
closing price of 2024-08-31 (Binance spot), to three figures; it is dated, and not a live quote of any venue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from market.names import split_symbol

AS_OF = "2024-08-31"
MIN_ORDER_NOTIONAL = 10.0  # USD
QTY_INCREMENT = 1e-9  # coins


@dataclass(frozen=True)
class OrderRule:
    """What one coin's orders must satisfy."""

    min_order_qty: float  # coins
    qty_increment: float = QTY_INCREMENT  # coins
    min_order_notional: float = MIN_ORDER_NOTIONAL  # USD


@dataclass(frozen=True)
class OrderRules:
    """The rules of a dataset's coins, in the dataset's column order."""

    min_order_qty: np.ndarray  # (A,) float64, coins
    qty_increment: np.ndarray  # (A,) float64, coins
    min_order_notional: float  # USD, the largest over the coins


# A coin without an entry is bound by the notional alone: no minimum quantity, the finest step.
UNKNOWN = OrderRule(min_order_qty=0.0)

VENUES: dict[str, OrderRule] = {
    "AAVE": OrderRule(0.00771),
    "ATOM": OrderRule(0.219),
    "AVAX": OrderRule(0.0438),
    "BCH": OrderRule(0.0031),
    "BTC": OrderRule(1.7e-05),
    "DOGE": OrderRule(9.87),
    "ETC": OrderRule(0.0543),
    "ETH": OrderRule(0.000398),
    "LINK": OrderRule(0.0907),
    "LTC": OrderRule(0.0154),
    "MATIC": OrderRule(2.38),
    "NEAR": OrderRule(0.248),
    "OP": OrderRule(0.706),
    "PEPE": OrderRule(132000.0),
    "SHIB": OrderRule(72300.0),
    "SOL": OrderRule(0.00739),
    "UNI": OrderRule(0.168),
    "XRP": OrderRule(1.77),
}


def order_rule(ticker: str) -> OrderRule:
    """The rule of one coin under any of its names (`BTC`, `BTC/USD`, `BTCUSDT`); `UNKNOWN` when it has no entry."""
    return VENUES.get(split_symbol(ticker)[0], UNKNOWN)


def order_rules(tickers: Sequence[str]) -> OrderRules:
    """Rules of several coins, joined by name: reordering the tickers reorders the arrays."""
    rules = [order_rule(ticker) for ticker in tickers]
    return OrderRules(
        min_order_qty=np.array([rule.min_order_qty for rule in rules], dtype=np.float64),
        qty_increment=np.array([rule.qty_increment for rule in rules], dtype=np.float64),
        min_order_notional=max((rule.min_order_notional for rule in rules), default=MIN_ORDER_NOTIONAL),
    )
