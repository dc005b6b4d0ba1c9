"""Every limit stands against the order that is just beyond it, and not against the one just within."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest

from market.defaults import TRADING_LIMITS
from market.errors import UserError
from paper_trading.broker import Intent
from paper_trading.risk import DAY_S, Limits, Standing, Used, refusal

WIDE = Limits(*([1e9] * 8))
ACCOUNT = Standing(1000.0, {"BTC": 300.0}, {"BTC": 100.0})


def order(qty: float, side: str = "buy", price: float = 100.0) -> Intent:
    return Intent("id", "BTC", side, Decimal(str(qty)), 600, price, "policy", qty)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("limit", "within", "beyond", "used"),
    [
        ("max_order_weight", 5.0, 5.1, Used()),
        ("max_position_weight", 2.0, 2.1, Used()),
        ("max_bar_turnover", 3.0, 3.1, Used(bar_turnover=200.0)),
        ("max_day_turnover", 4.0, 4.1, Used(day_turnover=100.0)),
    ],
)
def test_a_buy_beyond_a_limit_is_refused_by_its_flag(limit, within, beyond, used):
    limits = replace(WIDE, **{limit: 0.5})
    assert refusal(order(within), limits, used, ACCOUNT) is None
    why = refusal(order(beyond), limits, used, ACCOUNT)
    assert f"exceeds --{limit.replace('_', '-')} 0.5 of equity 1,000.00" in str(why)


def test_a_sale_passes_the_limits_of_buys():
    limits = Limits(*([1e-9] * 4), 1.0, 1, 1.0, 1.0)
    assert refusal(order(3.0, "sell"), limits, Used(), ACCOUNT) is None


@pytest.mark.parametrize("side", ["buy", "sell"])
def test_a_price_that_jumped_is_not_traded_at(side):
    limits = replace(WIDE, max_price_move=0.1)
    assert refusal(order(1.0, side, 109.9), limits, Used(), ACCOUNT) is None
    assert refusal(order(1.0, side, 90.1), limits, Used(), ACCOUNT) is None
    assert "+10.1% since the previous bar" in str(refusal(order(1.0, side, 110.1), limits, Used(), ACCOUNT))
    assert "-10.1% since the previous bar" in str(refusal(order(1.0, side, 89.9), limits, Used(), ACCOUNT))


def test_turnover_counts_by_bar_and_by_day():
    used = Used()
    used.begin_bar(DAY_S)
    used.add(100.0)
    used.begin_bar(DAY_S + 300)
    used.add(50.0)
    assert (used.bar_turnover, used.day_turnover) == (50.0, 150.0)
    used.begin_bar(2 * DAY_S)
    assert (used.bar_turnover, used.day_turnover) == (0.0, 0.0)


def test_limits_are_named_as_the_flags_are():
    assert [name.replace("_", "-") for name in Limits().to_json()] == list(TRADING_LIMITS)
    assert list(Limits().to_json().values()) == [default for default, _ in TRADING_LIMITS.values()]
    with pytest.raises(UserError, match="--max-drift must be above 0; received nan"):
        Limits(max_drift=float("nan"))
