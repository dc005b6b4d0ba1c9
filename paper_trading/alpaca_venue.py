"""Broker and bar feed that poll Alpaca's REST API through alpaca-py.

A 4xx response to an order is a rejection. After a 5xx response or no response, the outcome of the order is unknown.
API keys are read from the environment and sent in request headers. They never appear in messages, logs or files.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, date
from decimal import Decimal, InvalidOperation
from typing import Any

import requests

from market.errors import BarsError
from market.errors import VenueError as NoAssetError
from market.names import pair_of, timeframe_name
from market.sources.alpaca import Alpaca
from market.sources.assets import Keys, venue_of_assets
from market.sources.periods import Period
from market.sources.transport import DamagedAnswerError, Patience, be_patient, one_line, sent_at
from market.venues import ALPACA, OrderRule
from paper_trading.broker import (
    Intent,
    Mode,
    OutcomeUnknownError,
    RejectedError,
    Side,
    Snapshot,
    UnreachableError,
    VenueError,
    VenueOrder,
)
from paper_trading.feeds import Arrival, BarStore, Candle, Needs, Tick, needed_bars, utc

PATIENCE = Patience(connect_s=3.0, read_s=8.0, retries=2, backoff_s=0.2, longest_wait_s=5.0)
QUOTE_PATIENCE = Patience(connect_s=2.0, read_s=2.0, retries=0)  # short, because orders wait for quotes
NONSENSE = (ValueError, TypeError, KeyError, AttributeError)  # raised by parsing a malformed response
UNCLEAR = (None, 408, 425)  # 4xx responses after which the order may still have arrived
OVER = frozenset({"filled", "canceled", "expired", "rejected", "done_for_day", "replaced", "stopped", "suspended"})
SKEW_S = 1.5  # smaller differences are ignored, because the server reports whole seconds
MOST_ORDERS = 500  # per page
MOST_REFUSALS = 5  # consecutive rejections of keys that worked before; a single rejection may be temporary
GRACE_S = 2.0  # delay between a bar's close and the first request for it
POLL_S = 1.5  # interval between requests for a late bar
AGAIN_BARS = 3  # number of latest bars that are requested again, because they may be revised


class VenueClock:
    """Clock that follows the venue's time if this machine's clock differs by more than `SKEW_S`."""

    def __init__(self) -> None:
        self.skew_s = 0.0  # venue time minus local time

    def saw(self, response: requests.Response, *_: Any, **__: Any) -> None:
        """Compare the clocks; a response hook of an HTTP session."""
        theirs = sent_at(response)
        if theirs is not None:
            skew_s = theirs.timestamp() - self.local_s()
            self.skew_s = skew_s if abs(skew_s) > SKEW_S else 0.0

    def local_s(self) -> float:
        """Return the time of this machine's clock, in UTC seconds."""
        return time.time()

    def now_s(self) -> float:
        """Return the corrected time, in UTC seconds."""
        return self.local_s() + self.skew_s


class AlpacaBroker:
    """A crypto account at Alpaca.

    Args:
        keys: API keys of the account.
        tickers: coins to trade, quoted in USD.
        url: URL of the trading API; that of the paper account unless `is_live`.
        data_url: URL of the quotes; None for Alpaca's server.
        is_live: True for an account with real money.
        clock: clock that is corrected by every response.

    Raises:
        VenueError: if the keys are wrong, or if the account may not trade crypto.
        UnreachableError: if the venue does not respond.
    """

    def __init__(
        self, keys: Keys, tickers: Sequence[str], url: str, data_url: str | None, is_live: bool, clock: VenueClock
    ) -> None:  # fmt: skip
        from alpaca.data.historical import CryptoHistoricalDataClient
        from alpaca.trading.client import TradingClient

        self.mode: Mode = "LIVE" if is_live else "PAPER"
        self.asked_s, self._url = 0.0, url
        self._refusals, self._was_let_in = 0, False
        # Any: with raw_data, the clients return the raw response instead of the annotated models.
        self._client: Any = TradingClient(keys.key_id, keys.secret, paper=not is_live, raw_data=True, url_override=url)
        self._data: Any = CryptoHistoricalDataClient(raw_data=True, url_override=data_url)
        for client, patience in ((self._client, PATIENCE), (self._data, QUOTE_PATIENCE)):
            client._retry = 0
            be_patient(client._session, patience)
            client._session.hooks["response"].append(clock.saw)
        self.symbols = {ticker: pair_of(ticker, "/", "USD") for ticker in tickers}
        self._tickers = {symbol.replace("/", ""): ticker for ticker, symbol in self.symbols.items()}
        number = self._told(lambda: str(self._client.get_account()["account_number"]))
        self._was_let_in = True
        name = hashlib.sha256(number.encode()).hexdigest()[:8]
        self.account = f"{'live' if is_live else 'paper'}-{name}"

    # ---------------------------------------------------------------- queries
    def snapshot(self) -> Snapshot:
        """Return cash, positions and open orders, using three requests."""
        from alpaca.trading.enums import QueryOrderStatus
        from alpaca.trading.requests import GetOrdersRequest

        request = GetOrdersRequest(status=QueryOrderStatus.OPEN, limit=MOST_ORDERS)
        cash = self._told(lambda: _decimal(self._client.get_account()["cash"]))
        held = self._told(lambda: [(str(each["symbol"]).replace("/", ""), _decimal(each["qty"]))
                                   for each in self._client.get_all_positions()])  # fmt: skip
        orders = self._told(lambda: [self._order(each) for each in self._client.get_orders(request)])
        ours = {self._tickers[symbol]: qty for symbol, qty in held if symbol in self._tickers}
        other = {symbol: qty for symbol, qty in held if symbol not in self._tickers}
        return Snapshot(cash, dict.fromkeys(self.symbols, Decimal(0)) | ours, other, orders)

    def find(self, order_id: str) -> VenueOrder | None:
        """Return the order with this client id, or None if the venue responds with 404."""
        from alpaca.common.exceptions import APIError

        try:
            return self._told(lambda: self._order(self._client.get_order_by_client_id(order_id)), passes=(404,))
        except APIError:
            return None

    def orders_after(self, after_s: float) -> Sequence[VenueOrder]:
        """Return the newest 500 orders sent since `after_s`, in UTC seconds."""
        from alpaca.trading.enums import QueryOrderStatus
        from alpaca.trading.requests import GetOrdersRequest

        request = GetOrdersRequest(status=QueryOrderStatus.ALL, after=utc(max(after_s, 0.0)), limit=MOST_ORDERS)
        return self._told(lambda: [self._order(each) for each in self._client.get_orders(request)])

    def rules(self) -> Mapping[str, OrderRule]:
        """Return today's minimum orders and increments by ticker, without coins that cannot be traded now."""
        from alpaca.trading.enums import AssetClass
        from alpaca.trading.requests import GetAssetsRequest

        request = GetAssetsRequest(asset_class=AssetClass.CRYPTO)
        assets = self._told(lambda: [dict(each) for each in self._client.get_all_assets(request)])
        own = [each for each in assets if each.get("symbol") in self.symbols.values()]
        try:
            venue, _ = venue_of_assets(own, ALPACA, date.today().isoformat(), self._url)
        except NoAssetError:
            return {}
        return {ticker: venue.rules[ticker] for ticker in self.symbols if ticker in venue.rules}

    def quotes(self) -> Mapping[str, Decimal]:
        """Return the midpoint of the latest bid and ask by ticker."""
        from alpaca.data.requests import CryptoLatestQuoteRequest

        request = CryptoLatestQuoteRequest(symbol_or_symbols=list(self.symbols.values()))

        def ask() -> dict[str, Decimal]:
            found = self._data.get_crypto_latest_quote(request)
            told = {ticker: found[symbol] for ticker, symbol in self.symbols.items() if found.get(symbol)}
            return {ticker: (_decimal(quote["ap"]) + _decimal(quote["bp"])) / 2
                    for ticker, quote in told.items() if quote.get("ap") and quote.get("bp")}  # fmt: skip

        return self._told(ask)

    # ---------------------------------------------------------------- orders
    def send(self, intent: Intent) -> VenueOrder:
        """Send an immediate-or-cancel market order, which fills fully or partially and is then closed."""
        from alpaca.common.exceptions import APIError
        from alpaca.trading.enums import OrderSide, TimeInForce
        from alpaca.trading.requests import MarketOrderRequest

        request = MarketOrderRequest(
            symbol=self.symbols[intent.ticker], qty=float(intent.qty), side=OrderSide(intent.side),
            time_in_force=TimeInForce.IOC, client_order_id=intent.order_id,
        )  # fmt: skip
        body = request.to_request_fields() | {"qty": format(intent.qty, "f")}  # alpaca-py's float would lose digits
        try:
            with self._timed():
                return self._order(self._client.post("/orders", body))
        except APIError as error:
            status = error.status_code
            if status not in UNCLEAR and status < 500:
                raise RejectedError(f"{status}: {one_line(error)}") from None
            raise OutcomeUnknownError(f"the venue responded with status {status}") from None
        except (requests.RequestException, ValueError) as error:  # ValueError: no JSON, or no order
            raise OutcomeUnknownError(f"no response ({type(error).__name__})") from None

    def cancel(self, order: VenueOrder) -> None:
        """Request cancellation of an order.

        Raises:
            RejectedError: if the order can no longer be canceled.
            UnreachableError: if the venue does not respond.
        """
        from alpaca.common.exceptions import APIError

        try:
            self._told(lambda: self._client.cancel_order_by_id(order.venue_id), passes=(404, 422))
        except APIError as error:
            if error.status_code == 422:
                raise RejectedError(f"422: {one_line(error)}") from None

    # ---------------------------------------------------------------- requests
    def _told(self, question: Callable[[], Any], passes: Sequence[int] = ()) -> Any:
        """Send a request and return its result. API errors with a status in `passes` are re-raised unchanged."""
        from alpaca.common.exceptions import APIError

        try:
            with self._timed():
                answer = question()
            self._refusals = 0
            return answer
        except APIError as error:
            status = error.status_code
            if status in passes:
                raise
            self._refusals += status in (401, 403)
            if status in (401, 403) and (not self._was_let_in or self._refusals >= MOST_REFUSALS):
                own = "paper and live accounts have separate keys"
                raise VenueError(f"{self._url} rejected the API keys ({status}); {own}") from None
            raise UnreachableError(f"{self._url} responded with status {status}") from None
        except (requests.RequestException, *NONSENSE) as error:  # the error text may contain the request
            raise UnreachableError(f"{self._url} does not respond ({type(error).__name__})") from None

    def _order(self, told: Any) -> VenueOrder:
        """Parse an order from a response.

        Raises:
            ValueError: if the response is not an order.
        """
        try:
            side: Side = "buy" if told["side"] == "buy" else "sell"
            price, status, symbol = told.get("filled_avg_price"), str(told["status"]), str(told["symbol"])
            filled = _decimal(told.get("filled_qty") or "0")
            qty = _decimal(told.get("qty") or filled)
            return VenueOrder(
                str(told["client_order_id"]), str(told["id"]), symbol, side, qty, filled,
                None if price in (None, "") else _decimal(price), status in OVER, status,
                self._tickers.get(symbol.replace("/", "")),
            )  # fmt: skip
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError("the response is not an order") from error

    @contextmanager
    def _timed(self) -> Any:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.asked_s += time.perf_counter() - began


def _decimal(text: Any) -> Decimal:
    try:
        return Decimal(str(text))
    except InvalidOperation as error:
        raise ValueError(f"{str(text)[:40]!r} is not a number") from error


# ---------------------------------------------------------------------------------------------------------------- bars
class AlpacaFeed:
    """Feed that returns bars of the deployment's coins a few seconds after they close.

    Args:
        data_url: URL of the bars; None for Alpaca's server.
        clock: the venue's clock.
        bar_timeout_s: maximum wait for a bar after its close, in seconds.
        sleep: function that waits for the given seconds and calls its second argument meanwhile.
    """

    def __init__(
        self, data_url: str | None, clock: VenueClock, bar_timeout_s: float, sleep: Callable[[float, Tick], None]
    ) -> None:  # fmt: skip
        self._data_url, self._clock, self._timeout_s, self._sleep = data_url, clock, bar_timeout_s, sleep
        self._store: BarStore | None = None
        self._source: Alpaca | None = None
        self._last_open_s = 0

    def first(self, needs: Needs) -> Arrival:
        """Fetch the warm-up bars and return the newest closed bar that all coins have.

        Raises:
            UnreachableError: if the venue does not respond.
            BarsError: if the venue has no bars.
        """
        newest = self._begin(needs)
        assert self._store is not None
        last = [newest - n * needs.bar_seconds for n in range(AGAIN_BARS)]
        whole = next((open_s for open_s in last if not self._store.missing(open_s)), newest)
        return self._arrive(whole, [])  # `next` waits for coins whose newest bar is late

    def again(self, needs: Needs) -> Arrival:
        """Return the last bar again, for a deployment with different columns or a different lookback."""
        last = self._last_open_s
        self._begin(needs)
        return self._arrive(last, [])

    def next(self, after_s: int, tick: Tick) -> Arrival | None:
        """Wait for the next bar, or return the newest bar if several have closed."""
        assert self._store is not None
        step = self._store.needs.bar_seconds
        while True:
            newest_close = int(self._clock.now_s()) // step * step
            if newest_close <= after_s or self._clock.now_s() < newest_close + GRACE_S:
                following = newest_close if newest_close > after_s else newest_close + step
                self._sleep(max(min(following + GRACE_S - self._clock.now_s(), 30.0), 0.05), tick)
                continue
            notes = self._fetch(self._store, self._since(newest_close), newest_close)
            absent = self._store.missing(newest_close - step)
            is_late = self._clock.now_s() - newest_close >= self._timeout_s
            if not absent or (is_late and len(absent) < len(self._store.needs.tickers)):
                notes += [f"{ticker}: no bar; the coin was not traded, or its bar is late" for ticker in absent]
                return self._arrive(newest_close - step, notes)
            self._sleep(POLL_S, tick)

    def next_close_s(self, after_s: int) -> int | None:
        """Return the close time of the next bar, in UTC seconds."""
        assert self._store is not None
        step = self._store.needs.bar_seconds
        return max(int(self._clock.now_s()) // step * step + step, after_s + step)

    def _since(self, newest_close: int) -> int:
        """Return the open time of the first bar to request, which includes recent bars and any missed bars."""
        assert self._store is not None
        needs = self._store.needs
        first = min(newest_close - (AGAIN_BARS + 1) * needs.bar_seconds, self._last_open_s)
        return max(first, newest_close - needed_bars(needs) * needs.bar_seconds)

    def _begin(self, needs: Needs) -> int:
        """Fetch the warm-up bars and return the open time of the newest bar. If this fails, keep the old store."""
        store = BarStore(needs)
        self._source = Alpaca(timeframe_name(needs.bar_seconds), self._data_url, PATIENCE)
        self._source._client._session.hooks["response"].append(self._clock.saw)
        step = needs.bar_seconds
        newest_close = int(self._clock.now_s() - GRACE_S) // step * step
        self._fetch(store, newest_close - needed_bars(needs) * step, newest_close, must_answer=True)
        newest = store.newest()
        if newest is None:
            raise BarsError(f"Alpaca has no {timeframe_name(step)} bars of {', '.join(needs.tickers)} up to now")
        self._store = store
        return newest

    def _arrive(self, open_s: int, notes: list[str]) -> Arrival:
        assert self._store is not None
        self._last_open_s, here_s = open_s, time.perf_counter()
        late_s = self._clock.now_s() - open_s - self._store.needs.bar_seconds
        window, candles = self._store.window(open_s), self._store.candles_at(open_s)
        return Arrival(window, round(late_s, 3), candles, self._store.taken(open_s), tuple(notes), here_s)

    def _fetch(self, store: BarStore, first_open_s: int, end_s: int, must_answer: bool = False) -> list[str]:
        """Fetch the bars that open in [first_open_s, end_s) and return notes; missing responses count as late bars."""
        assert self._source is not None
        symbols = {self._source.symbol(ticker): ticker for ticker in store.needs.tickers}
        timeframe = timeframe_name(store.needs.bar_seconds)
        try:
            told = self._source.rows(list(symbols), timeframe, Period(utc(first_open_s), utc(end_s)))
        except (BarsError, DamagedAnswerError, requests.RequestException) as error:
            if must_answer:
                raise UnreachableError(f"no bars: {one_line(error)}") from None
            return [f"no bars: {one_line(error)}"]
        notes = []
        for symbol, ticker in symbols.items():
            for row in told.get(symbol) or ():
                open_s, candle = _candle(row)
                if candle is None or open_s % store.needs.bar_seconds or not first_open_s <= open_s < end_s:
                    notes += [] if candle is not None else [f"{ticker}: ignored an invalid bar"]
                    continue
                notes += store.add({open_s: {ticker: candle}})
        return notes


def _candle(row: Mapping[str, Any]) -> tuple[int, Candle | None]:
    """Return the open time and the candle of a row; the candle is None if its values are invalid."""
    from datetime import datetime

    try:
        open_s = datetime.fromisoformat(str(row["t"])).astimezone(UTC).timestamp()
        values = [float(row[name]) for name in ("o", "h", "l", "c", "v")]
    except (KeyError, ValueError, TypeError):
        return 0, None
    prices = values[:4]
    is_sane = all(math.isfinite(value) and value > 0 for value in prices) and math.isfinite(values[4])
    is_sane = is_sane and values[4] >= 0 and values[2] <= min(prices) and values[1] >= max(prices)
    return int(open_s), Candle(*values) if is_sane else None
