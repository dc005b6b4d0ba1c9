"""Edges of an account: late fees, dust, episodes that end, missed bars, and what others do with the same cash."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

from market.errors import UserError
from paper_trading import flatten
from paper_trading.broker import Snapshot
from paper_trading.ledger import CASH, Fill, Ledger, Rates, explain
from paper_trading.traded_account import TradedAccount
from paper_trading.trader import Trader
from tests.support.alpaca_stand_in import StandIn
from tests.support.trading_world import ASSETS, QUICK, STEP_S, TradingWorld, live_prices, make_deployment

COARSE = ASSETS | {"min_trade_increment": "0.0001"}
FEE = Decimal("0.0025")


@pytest.fixture(scope="module")
def server() -> Iterator[StandIn]:
    with StandIn() as process:
        yield process


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paper_trading.alpaca_venue.PATIENCE", QUICK)
    monkeypatch.setattr("paper_trading.alpaca_venue.QUOTE_PATIENCE", QUICK)


def begun(world: TradingWorld, **settings) -> Trader:
    trader = world.trader(**settings)
    world.play(trader, 1)
    return trader


def order(world: TradingWorld, trader: Trader, **actions: float) -> list[dict]:
    """The order events of a bar that executes these actions."""
    n_before = len(world.events("order"))
    trader.pending = np.array([actions.get(ticker, 0.0) for ticker in world.tickers], np.float32)
    world.play(trader, 1)
    return world.events("order")[n_before:]


def held(world: TradingWorld, ticker: str = "BTC") -> Decimal:
    return Decimal(world.server.state()["positions"].get(f"{ticker}/USD", {}).get("qty", "0"))


def progress(account: TradedAccount) -> float:
    return float(account.observe()[-(2 + account.action_dim)])


def closes(world: TradingWorld, trader: Trader, n_bars: int, ticker: str = "BTC") -> np.ndarray:
    """Of the last bars."""
    end = (trader.bar_s - world.first_s) // STEP_S
    return live_prices(world, ticker)[end - n_bars : end]


# ------------------------------------------------------------------------------------------------- a restart
def test_what_was_sent_at_once_is_not_sent_again_by_a_restart_without_the_flag(tmp_path, server):
    world = TradingWorld(tmp_path, server)
    trader = begun(world, sends_at_once=True)
    while not world.events("intents") or world.events("intents")[-1]["bar_s"] != trader.bar_s:
        world.play(trader, 1)
    assert any(world.events("decision")[-1]["action"])
    n_orders = len(world.events("order"))
    again = world.trader()
    again.begin()
    assert again.pending is None
    world.play(again, 1)
    assert len(world.events("order")) == n_orders
    world.check_books()


# ------------------------------------------------------------------------------------------------- fees
def test_the_fee_that_the_venue_is_known_to_take_is_no_surprise_to_one_trained_with_less(tmp_path, server):
    world = TradingWorld(tmp_path, server, env={"buy_fee_rate": 0.001, "sell_fee_rate": 0.001})
    trader = begun(world)
    order(world, trader, BTC=20.0)
    order(world, trader, BTC=-50.0)
    assert trader.state == "ACTIVE", trader.why
    account = world.events("account")[-1]
    assert Decimal(account["fee_expected"]) * 2 < Decimal(account["fee_cash"])  # what is expected is the trained one
    world.check_books()
    world.check_fees()


def test_a_fee_that_is_taken_later_is_a_fee_up_to_what_is_unpaid(tmp_path, server):
    world = TradingWorld(tmp_path, server, fee_rate="0")
    trader = begun(world)
    order(world, trader, BTC=20.0)
    bought = held(world)
    fee = (bought * FEE).quantize(Decimal("1e-9"))
    trader = world.trader()  # a restart knows what is unpaid
    trader.begin()
    for n, state in ((1, "ACTIVE"), (2, "REDUCING")):
        world.server.control("position", symbol="BTC/USD", qty=str(bought - n * fee))
        order(world, trader)
        assert trader.state == state, trader.why
    assert [event["fee_qty"] for event in world.events("account")[-2:]] == [{"BTC": str(fee)}, {}]
    world.check_books()


def test_a_late_fee_of_sales_is_taken_from_cash(tmp_path, server):
    world = TradingWorld(tmp_path, server, fee_rate="0")
    trader = begun(world)
    order(world, trader, BTC=20.0)
    (ended,) = order(world, trader, BTC=-50.0)
    fee = (Decimal(ended["notional"]) * FEE).quantize(Decimal("1e-6"))
    for state in ("ACTIVE", "REDUCING"):
        world.server.control("cash", amount=str(-fee))
        order(world, trader)
        assert trader.state == state, trader.why
    world.check_books()


def test_somebodys_small_order_is_not_taken_for_a_late_fee(tmp_path, server):
    world = TradingWorld(tmp_path, server, fee_rate="0")
    server.control("asset", symbol="SOL/USD", **ASSETS)
    server.control("price", symbol="SOL/USD", price="100")
    trader = begun(world)
    order(world, trader, BTC=20.0)
    order(world, trader, BTC=-50.0)
    unpaid = trader.ledger.unpaid_of(CASH)
    assert unpaid > 20
    world.server.control("foreign_order", symbol="SOL/USD", side="buy", qty="0.15")
    order(world, trader)
    assert (trader.state, trader.ledger.unpaid_of(CASH)) == ("ACTIVE", unpaid)
    assert Decimal(world.events("account")[-1]["fee_cash"]) == 0
    assert "foreign order: buy 0.15 SOL/USD" in str(world.events("foreign"))


def test_unpaid_fees_lapse_with_the_end_of_the_next_day():
    rates, day = Rates(FEE, FEE, FEE), 86_400.0
    ledger = Ledger(Decimal(1000), {"BTC": Decimal(0)})
    snapshot = Snapshot(Decimal(900), {"BTC": Decimal(1)}, {}, ())
    bought = explain(ledger, snapshot, [Fill("BTC", "buy", Decimal(1), Decimal(100))], rates, now_s=0.5 * day).ledger
    assert bought.unpaid_of("BTC") == FEE
    assert Ledger.from_json(bought.to_json()) == bought
    later = replace(snapshot, qty={"BTC": 1 - FEE})
    assert explain(bought, later, [], rates, now_s=1.9 * day).unexplained == []
    assert explain(bought, later, [], rates, now_s=2.1 * day).unexplained != []


def test_a_venue_that_takes_the_fees_of_buys_from_cash_leaves_nothing_unpaid():
    rates = Rates(FEE, FEE)
    ledger = Ledger(Decimal(1000), {"BTC": Decimal(0), "ETH": Decimal(1)})
    fills = [Fill("BTC", "buy", Decimal(1), Decimal(100)), Fill("ETH", "sell", Decimal(1), Decimal(40))]
    snapshot = Snapshot(940 - 140 * FEE, {"BTC": Decimal(1), "ETH": Decimal(0)}, {}, ())
    found = explain(ledger, snapshot, fills, rates)
    assert (found.unexplained, found.ledger.unpaid) == ([], {})
    assert found.ledger.unpaid_of(CASH) == 0


# ------------------------------------------------------------------------------------------------- dust
def coarse_world(tmp_path: Path, server: StandIn, **settings) -> TradingWorld:
    """Positions that the fee leaves a part of an increment of."""
    world = TradingWorld(tmp_path, server, **settings)
    for ticker in world.tickers:
        server.control("asset", symbol=f"{ticker}/USD", **COARSE)
    return world


@pytest.mark.parametrize("is_known", [True, False])
def test_a_position_that_was_sold_but_for_dust_begins_anew(tmp_path, server, is_known):
    world = coarse_world(tmp_path, server, env={"trailing_stop_pct": 0.9})
    trader = begun(world)
    order(world, trader, BTC=20.0)
    for _ in range(3):
        order(world, trader)
    acct = trader.account.account
    acct.high[0] *= 2.0  # it was dearer once
    if not is_known:
        server.control("fault", kind="drop_after", method="POST", path="/v2/orders")
        server.control("fault", kind="drop_before", times=500, path="by_client_order_id")
    order(world, trader, BTC=-100.0)
    server.control("clear_faults")
    order(world, trader)
    assert 0 < trader.account.account.qty[0] < 0.0001
    assert trader.account.account.held_bars[0] == 0
    trader = world.trader()  # a restart knows it
    trader.begin()
    for _ in range(2):
        order(world, trader)
        assert trader.account.account.held_bars[0] == 0
        assert trader.account.account.high[0] <= closes(world, trader, 1)[0]
    order(world, trader, BTC=20.0)
    assert trader.account.account.qty[0] > 0.0001
    assert trader.account.account.high[0] == closes(world, trader, 1)[0]
    order(world, trader)
    assert trader.account.account.held_bars[0] == 1
    assert trader.account.account.high[0] == closes(world, trader, 2).max()
    world.check_books()


def test_a_part_of_a_position_keeps_its_high(tmp_path, server):
    world = coarse_world(tmp_path, server, env={"trailing_stop_pct": 0.9})
    trader = begun(world)
    order(world, trader, BTC=2.0)
    trader.account.account.high[0] *= 2.0
    high = trader.account.account.high[0]
    bought = trader.account.account.qty[0]
    order(world, trader, BTC=-0.5)
    assert 0.0001 < trader.account.account.qty[0] < bought
    order(world, trader, BTC=0.5)
    assert trader.account.account.high[0] == high


def test_coins_that_cannot_be_sold_do_not_stand_against_other_coins(tmp_path, server):
    world = coarse_world(tmp_path, server)
    trader = begun(world)
    order(world, trader, BTC=50.0)
    assert flatten.flatten_until_sold(trader.desk, trader.ledger.qty, "a test", 10.0) == {}
    order(world, trader)
    dust = trader.ledger.qty["BTC"]
    assert 0 < dust < Decimal("0.0001")
    whole, tickers = world.deployment, world.tickers
    world.deployment, world.tickers = make_deployment(world.root / "others", ("ETH", "LTC")), ("ETH", "LTC")
    others = begun(world)
    assert f"BTC: the trader's {dust} coins are too few to sell" in str(world.events("foreign"))
    account = world.events("account")[-1]
    assert account["qty"]["BTC"] == "0"
    assert account["foreign"]["qty"]["BTC"] == str(dust)
    assert [each["status"] for each in order(world, others, ETH=0.3)] == ["filled"]
    order(world, others, ETH=-9.0)
    world.trader()
    assert str(world.events("foreign")).count("too few to sell") == 1
    world.deployment, world.tickers = whole, tickers
    back = make_back(world, others)
    assert back.state == "ACTIVE", back.why
    world.check_books()


def make_back(world: TradingWorld, others: Trader) -> Trader:
    """The first deployment once more, after the second sold what it can of its own coins."""
    flatten.flatten(others.desk, others.ledger.qty, {}, "back")
    return begun(world)


def test_coins_that_can_be_sold_still_stand_against_other_coins(tmp_path, server):
    world = coarse_world(tmp_path, server)
    order(world, begun(world), BTC=50.0)
    world.deployment = make_deployment(world.root / "others", ("ETH", "LTC"))
    with pytest.raises(UserError, match="sell them with --flatten"):
        world.trader()


# ------------------------------------------------------------------------------------------------ episodes, missed bars
def test_an_episode_of_progress_begins_again_where_the_last_one_ended(tmp_path, server):
    world = TradingWorld(tmp_path, server, env={"observe_account": True})
    trader = begun(world, n_steps=3)
    seen = []
    for _ in range(8):
        world.play(trader, 1)
        assert progress(trader.account) == progress(trader.shadow.account)
        seen.append(round(3 * progress(trader.account)))
    assert seen == [1, 2, 3, 0, 1, 2, 3, 0]


@pytest.mark.parametrize(("n_steps", "expected"), [(100, 11), (10, 0)])
def test_missed_bars_count_as_progress(tmp_path, server, n_steps, expected):
    world = TradingWorld(tmp_path, server, env={"observe_account": True})
    trader = begun(world, n_steps=n_steps)
    world.play(trader, 1)
    world.clock.advance(10 * STEP_S)
    world.play(trader, 1)
    assert n_steps * progress(trader.account) == pytest.approx(expected, rel=1e-6)
    assert progress(trader.account) == progress(trader.shadow.account)
    assert trader.account.account.first_bar == trader.account.account.bar - expected


def test_the_high_of_a_position_follows_the_closes_of_missed_bars(tmp_path, server):
    world = TradingWorld(tmp_path, server, env={"trailing_stop_pct": 0.9})
    trader = begun(world)
    order(world, trader, BTC=20.0)
    trader.account.account.high[0] = 1.0
    world.clock.advance(10 * STEP_S)
    world.play(trader, 1)
    n_known = min(11, len(trader.account.price_array))
    assert trader.account.account.high[0] == closes(world, trader, n_known).max()
    assert trader.account.account.high[1] == 0.0  # not held


# ------------------------------------------------------------------------------------------------- others
def test_an_order_of_others_in_a_coin_that_is_not_traded_explains_the_cash(tmp_path, server):
    world = TradingWorld(tmp_path, server)
    server.control("asset", symbol="SOL/USD", **ASSETS)
    server.control("price", symbol="SOL/USD", price="100")
    trader = begun(world)
    server.control("foreign_order", symbol="SOL/USD", side="buy", qty="3")
    order(world, trader)
    assert trader.state == "ACTIVE", trader.why
    assert "foreign order: buy 3 SOL/USD" in str(world.events("foreign"))
    world.check_books()
    server.control("foreign_order", symbol="SOL/USD", side="sell", qty="2")
    order(world, trader, BTC=0.3)
    assert trader.state == "ACTIVE", trader.why
    assert trader.ledger.foreign_cash > 190
    world.check_books()
    server.control("cash", amount=-250)
    order(world, trader)
    assert "cash: -250 not explained by any order" in trader.why


def test_cash_of_ours_that_others_spend_is_said_where_ours_is_a_part(tmp_path, server):
    world = TradingWorld(tmp_path, server)
    server.control("asset", symbol="SOL/USD", **ASSETS)
    server.control("price", symbol="SOL/USD", price="100")
    trader = begun(world, capital=Decimal(9500))
    server.control("foreign_order", symbol="SOL/USD", side="buy", qty="3")
    order(world, trader)
    assert (trader.state, trader.ledger.cash) == ("ACTIVE", 9500)
    server.control("foreign_order", symbol="SOL/USD", side="buy", qty="4")
    order(world, trader)
    assert trader.state == "REDUCING"
    assert "of the trader's cash was spent by foreign orders" in trader.why
    assert trader.ledger.foreign_cash == 0
    world.check_books()
