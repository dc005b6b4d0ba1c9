"""Why the trader's account differs from the simulator's on the same bars: USD by cause, and what is left.

Both accounts start alike. From one bar to the next their difference changes by what each paid for its fills and by the
prices of the coins that only one of them holds. So every cause is either a cost of a fill or coins held too many or too
few, which earn or lose what their price does until they are traded back. The causes sum to the difference exactly:
`path` is what the others do not explain.

A gain for the trader is positive. The simulator fills at the bar's close, worse by its slippage rate, and takes its fee
rate of that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from math import inf, isfinite, isnan

from train.validation.metrics import bar_returns
from train.validation.overfitting import estimate_sharpe, minimum_track_record_length, probabilistic_sharpe

DUST_USD = 0.01  # a smaller fill of the simulator is rounding
LEAST_RETURNS = 100  # before that a Sharpe ratio is not worth stating
NO_ORDER = "no order"


@dataclass(frozen=True)
class Rates:
    """What the simulator pays, as fractions of notional."""

    buy_fee: float
    sell_fee: float
    slippage: float

    def fee(self, sign: int) -> float:
        """The fee rate of a purchase (1) or sale (-1)."""
        return self.buy_fee if sign > 0 else self.sell_fee

    def price(self, reference: float, sign: int) -> float:
        """The price that the simulator would fill at, from a close or mid."""
        return reference * (1.0 + sign * self.slippage)

    def cost(self, notional: float, sign: int) -> float:
        """Slippage and fee, in USD, of a fill of this notional at the close."""
        return notional * (self.slippage + self.fee(sign) * (1.0 + sign * self.slippage))


@dataclass(frozen=True)
class Fill:
    """What an order filled, and what was known around it."""

    ticker: str
    sign: int  # 1 buy, -1 sell
    qty: float  # coins, above 0
    price: float  # average, USD
    close: float  # of the bar that the order was sized at, USD
    mid: float | None  # quote when it was sent, USD
    fee: float | None  # USD; None while the account was not compared


@dataclass(frozen=True)
class FillDrift:
    """USD against the simulator's fill at the same close. None is unknown."""

    fee: float | None
    spread: float | None  # price against the mid, beyond the slippage rate
    delay: float | None  # mid when sent against the bar's close
    price: float  # both together


@dataclass(frozen=True)
class Causes:
    """USD by cause; they sum to the trader's equity minus the simulator's."""

    fee: float = 0.0
    spread: float = 0.0  # of fills whose mid is known
    delay: float = 0.0  # likewise
    spread_and_delay: float = 0.0  # of fills without a mid, which cannot be split
    rounding: float = 0.0  # quantities sent against quantities sized
    missed: float = 0.0  # orders that did not fill, and fills of the simulator without an order
    path: float = 0.0  # the rest

    @property
    def total(self) -> float:
        """The difference of both accounts."""
        return sum(getattr(self, f.name) for f in fields(self))

    def __add__(self, other: Causes) -> Causes:
        """Sum, cause by cause."""
        return Causes(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __sub__(self, other: Causes) -> Causes:
        """Difference, cause by cause: of a later moment minus an earlier one."""
        return Causes(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(self)))


def fill_drift(fill: Fill, rates: Rates) -> FillDrift:
    """What one fill cost more (below 0) or less than the simulator's at the same close."""
    paid = -fill.sign * fill.qty  # times a price: cash

    def against(price: float, reference: float) -> float:
        return paid * (price - reference)

    expected = rates.price(fill.close, fill.sign)
    fee = None if fill.fee is None else fill.qty * fill.price * rates.fee(fill.sign) - fill.fee
    if fill.mid is None:
        return FillDrift(fee, None, None, against(fill.price, expected))
    at_mid = rates.price(fill.mid, fill.sign)
    return FillDrift(fee, against(fill.price, at_mid), against(at_mid, expected), against(fill.price, expected))


# ------------------------------------------------------------------------------------------------------- bar after bar
@dataclass(frozen=True)
class Held:
    """Both accounts at a bar's close, after its orders. Coins by ticker."""

    equity: float
    sim_equity: float
    qty: Mapping[str, float]
    sim_qty: Mapping[str, float]
    close: Mapping[str, float]


@dataclass(frozen=True)
class Shortfall:
    """An order, or part of one, that did not fill."""

    ticker: str
    coins: float  # signed: above 0 not bought, below 0 not sold
    reason: str


@dataclass
class DriftFold:
    """The causes so far; one call for every bar on which both accounts are known."""

    causes: Causes = Causes()
    n_missed: Counter[str] = field(default_factory=Counter)  # shortfalls, by reason
    n_fills: int = 0
    n_without_mid: int = 0
    n_without_fee: int = 0
    notional: float = 0.0  # filled, at the closes, USD
    slippage: float = 0.0  # paid above the close on purchases and below it on sales, USD
    expected_slippage: float = 0.0
    fees: float = 0.0
    expected_fees: float = 0.0

    def __post_init__(self) -> None:
        self._last: Held | None = None
        self._missed: dict[str, float] = {}  # coins held too many (few) for each cause, by ticker
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
            now: both accounts.
            fills: of the trader since the last call.
            shortfalls: of the trader's orders since the last call.
            rounding: coins by ticker that filled orders were larger than sized, signed as purchases.
            excused: why coins had no order that could fill, by ticker; empty where that is not known yet.
            rates: of the simulator.
        """
        before, self._last = self._last, now
        if before is None:  # nobody has traded yet; adopted coins can make a difference already
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
        """Shrink the coins of both causes to what the accounts differ by: the rest has been traded back.

        Returns:
            What trading missed coins back cost the simulator and not the trader, USD; below 0 if the trader paid.
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
    """What the simulator paid for the coins that the trader did not trade, USD."""
    sign = 1 if missed.coins > 0 else -1
    simulated = sign * _simulated(before, now).get(missed.ticker, 0.0)
    coins = max(min(simulated, abs(missed.coins)), 0.0)
    return rates.cost(coins * now.close.get(missed.ticker, 0.0), sign)


def _simulated(before: Held, now: Held) -> dict[str, float]:
    """Coins that the simulator traded, by ticker; purchases are above 0."""
    changes = {t: q - before.sim_qty.get(t, 0.0) for t, q in now.sim_qty.items()}
    return {t: q for t, q in changes.items() if abs(q) * now.close.get(t, 0.0) > DUST_USD}


# -------------------------------------------------------------------------------------------------------- track record
@dataclass(frozen=True)
class TrackRecord:
    """How sure the returns so far make a Sharpe ratio above 0 (Bailey and Lopez de Prado 2012).

    Bars are taken for independent of each other. A confidence is how often chance alone would show less.
    """

    n_returns: int
    confidence: float | None  # that the true Sharpe ratio is above 0; None is unknown
    more_bars: float | None  # still needed for 95 % if the ratio stays; inf: no number would do; None is unknown
    why_unknown: str = ""


def track_record(equity: Sequence[float], benchmark: Sequence[float] | None = None) -> TrackRecord:
    """The record of (n + 1,) equity, or of its returns minus the benchmark's, from one decision to the next."""
    r = bar_returns(equity)
    if benchmark is not None:
        r = r - bar_returns(benchmark)
    if r.size < LEAST_RETURNS:
        return TrackRecord(r.size, None, None, f"{r.size} of the {LEAST_RETURNS} bars that a first figure needs")
    estimate = estimate_sharpe(r)
    confidence, length = probabilistic_sharpe(estimate), minimum_track_record_length(estimate)
    if isnan(confidence) or isnan(length):
        return TrackRecord(r.size, None, None, "the returns do not vary")
    return TrackRecord(r.size, confidence, max(length - r.size, 0.0) if isfinite(length) else inf)
