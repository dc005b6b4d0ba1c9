"""The trader. It processes every bar in the same order.

    1. switch to a new deployment, if there is one
    2. reconcile the account
    3. size the orders of the previous bar's decision at this bar's close and send them: sales, then buys
    4. value the account
    5. let the policy decide on this bar
    6. write the decision to the journal

ACTIVE trades, REDUCING only sells, HALTED sends nothing. The state is stored in the journal and survives restarts.
Only a person can return the trader to ACTIVE. If data is late, missing or unclear, the bar is skipped and its orders
are not sent later.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import numpy as np

from market.errors import BarsError
from market.times import utc_text
from market.venues import ALPACA, OrderRule
from paper_trading.books import Books
from paper_trading.broker import Broker, UnreachableError, answered
from paper_trading.dealer import Dealer
from paper_trading.desk import Desk
from paper_trading.feeds import Arrival, Feed, Needs
from paper_trading.journal import Journal
from paper_trading.ledger import Explained, Ledger, Rates
from paper_trading.listing import Listing, check_coins
from paper_trading.mandate import Mandate
from paper_trading.policy_choice import Decision, decide
from paper_trading.risk import DAY_S, State, Used
from paper_trading.settings import Hooks, Settings
from paper_trading.shadow import Shadow
from paper_trading.traded_account import TradedAccount, Window
from paper_trading.trader_memory import Memory
from train.deploy.loading import Deployment

log = logging.getLogger(__name__)


class Trader:
    """Trades one account bar by bar.

    Args:
        deployment: deployment with the policy.
        broker: the venue.
        feed: source of the bars.
        journal: journal open for appending.
        desk: sends the orders.
        memory: state restored from the journal.
        used: used part of the limits.
        settings: settings of the trader.
        hooks: callbacks to the surrounding program.
    """

    def __init__(
        self, deployment: Deployment, broker: Broker, feed: Feed, journal: Journal, desk: Desk, memory: Memory,
        used: Used, settings: Settings, hooks: Hooks,
    ) -> None:  # fmt: skip
        self.deployment, self.broker, self.feed, self.journal, self.desk = deployment, broker, feed, journal, desk
        self.memory, self.used, self.settings, self.hooks = memory, used, settings, hooks
        self.fees, self.fees_spared, self.phase = memory.fees, memory.fees_spared, "starting"
        check_coins(memory, deployment, journal)
        self.books = Books(broker, desk, journal, _rates(deployment, broker), settings.capital, memory.ledger,
                           memory.known_s, memory.theirs)  # fmt: skip
        self.mandate = Mandate(journal, settings.limits, hooks.told, memory)
        self.listing = Listing(broker, journal, deployment, hooks.told)
        self.dealer = Dealer(deployment, desk, self.books, journal, self.listing, self.mandate, used, self.reconcile)
        self.bar_s: int | None = None  # close time of the last observed bar, UTC seconds
        self.account: TradedAccount | None = None
        self.shadow: Shadow | None = None
        self.pending: np.ndarray | None = None  # (A,) decision of the last bar
        self.last_prices: dict[str, float] = {}  # closes of the last bar

    # ---------------------------------------------------------------- the loop
    def run(self, is_once: bool = False) -> None:
        """Trade until the recording ends. A signal raises an exception while the feed waits.

        Raises:
            OSError: if the journal cannot be written.
        """
        has_traded = self.begin()
        while not (is_once and has_traded):
            assert self.bar_s is not None
            self._say_phase()
            arrival = self.feed.next(self.bar_s, self._tick)
            if arrival is None:
                self.phase = "ended"
                return
            self.on_bar(arrival)
            has_traded = True

    def begin(self) -> bool:
        """Process the newest closed bar. Return True if the bar was new and on time, and was therefore traded.

        The method waits until the venue responds. After a restart, the account continues from its checkpoint.
        """
        arrival, known = self._first(), self.memory.checkpoint
        if known is not None and self.memory.decided_s is not None and len(arrival.window) >= self.needs.lookback:
            self._restore(arrival.window, known)
            self.bar_s = self.memory.decided_s
        is_new = self.bar_s is None or arrival.window.bar_s > self.bar_s
        if is_new:
            self.on_bar(arrival)
        else:
            self._write_bar(arrival)  # includes the warm-up bars that later features depend on
            self.reconcile(arrival.window.bar_s)  # the next bar may be hours away
        latest = self.settings.latest_s
        return is_new and not (latest is not None and arrival.late_s is not None and arrival.late_s > latest)

    def _first(self) -> Arrival:
        def ask() -> Arrival:
            self.listing.ask()
            return self.feed.first(self.needs)

        def wait(seconds: float, _: object) -> None:
            self.phase = "waiting for the venue to respond"
            self._tick()
            self.desk.pause(seconds)

        return answered(ask, wait)

    @property
    def needs(self) -> Needs:
        """Market data that the deployment requires."""
        d = self.deployment
        lookback = int(d.env_params["lookback"])
        return Needs(d.tickers, d.bar_seconds, lookback, d.facts.feature_set, d.feature_names)

    def on_bar(self, arrival: Arrival) -> None:
        """Process one bar in the order given in the module's docstring."""
        started, waited_s = arrival.here_s, self.desk.waited_s
        arrival = self._take_over(arrival)
        window, bar_s = arrival.window, arrival.window.bar_s
        self._look_for_halt()
        self.used.begin_bar(bar_s)
        self._write_bar(arrival)
        self.phase = "trading"
        self._renew_rules(bar_s)
        is_known, why = self.reconcile(bar_s), None
        if self.account is None:
            self._open(window)
        else:
            why = self._trade(arrival, is_known)
        self.bar_s, self.last_prices = bar_s, self._by_ticker(window.price[-1])
        if self.account is None:
            self.journal.append("skip", bar_s=bar_s, why=self._warming(window))
            return
        assert self.shadow is not None
        self.mandate.hold(bar_s, self.account.account, self.shadow.account.account.equity, self.fees_spared)
        self._decide(window, started, waited_s)
        if self.settings.sends_at_once and self.pending is not None and why is None and self.state != "HALTED":
            price = self.account.price_array[-1].tolist()
            self.dealer.execute(self.account, self.pending, price, bar_s, self.last_prices)
            self.account.mark()

    # ---------------------------------------------------------------- start
    def _restore(self, window: Window, known: Mapping[str, Any]) -> None:
        self.account = self._new_account(window)
        self.account.restore(known["account"])
        self.shadow = self._new_shadow(window)
        self.shadow.restore(known["shadow"])
        self.pending = None if known["action"] is None else np.array(known["action"], np.float32)
        self.last_prices = dict(known["prices"])
        self.mandate.peak, self.mandate.base = known["peak"], known["base"]

    def _open(self, window: Window) -> None:
        """Create or restore the account at the first bar with a full lookback."""
        if self.ledger is None or len(window) < self.needs.lookback:
            return
        if self.memory.checkpoint is not None:
            self._restore(window, self.memory.checkpoint)
            self.pending = None
        else:
            self.account, self.shadow = self._new_account(window), self._new_shadow(window)
        assert self.account is not None
        self._take_holdings()
        self.account.mark()

    def _env_params(self) -> dict[str, Any]:
        assert self.ledger is not None
        known = self.memory.checkpoint
        capital = float(self.ledger.cash) if known is None else known["capital"]
        return self.deployment.env_params | {"initial_capital": self._capital(capital)}

    def _capital(self, cash: float) -> float:
        return self.account.initial_capital if self.account is not None else max(cash, 1.0)

    def _new_account(self, window: Window) -> TradedAccount:
        return TradedAccount(self._env_params(), window, self.rules, self.settings.n_steps)

    def _new_shadow(self, window: Window) -> Shadow:
        return Shadow(self._env_params(), window, self.rules, self.settings.n_steps)

    def _renew_rules(self, bar_s: int) -> None:
        """Update the order rules once a day and after a rejection."""
        if self.bar_s is not None and self.listing.renew(is_new_day=bar_s // DAY_S != self.bar_s // DAY_S):
            for account in [each for each in (self.account, self.shadow and self.shadow.account) if each is not None]:
                account.use_rules(self.rules)

    # ---------------------------------------------------------------- reconciliation
    @property
    def rules(self) -> Mapping[str, OrderRule]:
        """Order rules by ticker, in column order."""
        return self.listing.rules

    @property
    def ledger(self) -> Ledger | None:
        """Ledger of the account; None before the first reconciliation."""
        return self.books.ledger

    def reconcile(self, bar_s: int) -> bool:
        """Reconcile the account and return True if the venue responded. Unexplained changes set it to REDUCING."""
        try:
            found = self.books.reconcile(bar_s)
        except UnreachableError as error:
            log.warning("the account cannot be reconciled: %s", error)
            return False
        paid = self._value_of_fees(found)
        self.fees += paid
        self.fees_spared += float(found.fee_expected) - paid
        if found.unexplained:
            self.change_state("REDUCING", f"the account is not explained: {'; '.join(found.unexplained)}")
        return True

    def _value_of_fees(self, found: Explained) -> float:
        coins = sum(float(fee) * self.last_prices.get(ticker, 0.0) for ticker, fee in found.fee_qty.items())
        return float(found.fee_cash) + coins

    # ---------------------------------------------------------------- trading
    def _trade(self, arrival: Arrival, is_known: bool) -> str | None:
        """Advance to the bar and execute the previous decision. Return the reason if nothing may be ordered."""
        account, shadow, window = self.account, self.shadow, arrival.window
        assert account is not None
        assert shadow is not None
        assert self.bar_s is not None
        n_bars = (window.bar_s - self.bar_s) // self.deployment.bar_seconds
        shadow.advance(window, n_bars, self.deployment.policy)
        why = self._why_not(arrival, n_bars, is_known)
        if n_bars == 1 and len(window) >= 2:
            account.move_to(window)
            price = account.begin_bar()
            self._take_holdings()
            if why is None and self.pending is not None and not self.settings.sends_at_once:
                self.dealer.execute(account, self.pending, price, window.bar_s, self.last_prices)
            elif account.params.trailing_stop_pct > 0:
                account.account.high = account.plan_sales(np.zeros(account.action_dim), price).high
        else:
            account.jump_to(window, n_bars)
            self._take_holdings()
        account.mark()
        if why is not None:
            self.journal.append("skip", bar_s=window.bar_s, why=why)
        return why

    def _why_not(self, arrival: Arrival, n_bars: int, is_known: bool) -> str | None:
        """Return the reason why nothing is ordered at this bar, or None."""
        latest, late = self.settings.latest_s, arrival.late_s
        if n_bars != 1:
            return f"{n_bars - 1} bars were missed; their orders are not sent later"
        if self.memory.ordered_s == arrival.window.bar_s:
            return "the orders of this bar were recorded before the restart"
        if len(arrival.window) < 2:
            return "a gap in the market ends at this bar"
        if latest is not None and late is not None and late > latest:
            return f"the bar arrived {late:.0f} s after its close; the limit is {latest:.0f} s"
        if not is_known:
            return "the venue did not report the account"
        return "HALTED" if self.state == "HALTED" else None

    def _take_holdings(self) -> None:
        assert self.account is not None
        self.account.take(*self.dealer.holdings())

    # ---------------------------------------------------------------- deciding
    def _decide(self, window: Window, started: float, waited_s: float) -> None:
        account, shadow = self.account, self.shadow
        assert account is not None
        assert shadow is not None
        acct, found = account.account, None
        if len(window) >= account.lookback:
            weights = np.array(acct.qty) * window.price[-1] / max(acct.equity, 1e-300)
            found = decide(self.deployment.policy, account.observe(), weights, account.params.norm_action)
            if shadow.action is None:
                shadow.decide(self.deployment.policy)
        else:
            self.journal.append("skip", bar_s=window.bar_s, why=self._warming(window))
        self.pending = None if found is None else found.action
        if found is not None:
            self._write_decision(window, found, time.perf_counter() - started, self.desk.waited_s - waited_s)

    def _write_decision(self, window: Window, found: Decision, took_s: float, waited_s: float) -> None:
        assert self.account is not None
        assert self.shadow is not None
        acct, simulated = self.account.account, self.shadow.account.account
        weights = np.array(acct.qty) * window.price[-1] / max(acct.equity, 1e-300)
        edges = {
            "lo": None if found.lo is None else found.lo.tolist(),
            "hi": None if found.hi is None else found.hi.tolist(),
        }
        self.journal.append(
            "decision", bar_s=window.bar_s, observation_sha256=found.observation_sha256, action=found.action.tolist(),
            target=found.target.tolist(), **edges, weights=weights.tolist(), equity=acct.equity, cash=acct.cash,
            qty=acct.qty, benchmark=acct.benchmark, sim_equity=simulated.equity, sim_qty=simulated.qty, peak=acct.peak,
            drawdown=1.0 - acct.equity / acct.peak, fees=self.fees,
            fees_spared=self.fees_spared, state=self.state, took_ms=round(took_s * 1e3, 3),
            elapsed_ms=round((took_s - waited_s) * 1e3, 3), checkpoint=self._checkpoint(window),
        )  # fmt: skip
        log.info(
            "decided on the bar of %s UTC: equity %.2f (simulator %.2f), %d coins traded, %s", utc_text(window.bar_s),
            acct.equity, simulated.equity, sum(q != 0 for q in acct.filled), self.state,
        )  # fmt: skip

    def _checkpoint(self, window: Window) -> dict[str, Any]:
        assert self.account is not None
        assert self.shadow is not None
        # An action already sent must not be sent again at the next bar, even after a restart without the flag.
        action = None if self.pending is None or self.settings.sends_at_once else self.pending.tolist()
        return {
            "account": self.account.to_json(), "shadow": self.shadow.to_json(), "action": action,
            "prices": self._by_ticker(window.price[-1]), "capital": self.account.initial_capital,
            "peak": self.mandate.peak, "base": self.mandate.base,
        }  # fmt: skip

    # ---------------------------------------------------------------- states, deployments
    @property
    def state(self) -> State:
        """State of the trader: ACTIVE, REDUCING or HALTED."""
        return self.mandate.state

    @property
    def why(self) -> str:
        """Reason for the state."""
        return self.mandate.why

    def change_state(self, state: State, why: str) -> None:
        """Change to a more restrictive state."""
        self.mandate.change(state, why)

    def resume(self, why: str) -> None:
        """Return to ACTIVE at the user's request."""
        self.mandate.resume(why)

    def _look_for_halt(self) -> None:
        why = self.hooks.must_halt()
        if why is not None:
            self.change_state("HALTED", why)

    def _tick(self) -> None:
        self._look_for_halt()
        self.hooks.tick()

    def _take_over(self, arrival: Arrival) -> Arrival:
        """Switch to a new deployment, if there is one. Positions are kept, and the last decision is still executed."""
        if self.account is not None and len(arrival.window) <= self.needs.lookback:
            return arrival  # a gap in the market: the new deployment could not observe enough bars
        renewed = self.hooks.renewed(self.deployment.name)
        if renewed is None:
            return arrival
        before, self.deployment = self.deployment, renewed
        try:
            arrival = self.feed.again(self.needs)
        except (UnreachableError, BarsError) as error:
            self.deployment = before
            log.warning("the switch to deployment %s is postponed to a later bar: %s", renewed.name, error)
            return arrival
        self.books.rates, self.dealer.deployment = _rates(renewed, self.broker), renewed
        self.journal.append("deployment", **{"from": before.name, "to": renewed.name, "bar_s": arrival.window.bar_s})
        log.info("deployment %s replaces %s", renewed.name, before.name)
        self.hooks.told(f"deployment {renewed.name} replaces {before.name}")
        if self.account is not None and self.shadow is not None and len(arrival.window) > self.needs.lookback:
            kept, simulated = self.account.to_json(), self.shadow.to_json()
            past = Window(*(rows[:-1] for rows in vars(arrival.window).values()))
            account, shadow = self._new_account(past), self._new_shadow(past)
            account.restore(kept)
            shadow.restore(simulated)
            self.account, self.shadow = account, shadow
        return arrival

    # ---------------------------------------------------------------- events and texts
    def _write_bar(self, arrival: Arrival) -> None:
        window = arrival.window
        self.journal.append(
            "bar", bar_s=window.bar_s, close=window.price[-1].tolist(), filled=window.filled[-1].tolist(),
            late_s=arrival.late_s, notes=list(arrival.notes), candles=dict(arrival.candles),
            earlier=list(arrival.earlier),
        )  # fmt: skip

    def _by_ticker(self, values: Any) -> dict[str, float]:
        return dict(zip(self.deployment.tickers, (float(value) for value in values), strict=True))

    def _warming(self, window: Window) -> str:
        return f"warming up: {len(window)} of {self.needs.lookback} bars"

    def _say_phase(self) -> None:
        assert self.bar_s is not None
        following = self.feed.next_close_s(self.bar_s)
        self.phase = "ended" if following is None else f"waiting for the bar of {utc_text(following)} UTC"


def _rates(deployment: Deployment, broker: Broker) -> Rates:
    """Return the fee rates used in training, and the highest known fee rate of a real venue."""
    resolved = deployment.facts.env_resolved
    known = 0.0 if broker.mode == "REPLAY" else max(tier.taker_rate for tier in ALPACA.fee_tiers)
    buy, sell, known = (Decimal(repr(rate)) for rate in (resolved["buy_fee_rate"], resolved["sell_fee_rate"], known))
    return Rates(buy, sell, known)
