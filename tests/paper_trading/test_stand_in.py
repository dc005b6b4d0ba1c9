"""The stand-in for Alpaca against alpaca-py's own clients: what it answers, books and breaks."""

import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from email.utils import parsedate_to_datetime

import pytest
import requests
from alpaca.common.exceptions import APIError
from alpaca.data.historical import CryptoHistoricalDataClient
from alpaca.data.requests import CryptoBarsRequest, CryptoLatestBarRequest, CryptoLatestQuoteRequest
from alpaca.data.timeframe import TimeFrame, TimeFrameUnit
from alpaca.trading.client import TradingClient
from alpaca.trading.enums import AssetStatus, OrderSide, OrderStatus, QueryOrderStatus, TimeInForce
from alpaca.trading.requests import ClosePositionRequest, GetAssetsRequest, GetOrdersRequest, MarketOrderRequest

from tests.support.alpaca_stand_in import StandIn

START = datetime(2025, 1, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
BTC = "BTC/USD"


@pytest.fixture(scope="module")
def process():
    with StandIn() as server:
        yield server


@pytest.fixture
def server(process):
    """The same process with a new account: BTC at 50 000 USD, ETH at 4000, the clock frozen at START."""
    process.control("reset", now=START.isoformat())
    process.control("price", symbol=BTC, price="50000")
    process.control("price", symbol="ETH/USD", price="4000")
    return process


@pytest.fixture
def client(server):
    client = TradingClient(server.key, server.secret, paper=True, url_override=server.url)
    client._retry = 0
    return client


@pytest.fixture
def data(server):
    return CryptoHistoricalDataClient(url_override=server.url)


def order(side, qty=None, client_id=None, symbol=BTC, **fields):
    return MarketOrderRequest(
        symbol=symbol, qty=qty, side=OrderSide(side), time_in_force=TimeInForce.GTC, client_order_id=client_id, **fields
    )


def all_orders(client, **fields):
    return client.get_orders(GetOrdersRequest(status=QueryOrderStatus.ALL, **fields))


def refused(call, status, code):
    """The message of the refusal, whose status and code are as given."""
    with pytest.raises(APIError) as caught:
        call()
    assert (caught.value.status_code, caught.value.code) == (status, code)
    return caught.value.message


def five_bars(symbol=BTC, **changes):
    """Bars of the five minutes from START with closes 101 to 105."""
    return {symbol: [[(START + k * MINUTE).isoformat(), 100 + k, 106, 99, 101 + k, 10 * (k + 1)] for k in range(5)]}


def ask_bars(data, *symbols, minutes=1, **fields):
    frame = TimeFrame(minutes, TimeFrameUnit.Minute)
    fields = {"start": START} | fields
    return data.get_crypto_bars(CryptoBarsRequest(symbol_or_symbols=list(symbols or [BTC]), timeframe=frame, **fields))


def closes(data, symbol=BTC, **fields):
    return [bar.close for bar in ask_bars(data, symbol, **fields).data.get(symbol, [])]


# -- orders and money


def test_a_buy_costs_the_ask_and_credits_the_quantity_less_the_fee(server, client):
    server.control("set", half_spread="0.0001", fee_rate="0.0025")
    bought = client.submit_order(order("buy", 0.123456789, "b-1"))
    assert bought.status is OrderStatus.FILLED
    assert (bought.filled_qty, bought.filled_avg_price) == ("0.123456789", "50005")
    (position,) = client.get_all_positions()
    # 0.123456789 * 0.9975 = 0.1231481470275
    assert (position.symbol, position.qty, position.qty_available) == ("BTCUSD", "0.123148147", "0.123148147")
    assert position.avg_entry_price == "50005"
    account = client.get_account()
    assert Decimal(account.cash) == 100_000 - Decimal("0.123456789") * 50_005
    assert Decimal(account.equity) == Decimal(account.cash) + Decimal(position.market_value)
    assert account.status.value == "ACTIVE"
    assert account.account_number
    assert server.state()["fees"] == {"USD": "0", "BTC": "0.000308642"}


def test_a_sale_credits_the_proceeds_at_the_bid_less_the_fee(server, client):
    server.control("position", symbol=BTC, qty="0.5", avg_entry_price="40000")
    server.control("set", half_spread="0.0001", fee_rate="0.0025")
    sold = client.submit_order(order("sell", 0.111111111))
    assert sold.filled_avg_price == "49995"
    gross = Decimal("0.111111111") * 49_995
    proceeds = (gross * Decimal("0.9975")).quantize(Decimal("1e-9"), "ROUND_FLOOR")
    state = server.state()
    assert Decimal(state["cash"]) == 100_000 + proceeds
    assert Decimal(state["fees"]["USD"]) == gross - proceeds == Decimal(state["fills"][0]["fee_usd"])
    assert state["positions"][BTC] == {
        "qty": "0.388888889",
        "qty_available": "0.388888889",
        "avg_entry_price": "40000",
    }


def test_without_a_fee_a_round_trip_returns_to_the_same_cash(server, client):
    server.control("set", fee_rate=0)
    client.submit_order(order("buy", 0.3))
    assert client.get_open_position("BTCUSD").qty == "0.3"
    client.submit_order(order("sell", 0.3, symbol="BTCUSD"))
    assert client.get_account().cash == "100000"
    assert client.get_all_positions() == []
    assert refused(lambda: client.get_open_position("BTCUSD"), 404, 40410000) == "position does not exist"


def test_money_adds_up_whatever_is_traded(server, client):
    server.control("set", half_spread="0.00037")
    for k, qty in enumerate([0.100000003, 0.033333333, 0.0777, 0.05, 0.0123]):
        server.control("price", symbol=BTC, price=f"{48_123.17 + 97.31 * k:.2f}")
        client.submit_order(order("sell" if k % 3 == 2 else "buy", qty))
    state = server.state()
    cash, coins = Decimal(100_000), Decimal(0)
    for fill in state["fills"]:
        qty, gross = Decimal(fill["qty"]), Decimal(fill["qty"]) * Decimal(fill["price"])
        if fill["side"] == "buy":
            cash -= gross.quantize(Decimal("1e-9"), "ROUND_CEILING")
            coins += qty - Decimal(fill["fee_coins"])
        else:
            cash += gross - Decimal(fill["fee_usd"])
            coins -= qty
    assert (Decimal(state["cash"]), Decimal(state["positions"][BTC]["qty"])) == (cash, coins)


def test_a_notional_buy_is_rounded_down_to_the_increment(server, client):
    server.control("asset", symbol=BTC, min_trade_increment="0.0001", min_order_size="0.0001")
    bought = client.submit_order(order("buy", notional=1_234.56))
    assert (bought.qty, bought.notional, bought.filled_qty) == (None, "1234.56", "0.0246")
    message = refused(lambda: client.submit_order(order("buy", notional=12.345)), 422, 42210000)
    assert "2 decimal places" in message


def test_a_client_order_id_is_taken_once(server, client):
    first = client.submit_order(order("buy", 0.1, "once"))
    message = refused(lambda: client.submit_order(order("buy", 0.1, "once")), 422, 40010001)
    assert message == "client_order_id must be unique"
    assert len(server.state()["orders"]) == 1
    assert client.get_order_by_client_id("once").id == first.id
    assert client.get_order_by_id(first.id).client_order_id == "once"
    assert "order not found" in refused(lambda: client.get_order_by_client_id("never"), 404, 40410000)


def test_40310000_means_too_small_or_too_little(server, client):
    small = refused(lambda: client.submit_order(order("buy", 0.0001)), 403, 40310000)
    assert small == "cost basis must be >= minimal amount of order 10"
    poor = refused(lambda: client.submit_order(order("buy", 3)), 403, 40310000)
    assert poor == "insufficient balance for USD (requested: 150000, available: 100000)"
    client.submit_order(order("buy", 0.1))
    short = refused(lambda: client.submit_order(order("sell", 0.1)), 403, 40310000)
    assert short == "insufficient balance for BTC (requested: 0.1, available: 0.09975)"
    client.submit_order(order("sell", 0.0001))  # a sale has no minimum in USD


def test_the_same_refusals_on_demand(server, client):
    server.control("fault", kind="minimum")
    server.control("fault", kind="insufficient")
    assert "minimal amount" in refused(lambda: client.submit_order(order("buy", 0.1)), 403, 40310000)
    assert "insufficient balance" in refused(lambda: client.submit_order(order("buy", 0.1)), 403, 40310000)
    assert client.submit_order(order("buy", 0.1)).status is OrderStatus.FILLED
    assert len(server.state()["orders"]) == 1


def test_assets_have_limits_and_can_be_delisted(server, client):
    server.control("asset", symbol=BTC, min_order_size="0.001", min_trade_increment="0.0005")
    assert (client.get_asset("BTCUSD").min_order_size, client.get_asset(BTC).min_trade_increment) == (0.001, 0.0005)
    for qty, name in ((0.0005, "min_order_size"), (0.0012, "min_trade_increment")):
        assert name in refused(lambda qty=qty: client.submit_order(order("buy", qty)), 422, 40010001)
    server.control("asset", symbol=BTC, status="inactive", tradable=False)
    message = refused(lambda: client.submit_order(order("buy", 0.1)), 422, 40010001)
    assert message == 'asset "BTC/USD" is not active'
    active = client.get_all_assets(GetAssetsRequest(status=AssetStatus.ACTIVE))
    assert BTC not in {asset.symbol for asset in active}
    assert "not found" in refused(lambda: client.submit_order(order("buy", 1, symbol="XYZ/USD")), 422, 40010001)
    assert "not found" in refused(lambda: client.get_asset("XYZUSD"), 404, 40410000)


def test_wrong_and_absent_keys_are_refused(server, data):
    stranger = TradingClient("PKOTHER", "wrong", paper=True, url_override=server.url)
    with pytest.raises(APIError) as caught:
        stranger.get_account()
    assert caught.value.status_code == 403
    assert requests.get(f"{server.url}/v2/account", timeout=5).status_code == 401
    server.control("bars", rows=five_bars())
    assert closes(data) == []  # needs no key


def test_orders_are_listed_by_status_time_symbol_and_direction(server, client):
    server.control("plan", kind="stuck", times=1, symbol="ETH/USD")
    ids = [client.submit_order(order("buy", 0.01, f"o-{k}")).id for k in range(3)]
    server.control("advance", seconds=60)
    resting = client.submit_order(order("buy", 0.1, "eth", symbol="ETH/USD"))
    assert [o.id for o in all_orders(client)] == [resting.id, *reversed(ids)]
    assert [o.id for o in all_orders(client, direction="asc", limit=2)] == ids[:2]
    assert [o.id for o in client.get_orders()] == [resting.id]
    assert [o.id for o in all_orders(client, after=START + timedelta(seconds=30))] == [resting.id]
    assert [o.id for o in all_orders(client, until=START + timedelta(seconds=30), limit=500)] == ids[::-1]
    assert [o.id for o in all_orders(client, symbols=["ETH/USD"])] == [resting.id]
    page = all_orders(client, direction="asc", after=client.get_order_by_id(ids[0]).submitted_at)
    assert [o.id for o in page] == [*ids[1:], resting.id]
    refused(lambda: all_orders(client, limit=501), 422, 40010001)


# -- the life of an order


def test_a_delayed_order_is_pending_then_new_then_filled(server, client):
    server.control("set", fill_gets=2)
    sent = client.submit_order(order("buy", 0.1, "slow"))
    assert sent.status is OrderStatus.PENDING_NEW
    assert server.state()["buying_power"] == "95000"
    server.control("price", symbol=BTC, price="51000")
    assert client.get_order_by_client_id("slow").status is OrderStatus.NEW
    filled = client.get_order_by_client_id("slow")
    assert (filled.status, filled.filled_avg_price) == (OrderStatus.FILLED, "51000")
    server.control("set", fill_gets=0, fill_s=30)
    client.submit_order(order("buy", 0.1, "slower"))
    server.control("advance", seconds=29)
    assert client.get_order_by_client_id("slower").status is OrderStatus.NEW
    server.control("advance", seconds=1)
    assert client.get_order_by_client_id("slower").status is OrderStatus.FILLED


def test_an_order_that_has_become_too_dear_or_has_no_price_is_cancelled(server, client):
    server.control("set", fill_gets=1)
    client.submit_order(order("buy", 1.5, "late"))
    server.control("price", symbol=BTC, price="70000")
    assert client.get_order_by_client_id("late").status is OrderStatus.CANCELED
    client.submit_order(order("buy", 0.1, "unpriced"))
    server.control("price", symbol=BTC, price=None)
    assert client.get_order_by_client_id("unpriced").status is OrderStatus.CANCELED
    assert client.get_account().cash == "100000"


def test_a_partial_fill_is_kept_when_the_rest_is_cancelled(server, client):
    server.control("plan", kind="partial_then_cancel", fraction="0.4")
    sent = client.submit_order(order("buy", 0.5, "part"))
    assert (sent.status, sent.filled_qty) == (OrderStatus.PARTIALLY_FILLED, "0.2")
    assert server.state()["buying_power"] == "75000"
    ended = client.get_order_by_client_id("part")
    assert (ended.status, ended.filled_qty, ended.filled_avg_price) == (OrderStatus.CANCELED, "0.2", "50000")
    assert ended.canceled_at is not None
    assert ended.filled_at is None
    state = server.state()
    assert (state["cash"], state["buying_power"]) == ("90000", "90000")
    assert state["positions"][BTC]["qty"] == "0.1995"


def test_a_partial_fill_is_completed_later_at_the_later_price(server, client):
    server.control("plan", kind="partial_then_rest", fraction="0.25", gets=0, after_s=10)
    client.submit_order(order("buy", 0.4, "part"))
    server.control("price", symbol=BTC, price="52000")
    assert client.get_order_by_client_id("part").status is OrderStatus.PARTIALLY_FILLED
    server.control("advance", seconds=10)
    ended = client.get_order_by_client_id("part")
    assert (ended.status, ended.filled_qty, ended.filled_avg_price) == (OrderStatus.FILLED, "0.4", "51500")
    fills = client.get("/account/activities/FILL", {"direction": "asc"})
    assert [(f["type"], f["qty"], f["leaves_qty"]) for f in fills] == [
        ("partial_fill", "0.1", "0.3"),
        ("fill", "0.3", "0"),
    ]


def test_a_stuck_order_holds_the_coins_until_it_is_cancelled(server, client):
    client.submit_order(order("buy", 0.1))
    server.control("plan", kind="stuck", side="sell")
    stuck = client.submit_order(order("sell", 0.05, "stuck"))
    for _ in range(3):
        assert client.get_order_by_id(stuck.id).status is OrderStatus.NEW
    assert client.get_open_position("BTCUSD").qty_available == "0.04975"
    refused(lambda: client.submit_order(order("sell", 0.06)), 403, 40310000)
    server.control("set", cancel_gets=1)
    server.control("fault", kind="not_cancelable")
    refused(lambda: client.cancel_order_by_id(stuck.id), 422, 42210000)
    assert client.cancel_order_by_id(stuck.id) is None
    assert server.state()["orders"][-1]["status"] == "pending_cancel"
    assert client.get_order_by_id(stuck.id).status is OrderStatus.CANCELED
    assert 'already in "canceled"' in refused(lambda: client.cancel_order_by_id(stuck.id), 422, 42210000)
    assert client.get_open_position("BTCUSD").qty_available == "0.09975"


@pytest.mark.parametrize(("kind", "status"), [("rejected", OrderStatus.REJECTED), ("expired", OrderStatus.EXPIRED)])
def test_an_accepted_order_can_still_be_rejected_or_expire(server, client, kind, status):
    server.control("plan", kind=kind)
    assert client.submit_order(order("buy", 0.1, "no")).status is OrderStatus.PENDING_NEW
    assert client.get_order_by_client_id("no").status is status
    assert client.get_account().buying_power == "100000"


def test_a_venue_can_end_an_order_by_itself_and_plans_can_be_written_out(server, client):
    steps = [{"do": "fill", "fraction": "0.1"}, {"do": "fill", "fraction": "0.2", "gets": 1}]
    server.control("plan", steps=steps)
    client.submit_order(order("buy", 1, "own"))
    assert client.get_order_by_client_id("own").filled_qty == "0.3"
    server.control("step", client_order_id="own", action="cancel")
    assert server.state()["orders"][0]["status"] == "canceled"


def test_everything_is_cancelled_and_closed(server, client):
    for symbol in (BTC, "ETH/USD"):
        client.submit_order(order("buy", 0.5, symbol=symbol))
    server.control("plan", kind="stuck")
    client.submit_order(order("sell", 0.2, "stuck"))
    first = client.close_all_positions()
    assert [(each.symbol, each.status) for each in first] == [("BTCUSD", 403), ("ETHUSD", 200)]
    assert [each.status for each in client.cancel_orders()] == [200]
    half = client.close_position("BTCUSD", ClosePositionRequest(percentage="50"))
    assert half.filled_qty == "0.249375"
    server.control("plan", kind="stuck")
    client.submit_order(order("sell", 0.1, "stuck-2"))
    assert [each.status for each in client.close_all_positions(cancel_orders=True)] == [200]
    assert client.get_all_positions() == []
    assert client.get_order_by_client_id("stuck-2").status is OrderStatus.CANCELED


def test_fees_are_activities_of_their_own(server, client):
    client.submit_order(order("buy", 0.1))
    client.submit_order(order("sell", 0.05))
    server.control("cash", amount="-250.5")
    sale, buy = client.get("/account/activities/CFEE")
    assert (buy["symbol"], buy["qty"], buy["net_amount"]) == ("BTCUSD", "-0.00025", "0")
    assert (sale["qty"], sale["net_amount"]) == ("0", "-6.25")
    every = client.get("/account/activities", {"page_size": 2})
    assert [each["activity_type"] for each in every] == ["CSW", "CFEE"]
    later = client.get("/account/activities", {"page_token": every[-1]["id"]})
    assert [each["activity_type"] for each in later] == ["FILL", "CFEE", "FILL"]


# -- what others do to the account


def test_orders_coins_and_cash_of_others_change_the_account(server, client):
    server.control("foreign_order", symbol=BTC, side="buy", qty="0.2")
    server.control("position", symbol="DOGE/USD", qty="1000", avg_entry_price="0.1")
    server.control("cash", amount="500")
    server.control("price", symbol="DOGE/USD", price="0.12")
    assert {p.symbol: p.qty for p in client.get_all_positions()} == {"BTCUSD": "0.1995", "DOGEUSD": "1000"}
    assert client.get_account().cash == "90500"
    (foreign,) = all_orders(client)
    assert (foreign.status, foreign.symbol) == (OrderStatus.FILLED, BTC)
    assert server.state()["orders"][0]["is_foreign"]
    server.control("foreign_order", symbol=BTC, side="sell", qty="0.1", steps=[])
    assert client.get_open_position("BTCUSD").qty_available == "0.0995"


# -- faults


@pytest.mark.parametrize(("kind", "arrives"), [("drop_before", False), ("drop_after", True)])
def test_a_dropped_answer_leaves_the_order_to_be_looked_up(server, client, kind, arrives):
    server.control("fault", kind=kind, method="POST", path="/v2/orders")
    with pytest.raises(requests.ConnectionError):
        client.submit_order(order("buy", 0.1, "lost"))
    if arrives:
        assert client.get_order_by_client_id("lost").status is OrderStatus.FILLED
    else:
        refused(lambda: client.get_order_by_client_id("lost"), 404, 40410000)
    assert len(client.get_all_positions()) == arrives
    assert next((each["fault"], each["status"]) for each in server.control("requests")) == (kind, None)


@pytest.mark.parametrize(("kind", "arrives"), [("hang_before", False), ("hang_after", True)])
def test_a_hanging_request_outlasts_the_clients_patience(server, kind, arrives):
    server.control("fault", kind=kind, method="POST", wall_s=0.4)
    body = {"symbol": BTC, "qty": "0.1", "side": "buy", "type": "market", "time_in_force": "ioc"}
    headers = {"APCA-API-KEY-ID": server.key, "APCA-API-SECRET-KEY": server.secret}
    with pytest.raises(requests.ReadTimeout):
        requests.post(f"{server.url}/v2/orders", json=body, headers=headers, timeout=0.1)
    assert len(server.state()["orders"]) == arrives  # others are answered in the meantime


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_status_fault_is_answered_so_often_and_nothing_happens(server, client, status):
    server.control("fault", kind=status, times=2, retry_after="7")
    for _ in range(2):
        with pytest.raises(APIError) as caught:
            client.submit_order(order("buy", 0.1, "busy"))
        assert caught.value.status_code == status
        assert caught.value.response.headers["Retry-After"] == "7"
    assert server.state()["orders"] == []
    assert client.submit_order(order("buy", 0.1, "busy")).status is OrderStatus.FILLED


def test_a_fault_can_hide_an_order_that_was_taken(server, client):
    server.control("fault", kind=500, method="POST", processed=True)
    with pytest.raises(APIError):
        client.submit_order(order("buy", 0.1, "hidden"))
    assert client.get_order_by_client_id("hidden").status is OrderStatus.FILLED


@pytest.mark.parametrize("kind", ["truncate", "html"])
def test_a_damaged_answer_is_no_json(server, client, kind):
    server.control("fault", kind=kind, path="/v2/account")
    with pytest.raises((requests.JSONDecodeError, requests.exceptions.ChunkedEncodingError)):
        client.get_account()
    assert client.get_account().cash == "100000"


def test_faults_match_method_and_path_and_may_wait(server, client):
    server.control("fault", kind=503, method="GET", path="positions", skip=1)
    assert client.get_account().cash == "100000"
    assert client.get_all_positions() == []
    with pytest.raises(APIError):
        client.get_all_positions()
    assert client.get_all_positions() == []
    server.control("fault", kind=500, method="GET", path="/v2/orders")
    assert client.submit_order(order("buy", 0.1)).status is OrderStatus.FILLED
    server.control("clear_faults")
    assert len(all_orders(client)) == 1
    client.submit_order(order("sell", 0.09975))
    assert client.get_all_positions() == []


def test_an_order_arrives_after_so_many_requests(server, client):
    server.control("fault", kind="late", after_requests=2)
    with pytest.raises(requests.ConnectionError):
        client.submit_order(order("buy", 0.1, "slow"))
    refused(lambda: client.get_order_by_client_id("slow"), 404, 40410000)
    assert client.get_order_by_client_id("slow").status is OrderStatus.FILLED


def test_a_late_order_whose_id_was_sent_again_is_refused(server, client):
    server.control("fault", kind="late", after_s=60)
    with pytest.raises(requests.ConnectionError):
        client.submit_order(order("buy", 0.1, "twice"))
    client.submit_order(order("buy", 0.1, "twice"))
    server.control("advance", seconds=60)
    state = server.state()
    assert len(state["orders"]) == 1
    assert [each["refusal"]["message"] for each in state["late_refusals"]] == ["client_order_id must be unique"]


def test_the_date_header_is_the_servers_clock_with_its_skew(server, client):
    def date():
        return parsedate_to_datetime(requests.get(f"{server.url}/_state", timeout=5).headers["Date"])

    assert date() == START
    server.control("set", date_skew_s=-90)
    assert date() == client.get_clock().timestamp == START - timedelta(seconds=90)
    server.control("now", at=None)
    assert abs(date() - datetime.now(UTC) + timedelta(seconds=90)) < timedelta(seconds=5)


def test_another_process_goes_on_with_the_same_account(server, client):
    server.control("bars", rows=five_bars())
    server.control("plan", kind="stuck")
    client.submit_order(order("buy", 0.1, "stuck"))
    client.submit_order(order("buy", 0.123456789, "done"))
    server.control("fault", kind="late", after_requests=9)
    with pytest.raises(requests.ConnectionError):
        client.submit_order(order("buy", 0.1, "under way"))
    server.control("fault", kind=503, path="clock")
    before, dump = server.state(), server.control("dump")
    server.restart()
    assert server.state() == before
    assert server.control("dump") == dump
    with pytest.raises(APIError):
        client.get_clock()


def test_a_stopped_server_refuses_connections(server, client):
    state = server.control("dump")
    server.stop()
    with pytest.raises(requests.ConnectionError):
        client.get_account()
    server.start()
    server.control("load", state=state)
    assert client.get_account().cash == "100000"


def test_a_wrong_control_call_is_refused(server):
    for name, fields in (("nothing", {}), ("fault", {"kind": "x"}), ("set", {"speed": 1}), ("market", {})):
        with pytest.raises(ValueError, match=name):
            server.control(name, **fields)


def test_the_same_calls_have_the_same_answers(server, client):
    def play():
        server.control("reset", now=START.isoformat(), fill_gets=1)
        server.control("price", symbol=BTC, price="50000")
        client.submit_order(order("buy", 0.1))
        client.get_account()
        client.submit_order(order("sell", 0.05, "s"))
        return server.state(), client.get("/account/activities")

    assert play() == play()


# -- bars


def test_a_bar_is_shown_from_its_close_and_the_delay_on(server, data):
    server.control("bars", rows=five_bars(), step_s=60)
    server.control("set", publish_delay_s=2)
    for seconds, expected in ((59, []), (1, []), (1, []), (1, [101.0]), (60, [101.0, 102.0])):
        server.control("advance", seconds=seconds)
        assert closes(data) == expected
    (latest,) = data.get_crypto_latest_bar(CryptoLatestBarRequest(symbol_or_symbols=BTC)).values()
    assert (latest.close, latest.timestamp) == (102.0, START + MINUTE)


def test_orders_fill_at_the_last_closed_bar_published_or_not(server, client, data):
    server.control("price", symbol=BTC, price=None)
    server.control("bars", rows=five_bars())
    server.control("set", publish_delay_s=30, half_spread="0.001")
    refused(lambda: client.submit_order(order("buy", 1)), 422, 40010001)
    server.control("now", at=(START + 2 * MINUTE).isoformat())
    assert client.submit_order(order("buy", 1)).filled_avg_price == "102.102"
    quote = data.get_crypto_latest_quote(CryptoLatestQuoteRequest(symbol_or_symbols=BTC))[BTC]
    assert (quote.bid_price, quote.ask_price) == (101.898, 102.102)


def test_bars_come_in_small_pages(server, data):
    server.control("bars", rows=five_bars() | five_bars("ETH/USD"))
    server.control("now", at=(START + 10 * MINUTE).isoformat())
    server.control("set", page_rows=3)
    whole = ask_bars(data, BTC, "ETH/USD", "XYZ/USD").data
    assert {symbol: [bar.close for bar in bars] for symbol, bars in whole.items()} == {
        BTC: [101.0, 102.0, 103.0, 104.0, 105.0],
        "ETH/USD": [101.0, 102.0, 103.0, 104.0, 105.0],
    }
    assert len(server.control("requests")) == 4
    assert closes(data, sort="desc") == [105.0, 104.0, 103.0, 102.0, 101.0]
    assert closes(data, limit=4) == [101.0, 102.0, 103.0, 104.0]
    assert closes(data, start=START + MINUTE, end=START + 3 * MINUTE) == [102.0, 103.0, 104.0]


def test_bars_are_joined_to_longer_ones(server, data):
    server.control("bars", rows=five_bars())
    server.control("now", at=(START + 5 * MINUTE).isoformat())
    (bar,) = ask_bars(data, BTC, minutes=5).data[BTC]
    assert (bar.open, bar.high, bar.low, bar.close, bar.volume) == (100.0, 106.0, 99.0, 105.0, 150.0)
    server.control("now", at=(START + 4 * MINUTE).isoformat())
    assert closes(data, minutes=5) == []
    server.control("set", show_open_bar=True)
    assert closes(data, minutes=5) == [104.0]
    assert closes(data, minutes=5, start=START + MINUTE) == []


def test_bars_are_late_missing_and_revised(server, data):
    server.control("bars", rows=five_bars() | five_bars("ETH/USD"))
    third = (START + 2 * MINUTE).isoformat()
    server.control("missing_bar", symbol=BTC, time=(START + MINUTE).isoformat())
    server.control("revised_bar", symbol=BTC, time=third, first={"c": 99.5}, after_s=45)
    server.control("late_bar", symbol="ETH/USD", seconds=20)
    server.control("late_bar", symbol=BTC, time=START.isoformat(), seconds=500)
    server.control("now", at=(START + 3 * MINUTE).isoformat())
    assert closes(data) == [99.5]
    assert closes(data, "ETH/USD") == [101.0, 102.0]
    server.control("advance", seconds=45)
    assert closes(data) == [103.0]
    assert closes(data, "ETH/USD") == [101.0, 102.0, 103.0]
    server.control("advance", seconds=500)
    assert closes(data) == [101.0, 103.0, 104.0, 105.0]


def test_an_unfinished_bar_and_doubled_rows_on_demand(server, data):
    server.control("bars", rows=five_bars())
    server.control("now", at=(START + timedelta(seconds=90)).isoformat())
    assert closes(data) == [101.0]
    server.control("set", show_open_bar=True)
    bars = ask_bars(data).data[BTC]
    assert [(bar.open, bar.close, bar.volume) for bar in bars] == [(100.0, 101.0, 10.0), (101.0, 101.0, 10.0)]
    server.control("set", show_open_bar=False)
    server.control("fault", kind="duplicate_rows")
    assert closes(data) == [101.0, 101.0]
    assert closes(data) == [101.0]


def test_a_wrong_question_for_bars_is_refused(server):
    url = f"{server.url}/v1beta3/crypto/us/bars"
    for change in ({"symbols": "BTCUSD"}, {"timeframe": "7x"}, {"page_token": "?"}, {"timeframe": "90Min", "step": 1}):
        server.control("bars", rows={}, step_s=3_600 if change.pop("step", None) else 60)
        answer = requests.get(url, {"symbols": BTC, "timeframe": "1Min"} | change, timeout=5)
        assert answer.status_code == 400, answer.text


def test_a_request_takes_milliseconds(server, client):
    began = time.perf_counter()
    for _ in range(20):
        client.get_account()
    assert time.perf_counter() - began < 2.0
