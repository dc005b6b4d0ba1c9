"""A trader before the stand-in: generated bars, a deployment of random weights, and a clock that the test moves.

The trader is built as the program builds it; only waiting is different: it moves the server's clock. `QUICK` in the
place of `paper_trading.alpaca_venue.PATIENCE` makes time-outs short.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from drl_agents.policy import Policy
from drl_agents.policy_file import save_policy
from environment_Alpaca_vectorized import observation_layout
from market.features import FEATURE_SETS
from market.sample import sample_bars
from market.sources.assets import Keys
from market.sources.transport import Patience
from paper_trading.alpaca_venue import AlpacaBroker, AlpacaFeed, VenueClock
from paper_trading.desk import Desk
from paper_trading.feeds import Tick
from paper_trading.journal import Journal, lines
from paper_trading.risk import Limits, Used
from paper_trading.stages import Request, Stage
from paper_trading.trader import Hooks, Settings, Trader
from paper_trading.trader_memory import recall
from paper_trading.trader_program import start_event
from tests.support.alpaca_stand_in import StandIn
from tests.support.made_deployment import make_facts, write_facts
from train.deploy.loading import POLICY_FILE, SHARED_FACTS, Deployment, read_deployment
from train.env_factory import resolved_rules

STEP_S = 300
QUICK = Patience(connect_s=1.0, read_s=0.2, retries=1, backoff_s=0.0, longest_wait_s=0.01, damaged_tries=1,
                 requests_per_window=10**6)  # fmt: skip
FREE = Limits(1e9, 1e9, 1e9, 1e9, 1e9, 1e9, 1e9, 1e9)  # nothing stands against an order
WIDTH = 16
ASSETS = {"min_order_size": "0.000001", "min_trade_increment": "0.000000001", "price_increment": "0.01"}


def random_policy(n_assets: int, n_features: int, state_dim: int, head: str, seed: int) -> Policy:
    """A lively policy: about one action in three is large enough for an order."""
    random = torch.Generator().manual_seed(seed)
    inputs = n_features if head == "band" else state_dim
    outputs = 2 * n_assets if head == "band" else n_assets
    hidden = torch.randn(WIDTH, inputs, generator=random) / inputs**0.5
    last = torch.randn(outputs, WIDTH, generator=random) * (0.3 if head == "orders" else 0.5)
    bias = torch.full((outputs,), -0.03 if head == "orders" else -2.0)
    layers = ((hidden, torch.zeros(WIDTH)), (last, bias))
    least = torch.full((n_assets,), 1e-3) if head == "band" else None
    return Policy(torch.zeros(state_dim), torch.ones(state_dim), layers, head=head, least_weight=least)


def make_deployment(
    folder: Path, tickers: Sequence[str], *, head: str = "orders", lookback: int = 3, seed: int = 0,
    env: Mapping[str, Any] | None = None, synthetic: bool = False, **changes: Any,
) -> Deployment:  # fmt: skip
    """A deployment of random weights for the default features."""
    names = FEATURE_SETS["default"].names(tickers, STEP_S)
    base = {"rules": "standard", "lookback": lookback, **({"norm_action": 1.0} if head == "band" else {})}
    params = {**base, **(env or {})}
    layout = [list(block) for block in observation_layout(params, len(tickers), len(names))]
    state_dim = sum(int(width) for _, width in layout)
    policy = random_policy(len(tickers), lookback * len(names), state_dim, head, seed)
    shared = {
        "tickers": list(tickers), "feature_names": list(names), "bar_seconds": STEP_S, "env_params": params,
        "observation_layout": layout,
        "synthetic": synthetic, "feature_set": "default", "env_resolved": resolved_rules(params), "warmup_bars": 256,
        "order_rules": {ticker: {"min_order_qty": 1e-6, "qty_increment": 1e-9} for ticker in tickers},
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    facts = make_facts(policy, folder.name, **{**shared, **changes})
    save_policy(folder / POLICY_FILE, policy, {name: facts[name] for name in SHARED_FACTS})
    write_facts(folder, facts)
    return read_deployment(folder)


class FrozenClock(VenueClock):
    """The server's clock, as the test moves it."""

    def __init__(self, server: StandIn, now_s: float) -> None:
        super().__init__()
        self._server, self._now_s = server, now_s

    def local_s(self) -> float:
        return self._now_s

    def advance(self, seconds: float) -> None:
        self._server.control("advance", seconds=seconds)
        self._now_s += seconds


class TradingWorld:
    """A market on the stand-in and a deployment for it.

    Args:
        root: folder of journal and deployment.
        server: is reset.
        tickers: coins.
        n_bars: that are played after the warm-up.
        settings: of the server.
    """

    n_warmup = 800

    def __init__(
        self, root: Path, server: StandIn, tickers: Sequence[str] = ("BTC", "ETH", "LTC"), n_bars: int = 60,
        seed: int = 0, head: str = "orders", env: Mapping[str, Any] | None = None, **settings: Any,
    ) -> None:  # fmt: skip
        self.root, self.server, self.tickers = root, server, tuple(tickers)
        table = sample_bars("5m", self.n_warmup + n_bars, tickers, seed)
        opens = table["timestamp"].dt.as_unit("s").astype("int64").to_numpy()
        self.first_s = int(opens.min())
        self.start_s = self.first_s + self.n_warmup * STEP_S + 2.0  # the last bar of the warm-up has just closed
        options = {"cash": "10000", "fee_rate": "0.0025"} | settings
        server.control("reset", now=self.start_s, **options)
        rows: dict[str, list[list[Any]]] = {}
        for symbol, part in table.groupby(table["symbol"].astype(str)):
            values = part[["open", "high", "low", "close", "volume"]].to_numpy()
            own = opens[part.index.to_numpy()]
            name = f"{str(symbol).partition('/')[0]}/USD"
            rows[name] = [[int(t), *map(float, value)] for t, value in zip(own, values, strict=True)]
            server.control("asset", symbol=name, **ASSETS)
        server.control("bars", rows=rows, step_s=STEP_S)
        self.rows = rows
        self.deployment = make_deployment(root / "deployed", tickers, head=head, env=env)
        self.journal_path = root / "journal.jsonl"
        self.clock = FrozenClock(server, self.start_s)
        self.halts: list[str] = []
        self.renewals: list[Deployment] = []

    # ---------------------------------------------------------------- the trader
    def sleep(self, seconds: float, tick: Tick) -> None:
        tick()
        self.clock.advance(seconds)

    def trader(
        self, wrap: Callable[[Any], Any] = lambda part: part, limits: Limits = FREE, **settings: Any
    ) -> Trader:  # fmt: skip
        """A trader that begins, or begins again, from the journal; `wrap` may break its broker and its journal."""
        keys = Keys(self.server.key, self.server.secret)
        broker = wrap(AlpacaBroker(keys, self.tickers, self.server.url, self.server.url, False, self.clock))
        feed = AlpacaFeed(self.server.url, self.clock, 20.0, self.sleep)
        journal = wrap(Journal(self.journal_path, is_durable=False))
        used = Used()
        desk = Desk(broker, journal, self.clock.now_s, self.clock.advance, 5.0)
        memory = recall(lines(self.journal_path), desk, used)
        given = replace(Settings(limits, latest_s=60.0), **settings)
        hooks = Hooks(
            renewed=lambda _: self.renewals.pop() if self.renewals else None,
            must_halt=lambda: self.halts[-1] if self.halts else None,
        )
        trader = Trader(self.deployment, broker, feed, journal, desk, memory, used, given, hooks)
        stage = Stage(broker, feed, self.clock, None, None, None)
        journal.append("start", **start_event(trader, stage, Request(self.root, self.root, "alpaca", limits=limits)))
        return trader

    def play(self, trader: Trader, n_bars: int) -> None:
        """Begin, if it has not, and trade so many bars."""
        if trader.bar_s is None:
            n_bars -= trader.begin()
        for _ in range(n_bars):
            assert trader.bar_s is not None
            arrival = trader.feed.next(trader.bar_s, trader._tick)
            assert arrival is not None
            trader.on_bar(arrival)

    # ---------------------------------------------------------------- what came of it
    def events(self, *kinds: str) -> list[dict[str, Any]]:
        whole = self.journal_path.read_bytes().splitlines(keepends=True)
        events = [_event(line) for line in whole if line.endswith(b"\n")]
        return [event for event in events if not kinds or event["event"] in kinds]

    def check_books(self) -> None:
        """The journal's cash, coins, orders and fees are the venue's, to the last digit."""
        state = self.server.state()
        account = self.events("account")[-1]
        foreign = account["foreign"]
        assert Decimal(account["cash"]) + Decimal(foreign["cash"]) == Decimal(state["cash"])
        for ticker in self.tickers:
            held = Decimal(state["positions"].get(f"{ticker}/USD", {}).get("qty", "0"))
            assert Decimal(account["qty"][ticker]) + Decimal(foreign["qty"].get(ticker, "0")) == held, ticker
        self._check_orders(state)

    def _check_orders(self, state: Mapping[str, Any]) -> None:
        theirs = {order["client_order_id"]: order for order in state["orders"] if not order["is_foreign"]}
        intents = [order for event in self.events("intents") for order in event["orders"]]
        ids = [order["id"] for order in intents]
        assert len(ids) == len(set(ids)), "an intent twice"
        assert set(theirs) <= set(ids), "an order without an intent"
        last = {event["id"]: event for event in self.events("order")}
        for name, order in theirs.items():
            assert Decimal(last[name]["filled_qty"]) == Decimal(order["filled_qty"] or "0"), last[name]
        for name in set(ids) - set(theirs):
            assert Decimal(last[name]["filled_qty"]) == 0 if name in last else True

    def check_own_coins(self) -> None:
        """Of no coin have more been sold by our orders than were bought by them."""
        bought: dict[str, Decimal] = {}
        foreign = {order["client_order_id"] for order in self.server.state()["orders"] if order["is_foreign"]}
        for fill in self.server.state()["fills"]:
            if fill["client_order_id"] in foreign:
                continue
            change = Decimal(fill["qty"]) if fill["side"] == "buy" else -Decimal(fill["qty"])
            bought[fill["symbol"]] = bought.get(fill["symbol"], Decimal(0)) + change
            assert bought[fill["symbol"]] >= 0, f"{fill['symbol']}: coins of others were sold"

    def check_fees(self, is_averaged: bool = False) -> None:
        """Where nobody else trades: the journal's fees are what fills promised less what arrived, to the last digit.

        That holds the venue's own rounding, too, which is less than a billionth a fill.
        """
        state = self.server.state()
        fees = {coin: Decimal(amount) for coin, amount in state["fees"].items()}
        cash = sum((Decimal(event["fee_cash"]) for event in self.events("account")), Decimal(0))
        promised = Decimal("10000")
        for fill in state["fills"]:
            notional = Decimal(fill["qty"]) * Decimal(fill["price"])
            promised += notional if fill["side"] == "sell" else -notional
        # An average of several prices comes rounded from the venue.
        assert abs(cash - (promised - Decimal(state["cash"]))) <= (Decimal("1e-9") if is_averaged else 0)
        assert abs(cash - fees.get("USD", Decimal(0))) <= Decimal("1e-9") * len(state["fills"])
        for ticker in self.tickers:
            coins = sum((Decimal(event["fee_qty"].get(ticker, "0")) for event in self.events("account")), Decimal(0))
            assert coins == fees.get(ticker, Decimal(0)), ticker


@lru_cache(100)
def _event(line: bytes) -> dict[str, Any]:
    """A test looks at the same journal again and again, and the line of the warm-up is long."""
    return json.loads(line)


def settled(journal: Path) -> dict[str, Any]:
    """The last decision of a journal."""
    return json.loads(next(line for line in reversed(journal.read_text().splitlines()) if '"decision"' in line))


def live_prices(world: TradingWorld, ticker: str) -> np.ndarray:
    """Closes of a coin, the oldest first."""
    return np.array([row[4] for row in world.rows[f"{ticker}/USD"]])
