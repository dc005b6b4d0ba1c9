"""The trader: one bar after another, each in the same order.

    1. a new deployment is taken over    2. the account is reconciled
    3. the order that was decided at the bar before is sized at this bar's close and sent: sales, then buys
    4. the account is marked    5. the policy sees this bar and decides    6. the decision goes into the journal

ACTIVE trades; REDUCING only sells; HALTED sends nothing. The state is in the journal and outlives a restart; only a
person lifts it. Whatever is late, missing or unclear costs the bar: nothing is caught up.
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
    """One account, traded bar by bar.

    Args:
        deployment: that decides.
        broker: the venue.
        feed: brings the bars.
        journal: open for appending.
        desk: sends the orders.
        memory: what the journal says.
        used: how much of the limits is used up.
        settings: see there.
        hooks: see there.
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
        self.bar_s: int | None = None  # close of the last bar seen
        self.account: TradedAccount | None = None
        self.shadow: Shadow | None = None
        self.pending: np.ndarray | None = None  # (A,) decided at the last bar
        self.last_prices: dict[str, float] = {}  # closes of the last bar

    # ---------------------------------------------------------------- the loop
    def run(self, is_once: bool = False) -> None:
        """Trade until the recording ends; a signal raises out of the feed's waiting.

        Raises:
            OSError: the journal cannot be written.
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
        """Take the newest bar that has closed; whether it was new and in time, and so has been traded.

        A venue that does not answer is waited for. A restart stands where it stood.
        """
        arrival, known = self._first(), self.memory.checkpoint
        if known is not None and self.memory.decided_s is not None and len(arrival.window) >= self.needs.lookback:
            self._restore(arrival.window, known)
            self.bar_s = self.memory.decided_s
        is_new = self.bar_s is None or arrival.window.bar_s > self.bar_s
        if is_new:
            self.on_bar(arrival)
        else:
            self._write_bar(arrival)  # with the warm-up that everything after it is made from
            self.reconcile(arrival.window.bar_s)  # the next bar may be hours away
        latest = self.settings.latest_s
        return is_new and not (latest is not None and arrival.late_s is not None and arrival.late_s > latest)

    def _first(self) -> Arrival:
        def ask() -> Arrival:
            self.listing.ask()
            return self.feed.first(self.needs)

        def wait(seconds: float, _: object) -> None:
            self.phase = "waiting for the venue to answer"
            self._tick()
            self.desk.pause(seconds)

        return answered(ask, wait)

    @property
    def needs(self) -> Needs:
        """What the deployment reads."""
        d = self.deployment
        lookback = int(d.env_params["lookback"])
        return Needs(d.tickers, d.bar_seconds, lookback, d.facts.feature_set, d.feature_names)

    def on_bar(self, arrival: Arrival) -> None:
        """One bar, in the order of the module's docstring."""
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

    # ---------------------------------------------------------------- beginning
    def _restore(self, window: Window, known: Mapping[str, Any]) -> None:
        self.account = self._new_account(window)
        self.account.restore(known["account"])
        self.shadow = self._new_shadow(window)
        self.shadow.restore(known["shadow"])
        self.pending = None if known["action"] is None else np.array(known["action"], np.float32)
        self.last_prices = dict(known["prices"])
        self.mandate.peak, self.mandate.base = known["peak"], known["base"]

    def _open(self, window: Window) -> None:
        """The account begins, or goes on, with the first bar that has a whole lookback."""
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
        """Once a day and after a refusal."""
        if self.bar_s is not None and self.listing.renew(is_new_day=bar_s // DAY_S != self.bar_s // DAY_S):
            for account in [each for each in (self.account, self.shadow and self.shadow.account) if each is not None]:
                account.use_rules(self.rules)

    # ---------------------------------------------------------------- reconciliation
    @property
    def rules(self) -> Mapping[str, OrderRule]:
        """Order rules by ticker, in the order of the columns."""
        return self.listing.rules

    @property
    def ledger(self) -> Ledger | None:
        """Whose cash and coins; None before the first reconciliation."""
        return self.books.ledger

    def reconcile(self, bar_s: int) -> bool:
        """Whether the venue answered; what our fills do not explain makes the state REDUCING."""
        try:
            found = self.books.reconcile(bar_s)
        except UnreachableError as error:
            log.warning("the venue does not answer: %s", error)
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
        """Go on to the bar, and execute what was decided at the one before; why not, where that may not be."""
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
        """Why nothing is ordered at this bar."""
        latest, late = self.settings.latest_s, arrival.late_s
        if n_bars != 1:
            return f"{n_bars - 1} bars were missed; nothing is caught up"
        if self.memory.ordered_s == arrival.window.bar_s:
            return "orders of this bar were written down before the restart"
        if len(arrival.window) < 2:
            return "a gap in the market ends at this bar"
        if latest is not None and late is not None and late > latest:
            return f"the bar came {late:.0f} s after its close, more than {latest:.0f} s"
        if not is_known:
            return "the venue did not say what is in the account"
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
        # What is sent at once is no order of the next bar, also not after a restart without the flag.
        action = None if self.pending is None or self.settings.sends_at_once else self.pending.tolist()
        return {
            "account": self.account.to_json(), "shadow": self.shadow.to_json(), "action": action,
            "prices": self._by_ticker(window.price[-1]), "capital": self.account.initial_capital,
            "peak": self.mandate.peak, "base": self.mandate.base,
        }  # fmt: skip

    # ---------------------------------------------------------------- states, deployments
    @property
    def state(self) -> State:
        """What the trader may do."""
        return self.mandate.state

    @property
    def why(self) -> str:
        """Why it may not do everything."""
        return self.mandate.why

    def change_state(self, state: State, why: str) -> None:
        """Go to a state that allows less; only a person goes back."""
        self.mandate.change(state, why)

    def resume(self, why: str) -> None:
        """ACTIVE again, because the user said so."""
        self.mandate.resume(why)

    def _look_for_halt(self) -> None:
        why = self.hooks.must_halt()
        if why is not None:
            self.change_state("HALTED", why)

    def _tick(self) -> None:
        self._look_for_halt()
        self.hooks.tick()

    def _take_over(self, arrival: Arrival) -> Arrival:
        """A new deployment, at the bar's edge; positions stay, and what was decided is still executed."""
        if self.account is not None and len(arrival.window) <= self.needs.lookback:
            return arrival  # a gap in the market: the new one could observe no more
        renewed = self.hooks.renewed(self.deployment.name)
        if renewed is None:
            return arrival
        before, self.deployment = self.deployment, renewed
        try:
            arrival = self.feed.again(self.needs)
        except (UnreachableError, BarsError) as error:
            self.deployment = before
            log.warning("deployment %s is taken over at a later bar: %s", renewed.name, error)
            return arrival
        self.books.rates, self.dealer.deployment = _rates(renewed, self.broker), renewed
        self.journal.append("deployment", **{"from": before.name, "to": renewed.name, "bar_s": arrival.window.bar_s})
        log.info("deployment %s takes over from %s", renewed.name, before.name)
        self.hooks.told(f"deployment {renewed.name} takes over from {before.name}")
        if self.account is not None and self.shadow is not None and len(arrival.window) > self.needs.lookback:
            kept, simulated = self.account.to_json(), self.shadow.to_json()
            past = Window(*(rows[:-1] for rows in vars(arrival.window).values()))
            account, shadow = self._new_account(past), self._new_shadow(past)
            account.restore(kept)
            shadow.restore(simulated)
            self.account, self.shadow = account, shadow
        return arrival

    # ---------------------------------------------------------------- words
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
    """Fees that were trained with, and the highest that a venue outside this process may take."""
    resolved = deployment.facts.env_resolved
    known = 0.0 if broker.mode == "REPLAY" else max(tier.taker_rate for tier in ALPACA.fee_tiers)
    buy, sell, known = (Decimal(repr(rate)) for rate in (resolved["buy_fee_rate"], resolved["sell_fee_rate"], known))
    return Rates(buy, sell, known)
