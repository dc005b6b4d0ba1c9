"""Attribution of the difference between the trader's account and the simulator's, in USD by cause.

Both accounts start with the same cash and coins. At each bar, their difference changes by the costs of each account's
fills, and by the price changes of coins that only one account holds. Every cause is therefore either the cost of a
fill, or the gain or loss on excess or missing coins until they are traded back. `path` is the remainder, so the causes
sum exactly to the difference.

Gains of the trader are positive. The simulator fills orders at the bar's close plus or minus its slippage rate, and
charges its fee rate on that price.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from math import inf, isfinite, isnan

from train.validation.metrics import bar_returns
from train.validation.overfitting import estimate_sharpe, minimum_track_record_length, probabilistic_sharpe

DUST_USD = 0.01  # smaller fills of the simulator are rounding errors
LEAST_RETURNS = 100  # minimum number of returns for a Sharpe ratio
NO_ORDER = "no order"


@dataclass(frozen=True)
class Rates:
    """Costs of the simulator, as fractions of notional."""

    buy_fee: float
    sell_fee: float
    slippage: float

    def fee(self, sign: int) -> float:
        """Return the fee rate of a buy (1) or a sale (-1)."""
        return self.buy_fee if sign > 0 else self.sell_fee

    def price(self, reference: float, sign: int) -> float:
        """Return the simulator's fill price for a close or mid price."""
        return reference * (1.0 + sign * self.slippage)

    def cost(self, notional: float, sign: int) -> float:
        """Return slippage plus fee, in USD, of a fill with this notional at the close."""
        return notional * (self.slippage + self.fee(sign) * (1.0 + sign * self.slippage))


@dataclass(frozen=True)
class Fill:
    """The fill of an order, with its reference prices and fee."""

    ticker: str
    sign: int  # 1 buy, -1 sell
    qty: float  # coins, above 0
    price: float  # average, USD
    close: float  # close of the bar that sized the order, USD
    mid: float | None  # mid quote when the order was sent, USD
    fee: float | None  # USD; None until the account is reconciled


@dataclass(frozen=True)
class FillDrift:
    """Difference of a fill from the simulator's fill at the same close, in USD. None means unknown."""

    fee: float | None
    spread: float | None  # fill price relative to the mid, beyond the slippage rate
    delay: float | None  # mid price when the order was sent, relative to the bar's close
    price: float  # spread plus delay


@dataclass(frozen=True)
class Causes:
    """Differences in USD by cause, which sum to the trader's equity minus the simulator's."""

    fee: float = 0.0
    spread: float = 0.0  # fills with a known mid
    delay: float = 0.0  # fills with a known mid
    spread_and_delay: float = 0.0  # fills without a mid price, for which spread and delay cannot be separated
    rounding: float = 0.0  # sent quantities minus sized quantities
    missed: float = 0.0  # unfilled orders, and fills of the simulator without an order
    path: float = 0.0  # the remainder

    @property
    def total(self) -> float:
        """Trader's equity minus the simulator's, in USD."""
        return sum(getattr(self, f.name) for f in fields(self))

    def __add__(self, other: Causes) -> Causes:
        """Return the sum of each cause."""
        return Causes(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __sub__(self, other: Causes) -> Causes:
        """Return the difference of each cause, for example between two times."""
        return Causes(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(self)))


def fill_drift(fill: Fill, rates: Rates) -> FillDrift:
    """Compare a fill with the simulator's fill at the same close. Values below 0 are extra costs."""
    paid = -fill.sign * fill.qty  # times a price: cash

    def against(price: float, reference: float) -> float:
        return paid * (price - reference)

    expected = rates.price(fill.close, fill.sign)
    fee = None if fill.fee is None else fill.qty * fill.price * rates.fee(fill.sign) - fill.fee
    if fill.mid is None:
        return FillDrift(fee, None, None, against(fill.price, expected))
    at_mid = rates.price(fill.mid, fill.sign)
    return FillDrift(fee, against(fill.price, at_mid), against(at_mid, expected), against(fill.price, expected))


# --------------------------------------------------------------------------------------------------------- bar by bar
@dataclass(frozen=True)
class Held:
    """State of both accounts at a bar's close, after its orders. Coins are by ticker."""

    equity: float
    sim_equity: float
    qty: Mapping[str, float]
    sim_qty: Mapping[str, float]
    close: Mapping[str, float]


@dataclass(frozen=True)
class Shortfall:
    """The unfilled part of an order."""

    ticker: str
    coins: float  # above 0: not bought; below 0: not sold
    reason: str


@dataclass
class DriftFold:
    """Accumulator of the causes. Call `bar` once for each bar for which both accounts are known."""

    causes: Causes = Causes()
    n_missed: Counter[str] = field(default_factory=Counter)  # shortfalls, by reason
    n_fills: int = 0
    n_without_mid: int = 0
    n_without_fee: int = 0
    notional: float = 0.0  # filled, at the closes, USD
    slippage: float = 0.0  # paid above the close on buys and below the close on sales, USD
    expected_slippage: float = 0.0
    fees: float = 0.0
    expected_fees: float = 0.0

    def __post_init__(self) -> None:
        self._last: Held | None = None
        self._missed: dict[str, float] = {}  # excess (below 0: missing) coins of each cause, by ticker
        self._rounding: dict[str, float] = {}

    def bar(
        self,
        now: Held,
        fills: Sequence[Fill],
        shortfalls: Sequence[Shortfall],
        rounding: Mapping[str, float],
        excused: Mapping[str, str],
        rates: Rates,
    ) -> None:
        """Add one bar.

        Args:
            now: state of both accounts.
            fills: the trader's fills since the last call.
            shortfalls: unfilled parts of the trader's orders since the last call.
            rounding: coins by ticker that were filled beyond the sized quantity; positive for buys.
            excused: reason by ticker why no order could fill; "" if the reason is not known yet.
            rates: costs of the simulator.
        """
        before, self._last = self._last, now
        if before is None:  # no trades yet, but adopted coins can already cause a difference
            self.causes = Causes(path=now.equity - now.sim_equity)
            return
        moved = {t: close - before.close.get(t, close) for t, close in now.close.items()}
        found = Causes(
            rounding=sum(coins * moved.get(t, 0.0) for t, coins in self._rounding.items()),
            missed=sum(coins * moved.get(t, 0.0) for t, coins in self._missed.items()),
        )
        for fill in fills:
            found += self._fill(fill, rates)
        ordered = {f.ticker for f in (*fills, *shortfalls)} | {t for t, why in excused.items() if not why}
        without = [(t, coins) for t, coins in _simulated(before, now).items() if t not in ordered]
        missed = [*shortfalls, *(Shortfall(t, coins, excused.get(t, NO_ORDER)) for t, coins in without)]
        for m in missed:
            found += Causes(missed=_cost_saved(m, before, now, rates))
            self.n_missed[m.reason] += 1
            self._missed[m.ticker] = self._missed.get(m.ticker, 0.0) - m.coins
        for ticker, coins in rounding.items():
            self._rounding[ticker] = self._rounding.get(ticker, 0.0) + coins
        found += Causes(missed=self._trade_back(before, now, fills, rates))
        change = (now.equity - now.sim_equity) - (before.equity - before.sim_equity)
        self.causes += replace(found, path=change - found.total)

    def _fill(self, fill: Fill, rates: Rates) -> Causes:
        d = fill_drift(fill, rates)
        self.n_fills += 1
        self.n_without_mid += fill.mid is None
        self.n_without_fee += fill.fee is None
        self.notional += fill.qty * fill.close
        self.slippage += fill.sign * fill.qty * (fill.price - fill.close)
        self.expected_slippage += fill.qty * fill.close * rates.slippage
        if fill.fee is not None:
            self.fees += fill.fee
            self.expected_fees += fill.qty * fill.price * rates.fee(fill.sign)
        if d.spread is None or d.delay is None:
            return Causes(fee=d.fee or 0.0, spread_and_delay=d.price)
        return Causes(fee=d.fee or 0.0, spread=d.spread, delay=d.delay)

    def _trade_back(self, before: Held, now: Held, fills: Sequence[Fill], rates: Rates) -> float:
        """Reduce the coins of both causes to the difference between the accounts; the rest has been traded back.

        Returns:
            Cost of trading the missed coins back, in USD, if the simulator paid it instead of the trader. Below 0 if
            the trader paid it.
        """
        saved, simulated = 0.0, _simulated(before, now)
        for ticker in self._missed.keys() | self._rounding.keys():
            missed, rounding = self._missed.get(ticker, 0.0), self._rounding.get(ticker, 0.0)
            apart = now.qty.get(ticker, 0.0) - now.sim_qty.get(ticker, 0.0)
            share = min(apart / (missed + rounding), 1.0) if (missed + rounding) * apart > 0.0 else 0.0
            self._missed[ticker], self._rounding[ticker] = missed * share, rounding * share
            sign, back = (1 if missed < 0.0 else -1), abs(missed) * (1.0 - share)
            traded = sum(fill.sign * fill.qty for fill in fills if fill.ticker == ticker)
            by_trader = min(max(sign * traded, 0.0), back)
            by_simulator = min(max(-sign * simulated.get(ticker, 0.0), 0.0), back - by_trader)
            close = now.close.get(ticker, 0.0)
            saved += rates.cost(by_simulator * close, -sign) - rates.cost(by_trader * close, sign)
        return saved


def _cost_saved(missed: Shortfall, before: Held, now: Held, rates: Rates) -> float:
    """Return the simulator's cost for the coins that the trader did not trade, in USD."""
    sign = 1 if missed.coins > 0 else -1
    simulated = sign * _simulated(before, now).get(missed.ticker, 0.0)
    coins = max(min(simulated, abs(missed.coins)), 0.0)
    return rates.cost(coins * now.close.get(missed.ticker, 0.0), sign)


def _simulated(before: Held, now: Held) -> dict[str, float]:
    """Return the coins that the simulator traded, by ticker; buys are positive."""
    changes = {t: q - before.sim_qty.get(t, 0.0) for t, q in now.sim_qty.items()}
    return {t: q for t, q in changes.items() if abs(q) * now.close.get(t, 0.0) > DUST_USD}


# -------------------------------------------------------------------------------------------------------- track record
@dataclass(frozen=True)
class TrackRecord:
    """Confidence that the true Sharpe ratio is above 0 (Bailey and Lopez de Prado 2012).

    Returns are assumed to be independent. The confidence is one minus the p-value.
    """

    n_returns: int
    confidence: float | None  # that the true Sharpe ratio is above 0; None if unknown
    more_bars: float | None  # bars needed for 95 % at the same ratio; inf if no number suffices; None if unknown
    why_unknown: str = ""


def track_record(equity: Sequence[float], benchmark: Sequence[float] | None = None) -> TrackRecord:
    """Return the track record of (n + 1,) equity, or of its returns minus those of a benchmark."""
    r = bar_returns(equity)
    if benchmark is not None:
        r = r - bar_returns(benchmark)
    if r.size < LEAST_RETURNS:
        return TrackRecord(r.size, None, None, f"{r.size} of at least {LEAST_RETURNS} bars")
    estimate = estimate_sharpe(r)
    confidence, length = probabilistic_sharpe(estimate), minimum_track_record_length(estimate)
    if isnan(confidence) or isnan(length):
        return TrackRecord(r.size, None, None, "the returns do not vary")
    return TrackRecord(r.size, confidence, max(length - r.size, 0.0) if isfinite(length) else inf)
