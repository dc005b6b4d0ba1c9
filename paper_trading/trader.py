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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import numpy as np

from market.times import utc_text
from market.venues import OrderRule
from paper_trading.account import Plan, TradedAccount, Window, Wish
from paper_trading.decisions import Decision, decide
from paper_trading.desk import Desk, Phase, Tracked
from paper_trading.feeds import Arrival, Feed, Needs, Tick
from paper_trading.journal import Journal
from paper_trading.ledger import Explained, Fill, Ledger, Rates, explain, open_ledger
from paper_trading.memory import Memory
from paper_trading.orders import Broker, Intent, Snapshot, UnreachableError, order_id, whole_qty
from paper_trading.risk import Limits, Standing, State, Used, refusal
from paper_trading.shadow import Shadow
from train.deploy.loading import Deployment

log = logging.getLogger(__name__)

SETTLE_TRIES, SETTLE_S = 4, 0.5  # an account in which fills are still arriving is read again


@dataclass(frozen=True)
class Settings:
    """How a trader trades.

    Attributes:
        limits: that every order passes.
        latest_s: a bar that arrives so many seconds after its close is not traded on; None for a replay.
        capital: quote that is traded with; None is all cash of the account.
        sends_at_once: send at the bar of the decision, not at the next one as the simulator does.
        n_steps: bars of a replay; only `observe_account` shows it.
    """

    limits: Limits = field(default_factory=Limits)
    latest_s: float | None = None
    capital: Decimal | None = None
    sends_at_once: bool = False
    n_steps: int | None = None


@dataclass(frozen=True)
class Hooks:
    """What the program around a trader wants to know and to say.

    Attributes:
        renewed: the deployment to take over, or None where nothing has changed.
        must_halt: why the user wants a halt; None where nobody does.
        tick: called every second while the trader waits.
        told: a state or deployment changed; one line.
    """

    renewed: Callable[[str], Deployment | None] = lambda _: None
    must_halt: Callable[[], str | None] = lambda: None
    tick: Tick = lambda: None
    told: Callable[[str], None] = lambda _: None


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
        self.state: State = memory.state
        self.why, self.fees, self.phase = memory.why, memory.fees, "starting"
        self.rules = self._present_rules()
        self.ledger: Ledger | None = memory.ledger
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
        """Take the newest bar that has closed; whether it was a new one, and so has been traded."""
        arrival = self.feed.first(self.needs)
        self._start(arrival)
        is_new = self.bar_s is None or arrival.window.bar_s > self.bar_s
        if is_new:
            self.on_bar(arrival)
        else:
            self._write_bar(arrival)  # with the warm-up that everything after it is made from
        return is_new

    @property
    def needs(self) -> Needs:
        """What the deployment reads."""
        d = self.deployment
        lookback = int(d.env_params["lookback"])
        return Needs(d.tickers, d.bar_seconds, lookback, d.facts.feature_set, d.feature_names)

    def on_bar(self, arrival: Arrival) -> None:
        """One bar, in the order of the module's docstring."""
        started, waited_s = arrival.here_s, self._waited_s
        arrival = self._take_over(arrival)
        window, bar_s = arrival.window, arrival.window.bar_s
        self._look_for_halt()
        self.used.begin_bar(bar_s)
        self._write_bar(arrival)
        self.phase = "trading"
        is_known = self.reconcile(bar_s)
        if self.account is None:
            self._open(window)
        else:
            self._trade(arrival, is_known)
        self.bar_s, self.last_prices = bar_s, self._by_ticker(window.price[-1])
        if self.account is None:
            self.journal.append("skip", bar_s=bar_s, why=self._warming(window))
            return
        self._hold_against_limits(bar_s)
        self._decide(window, started, waited_s)
        if self.settings.sends_at_once and self.pending is not None:
            self._execute(self.pending, self.account.price_array[-1].tolist(), bar_s)
            self.account.mark()

    # ---------------------------------------------------------------- beginning
    def _start(self, arrival: Arrival) -> None:
        """A restart stands where it stood."""
        known = self.memory.checkpoint
        if known is not None and self.memory.decided_s is not None and len(arrival.window) >= self.needs.lookback:
            self._restore(arrival.window, known)
            self.bar_s = self.memory.decided_s

    def _restore(self, window: Window, known: Mapping[str, Any]) -> None:
        self.account = self._new_account(window)
        self.account.restore(known["account"])
        self.shadow = self._new_shadow(window)
        self.shadow.restore(known["shadow"])
        self.pending = None if known["action"] is None else np.array(known["action"], np.float32)
        self.last_prices = dict(known["prices"])

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

    def _present_rules(self) -> dict[str, OrderRule]:
        """Order rules by ticker, in the order of the columns: the venue's where it tells them."""
        told = self.broker.rules()
        trained = self.deployment.facts.order_rules
        return {
            ticker: told.get(ticker) or OrderRule(trained[ticker].min_order_qty, trained[ticker].qty_increment)
            for ticker in self.deployment.tickers
        }

    # ---------------------------------------------------------------- reconciliation
    def reconcile(self, bar_s: int) -> bool:
        """Whether the venue answered; what our fills do not explain makes the state REDUCING."""
        try:
            self.desk.look_up_open()
            found = self._explained()
        except UnreachableError as error:
            log.warning("the venue does not answer: %s", error)
            return False
        is_new = self.ledger is None or found.ledger != self.ledger or bool(self.desk.fills())
        self.ledger = found.ledger
        self.fees += self._value_of_fees(found)
        for line in found.foreign:
            self.journal.append("foreign", what="account", text=line)
        if is_new or found.unexplained:
            self.journal.append(
                "account", bar_s=bar_s, **found.ledger.to_json(), fee_cash=str(found.fee_cash),
                fee_qty={name: str(fee) for name, fee in found.fee_qty.items()}, explained=not found.unexplained,
                notes=list(found.unexplained),
            )  # fmt: skip
        self.desk.count()
        if found.unexplained:
            self.change_state("REDUCING", f"the account is not explained: {'; '.join(found.unexplained)}")
        return True

    def _explained(self) -> Explained:
        """Read again while our own orders may still be filling."""
        for attempt in range(SETTLE_TRIES):
            snapshot = self.broker.snapshot()
            if self.ledger is None:
                ledger = open_ledger(snapshot, self.settings.capital)
                foreign = [f"{ticker}: {qty} coins in the account before the trader began"
                           for ticker, qty in ledger.foreign_qty.items() if qty]  # fmt: skip
                foreign += [f"{name}: {qty} coins, which are not traded" for name, qty in ledger.other.items()]
                return Explained(ledger, Decimal(0), {}, foreign)
            fills = self.desk.fills()
            found = explain(self.ledger, snapshot, fills, self._rates())
            if not found.unexplained:
                return found
            others = self._fills_of_others(snapshot)
            if others:
                found = explain(self.ledger, snapshot, fills, self._rates(), others)
            if not found.unexplained or attempt == SETTLE_TRIES - 1:
                return found
            self.desk.pause(SETTLE_S)
            self.desk.look_up_open()
        raise AssertionError("the last attempt returns")

    def _fills_of_others(self, snapshot: Snapshot) -> list[Fill]:
        """Orders of somebody else in our coins since the last bar; one that bears our mark is another trader's."""
        since = (self.bar_s or self.desk.now_s()) - self.deployment.bar_seconds
        by_symbol = {ticker.replace("/", ""): ticker for ticker in snapshot.qty}
        fills = []
        for order in self.broker.orders_after(since):
            ticker = by_symbol.get(order.symbol) or by_symbol.get(order.symbol.partition("/")[0])
            if ticker is None or order.order_id in self.desk.known_ids or order.filled_qty <= 0 or order.price is None:
                continue
            whose = "another trader of this kind" if order.is_ours else "somebody else"
            text = f"{whose}: {order.side} {order.filled_qty} {ticker}"
            self.journal.append("foreign", what="order", text=text)
            if order.is_ours:
                self.change_state("REDUCING", f"{text}; two traders must not share an account")
            fills.append(Fill(ticker, order.side, order.filled_qty, order.filled_qty * order.price))
        return fills

    def _rates(self) -> Rates:
        assert self.account is None or self.account.params is not None
        resolved = self.deployment.facts.env_resolved
        return Rates(Decimal(repr(resolved["buy_fee_rate"])), Decimal(repr(resolved["sell_fee_rate"])))

    def _value_of_fees(self, found: Explained) -> float:
        coins = sum(float(fee) * self.last_prices.get(ticker, 0.0) for ticker, fee in found.fee_qty.items())
        return float(found.fee_cash) + coins

    # ---------------------------------------------------------------- trading
    def _trade(self, arrival: Arrival, is_known: bool) -> None:
        """Go on to the bar, and execute what was decided at the one before where that may be."""
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
                self._execute(self.pending, price, window.bar_s)
            elif account.params.trailing_stop_pct > 0:
                account.account.high = account.plan_sales(np.zeros(account.action_dim), price).high
        else:
            account.jump_to(window, n_bars)
            self._take_holdings()
        account.mark()
        if why is not None:
            self.journal.append("skip", bar_s=window.bar_s, why=why)

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

    def _execute(self, action: np.ndarray, price: list[float], bar_s: int) -> None:
        """Size and send: sales, then buys with what they brought."""
        assert self.account is not None
        account = self.account
        asked = action if self.state == "ACTIVE" else np.minimum(action, 0.0)
        plan = account.plan_sales(asked, price)
        sold = self._send("sales", plan.sales, plan, bar_s)
        account.settle_sales(plan, sold, *self._holdings())
        if self.state != "ACTIVE":
            return
        bought = self._send("buys", account.plan_buys(plan), plan, bar_s)
        account.settle_buys(plan, bought, *self._holdings())

    def _send(self, phase: Phase, wishes: Sequence[Wish], plan: Plan, bar_s: int) -> list[float]:
        """Coins (A,) that filled."""
        filled = [0.0] * len(self.deployment.tickers)
        intents = [intent for wish in wishes if (intent := self._intent(wish, plan, bar_s)) is not None]
        for each in self.desk.trade(bar_s, phase, intents):
            filled[self.deployment.tickers.index(each.intent.ticker)] = float(each.filled)
            self._count_reject(each)
        if intents and not self.reconcile(bar_s):
            self.change_state("REDUCING", "the venue did not say what is in the account after orders were sent")
        return filled

    def _intent(self, wish: Wish, plan: Plan, bar_s: int) -> Intent | None:
        """The order of a wish; None where a limit stands against it."""
        assert self.ledger is not None
        ticker = self.deployment.tickers[wish.asset]
        owned, step = self.ledger.qty[ticker], self.rules[ticker].qty_increment
        is_all = wish.side == "sell" and wish.quantity >= float(owned)
        qty = owned if is_all else whole_qty(wish.quantity, step if self.broker.mode != "REPLAY" else 0.0)
        name = order_id(self.deployment.name, ticker, bar_s, wish.side)
        price = plan.price[wish.asset]
        intent = Intent(name, ticker, wish.side, qty, bar_s, price, wish.why, wish.quantity)
        if qty <= 0:
            return None
        why = refusal(intent, self.settings.limits, self.used, self._standing(plan.price))
        if why is None:
            self.used.add(float(qty) * price)
            return intent
        log.warning("%s %s %s is not sent: %s", wish.side, qty, ticker, why)
        self.journal.append(
            "order", id=name, ticker=ticker, side=wish.side, status="refused", filled_qty="0", price=None, reason=why,
            mid=None, took_s=0.0, notional="0",
        )  # fmt: skip
        self._count_refusal()
        return None

    def _count_reject(self, each: Tracked) -> None:
        if each.status == "rejected":
            self._count_refusal()
        else:
            self.used.rejects = 0

    def _count_refusal(self) -> None:
        self.used.rejects += 1
        if self.used.rejects >= self.settings.limits.max_rejects:
            self.change_state("REDUCING", f"{self.used.rejects} orders in a row were refused")

    def _standing(self, price: Sequence[float]) -> Standing:
        assert self.account is not None
        acct = self.account.account
        equity = acct.cash + sum(q * x for q, x in zip(acct.qty, price, strict=True))
        held = [q * x for q, x in zip(acct.qty, price, strict=True)]
        return Standing(equity, self._by_ticker(held), self.last_prices)

    def _holdings(self) -> tuple[float, list[float]]:
        """Our cash and coins (A,)."""
        assert self.ledger is not None
        return float(self.ledger.cash), [float(self.ledger.qty[ticker]) for ticker in self.deployment.tickers]

    def _take_holdings(self) -> None:
        assert self.account is not None
        acct = self.account.account
        acct.cash, acct.qty = self._holdings()
        acct.held_bars = [n if q > 0 else 0 for n, q in zip(acct.held_bars, acct.qty, strict=True)]

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
            self._write_decision(window, found, time.perf_counter() - started, self._waited_s - waited_s)

    @property
    def _waited_s(self) -> float:
        """Seconds so far that the venue was waited for."""
        return self.broker.asked_s + self.desk.slept_s

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
            drawdown=1.0 - acct.equity / acct.peak, fees=self.fees, state=self.state, took_ms=round(took_s * 1e3, 3),
            elapsed_ms=round((took_s - waited_s) * 1e3, 3), checkpoint=self._checkpoint(window),
        )  # fmt: skip
        log.info(
            "decided on the bar of %s UTC: equity %.2f (simulator %.2f), %d coins traded, %s", utc_text(window.bar_s),
            acct.equity, simulated.equity, sum(q != 0 for q in acct.filled), self.state,
        )  # fmt: skip

    def _checkpoint(self, window: Window) -> dict[str, Any]:
        assert self.account is not None
        assert self.shadow is not None
        action = None if self.pending is None else self.pending.tolist()
        return {
            "account": self.account.to_json(), "shadow": self.shadow.to_json(), "action": action,
            "prices": self._by_ticker(window.price[-1]), "capital": self.account.initial_capital,
        }  # fmt: skip

    def _hold_against_limits(self, bar_s: int) -> None:
        """Drawdown and drift."""
        assert self.account is not None
        assert self.shadow is not None
        acct, limits = self.account.account, self.settings.limits
        drawdown = 1.0 - acct.equity / acct.peak
        if drawdown > limits.max_drawdown:
            self.change_state("HALTED", f"the account fell {drawdown:.1%} from its peak, beyond --max-drawdown")
        ratio = acct.equity / self.shadow.account.account.equity - 1.0
        if abs(ratio) > limits.max_drift and self.state == "ACTIVE":
            self.journal.append("drift", bar_s=bar_s, ratio=ratio, bound=limits.max_drift)
            self.change_state("REDUCING", f"the account is {ratio:+.1%} from the simulator's, beyond --max-drift")

    # ---------------------------------------------------------------- states, deployments
    def change_state(self, state: State, why: str) -> None:
        """Go to a state that allows less; only a person goes back."""
        order = ("ACTIVE", "REDUCING", "HALTED")
        if order.index(state) <= order.index(self.state):
            return
        log.warning("%s -> %s: %s", self.state, state, why)
        self.journal.append("state", **{"from": self.state, "to": state, "why": why})
        self.state, self.why = state, why
        self.hooks.told(f"{state}: {why}")

    def resume(self, why: str) -> None:
        """ACTIVE again, because the user said so."""
        if self.state != "ACTIVE":
            self.journal.append("state", **{"from": self.state, "to": "ACTIVE", "why": why})
            self.state, self.why = "ACTIVE", ""

    def _look_for_halt(self) -> None:
        why = self.hooks.must_halt()
        if why is not None:
            self.change_state("HALTED", why)

    def _tick(self) -> None:
        self._look_for_halt()
        self.hooks.tick()

    def _take_over(self, arrival: Arrival) -> Arrival:
        """A new deployment, at the bar's edge; positions stay, and what was decided is still executed."""
        renewed = self.hooks.renewed(self.deployment.name)
        if renewed is None:
            return arrival
        before, self.deployment = self.deployment, renewed
        arrival = self.feed.again(self.needs)
        self.journal.append("deployment", **{"from": before.name, "to": renewed.name, "bar_s": arrival.window.bar_s})
        log.info("deployment %s takes over from %s", renewed.name, before.name)
        self.hooks.told(f"deployment {renewed.name} takes over from {before.name}")
        self.rules = self._present_rules()
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
