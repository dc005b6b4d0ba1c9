"""A trader on the replay broker is the simulator, bit for bit and order by order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from environment_Alpaca import CryptoEnvAlpaca
from market.build import dataset_from_bars
from market.dataset import Dataset, save_dataset
from market.sample import sample_bars, synthetic_dataset
from paper_trading.journal import read
from paper_trading.stages import Request
from paper_trading.story import Reader
from paper_trading.trader_program import ENDED, HALTED, trade
from paper_trading.words import marks_of
from tests.support.trading_world import FREE, make_deployment
from train.deploy.loading import Deployment
from train.evaluator import evaluate_policies

SEVEN = ("BTC", "ETH", "LINK", "LTC", "UNI", "AAVE", "AVAX")
STOPS = {"trailing_stop_pct": 0.004, "stale_bars": 30, "max_position_weight": 0.4, "min_cash_reserve": 0.05}


class RecordingEnv(CryptoEnvAlpaca):
    """The specification, with a list of what it executes."""

    orders: list[tuple[str, int, float]]

    def _execute_sale(self, i: int, quantity: float, price: float) -> None:
        super()._execute_sale(i, quantity, price)
        self.orders += [("sell", i, quantity)] if quantity > 0 else []

    def _execute_purchase(self, i: int, quantity: float, price: float) -> None:
        before = self.account.qty[i]
        super()._execute_purchase(i, quantity, price)
        self.orders += [("buy", i, quantity)] if self.account.qty[i] != before else []


def set_out(root: Path, dataset: Dataset, first: int, last: int, **changes: Any) -> tuple[Deployment, Request]:
    """A deployment from which rows [first, last) were held out, and a request to replay them."""
    save_dataset(dataset, root / "data")
    held = {
        "first_time_s": int(dataset.time[first]), "last_time_s": int(dataset.time[last - 1]), "bars": last - first,
        "purged_bars": 0, "sha256": "0" * 64, "parent_sha256": dataset.sha256,
    }  # fmt: skip
    rules = dataset.venue.order_rules(dataset.tickers)
    orders = {
        ticker: {"min_order_qty": float(rules.min_order_qty[i]), "qty_increment": float(rules.qty_increment[i])}
        for i, ticker in enumerate(dataset.tickers)
    }
    deployment = make_deployment(
        root / "deployments" / "made", dataset.tickers, synthetic=True, holdout=held, order_rules=orders,
        data_sha256=dataset.sha256, **changes,
    )  # fmt: skip
    (root / "deployments" / "current").symlink_to("made")
    request = Request(root / "deployments", root / "trading", "replay", data_roots=(root,), limits=FREE)
    return deployment, request


def events(root: Path, *kinds: str) -> list[dict[str, Any]]:
    return [event for event in read(root / "trading" / "replay" / "journal.jsonl") if event["event"] in kinds]


def simulate(deployment: Deployment, dataset: Dataset, first: int, last: int) -> tuple[RecordingEnv, list[Any]]:
    """The specification on the same rows with the same policy, one row at a time; what it did at every bar."""
    segment = next(s for s in dataset.segments if s[0] <= first < s[1])
    config = dataset.env_config([(segment[0], min(last, segment[1]))])
    env = RecordingEnv(config, deployment.env_params)
    state, bars = env.reset(first), []
    done = False
    while not done:
        env.orders = []
        state, _, done, _ = env.step(deployment.policy(torch.from_numpy(state)).numpy())
        acct = env.account
        bars.append((acct.cash, list(acct.qty), acct.equity, acct.benchmark, acct.peak, list(env.orders)))
    return env, bars


def assert_equal_bar_by_bar(root: Path, dataset: Dataset, bars: list[Any], first: int) -> int:
    """Compare; the number of orders."""
    decisions, n_orders = events(root, "decision"), 0
    intents: dict[int, list[Any]] = {}
    for event in events(root, "intents"):
        intents.setdefault(event["bar_s"], []).extend(event["orders"])
    assert len(decisions) == len(bars) + 1
    for row, (decision, bar) in enumerate(zip(decisions[1:], bars, strict=True), start=first + 1):
        cash, qty, equity, benchmark, peak, orders = bar
        assert decision["bar_s"] == dataset.time[row]
        found = (decision["cash"], decision["qty"], decision["equity"], decision["benchmark"], decision["peak"])
        assert found == (cash, qty, equity, benchmark, peak), row
        assert (decision["sim_equity"], decision["sim_qty"]) == (equity, qty), row
        sent = [(o["side"], dataset.tickers.index(o["ticker"]), float(o["qty"]))
                for o in intents.get(decision["bar_s"], [])]  # fmt: skip
        assert sent == orders, row
        n_orders += len(orders)
    return n_orders


@pytest.mark.parametrize("head", ["orders", "band"])
@pytest.mark.parametrize("tickers", [("BTC",), SEVEN], ids=["1 coin", "7 coins"])
@pytest.mark.parametrize("env", [{}, STOPS | {"observe_account": True}], ids=["plain", "stops and releases"])
def test_a_replay_is_the_simulator_bit_for_bit(tmp_path, head, tickers, env):
    dataset = synthetic_dataset(n_bars=500, tickers=tickers)
    deployment, request = set_out(tmp_path, dataset, 200, 500, head=head, env=env, seed=3)
    assert trade(request) == ENDED
    _, bars = simulate(deployment, dataset, 200, 500)
    n_orders = assert_equal_bar_by_bar(tmp_path, dataset, bars, 200)
    assert n_orders > 40
    assert all(event["fee_qty"] == {} for event in events(tmp_path, "account"))  # its fees are of the cash
    if env:
        assert {"stop", "stale"} & {o["why"] for e in events(tmp_path, "intents") for o in e["orders"]}


def test_the_scored_account_is_the_traded_one(tmp_path):
    """Deployments are scored by the fast step, whose sums are in another order: equal but for rounding."""
    dataset = synthetic_dataset(n_bars=500, tickers=SEVEN)
    deployment, request = set_out(tmp_path, dataset, 200, 500, env=STOPS, seed=3)
    assert trade(request) == ENDED
    segment = (200 - int(deployment.env_params["lookback"]) + 1, 500)
    ((record,),) = evaluate_policies([deployment.policy], [[segment]], dataset.env_config(), deployment.env_params)
    equity = [event["equity"] for event in events(tmp_path, "decision")]
    np.testing.assert_allclose(equity, record.equity, rtol=1e-6)


def test_bars_that_nobody_traded_fill_nothing(tmp_path):
    dataset = synthetic_dataset(n_bars=500, tickers=("BTC", "ETH"))
    filled = np.random.default_rng(0).random(dataset.filled.shape) < 0.3
    dataset = replace(dataset, filled=filled)
    dataset = dataset.with_rows(0, 500)  # under a hash of its own
    deployment, request = set_out(tmp_path, dataset, 100, 500, seed=3)
    assert trade(request) == ENDED
    _, bars = simulate(deployment, dataset, 100, 500)
    assert assert_equal_bar_by_bar(tmp_path, dataset, bars, 100) > 40
    at = {int(t): row for row, t in enumerate(dataset.time)}
    for event in events(tmp_path, "intents"):
        for order in event["orders"]:
            assert not filled[at[event["bar_s"]], dataset.tickers.index(order["ticker"])]


def test_a_gap_in_the_data_is_waited_out(tmp_path):
    table = sample_bars("5m", 1200, ("BTC", "ETH"))
    opens = table["timestamp"].drop_duplicates().sort_values()
    gap = opens.iloc[600:620]
    dataset = dataset_from_bars(table[~table["timestamp"].isin(gap)], ("BTC", "ETH"), "5m", source="s", synthetic=True)
    (_, end), _ = dataset.segments
    _, request = set_out(tmp_path, dataset, 50, len(dataset.time), seed=3)
    assert trade(request) == ENDED
    skips = events(tmp_path, "skip")
    begin = int(dataset.time[end])
    assert next(s["why"] for s in skips if s["bar_s"] == begin).endswith(
        "bars were missed; their orders are not sent later"
    )
    waits = [s for s in skips if s["why"].startswith("warming up")]
    assert [s["why"] for s in waits] == ["warming up: 1 of 3 bars", "warming up: 2 of 3 bars"]
    assert not {e["bar_s"] for e in events(tmp_path, "intents")} & {begin, begin + 300, begin + 600}
    held = [d for d in events(tmp_path, "decision") if d["bar_s"] < begin][-1]["qty"]
    assert next(d for d in events(tmp_path, "decision") if d["bar_s"] > begin)["qty"] == held


@pytest.mark.parametrize("kind", ["timeout", "lost-answer", "429", "partial", "reject", "balance"])
def test_a_replay_with_faults_ends_with_books_that_are_explained(tmp_path, kind):
    dataset = synthetic_dataset(n_bars=500, tickers=("BTC", "ETH"))
    _, request = set_out(tmp_path, dataset, 200, 500, seed=3)
    assert trade(replace(request, faults=(kind,), seed=1)) == ENDED
    assert all(event["explained"] for event in events(tmp_path, "account"))
    assert events(tmp_path, "state") == []
    orders = events(tmp_path, "order")
    strange = {"timeout": "not_arrived", "partial": "partial"}.get(kind, "rejected")
    if kind == "lost-answer":
        assert {order["status"] for order in orders} == {"filled"}
    else:
        assert strange in {order["status"] for order in orders}
    assert marks_of(Reader(tmp_path / "trading" / "replay" / "journal.jsonl").refresh(), None)[-1] == "DRAWN FAULTS"
    journal = (tmp_path / "trading" / "replay" / "journal.jsonl").read_bytes()
    assert trade(replace(request, faults=(kind,), seed=1)) == ENDED
    again = events(tmp_path, "decision")
    assert b"decision" in journal
    assert [e["equity"] for e in again] == [
        e["equity"]
        for e in read(tmp_path / "trading" / "replay" / "journal.previous.jsonl")
        if e["event"] == "decision"
    ]


def test_a_fall_beyond_the_limit_halts(tmp_path):
    dataset = synthetic_dataset(n_bars=700, tickers=("BTC", "ETH"))
    _, request = set_out(tmp_path, dataset, 100, 700, seed=3)
    assert trade(replace(request, limits=replace(FREE, max_drawdown=0.01))) == HALTED
    (state,) = events(tmp_path, "state")
    assert state["to"] == "HALTED"
    assert "exceeds --max-drawdown" in state["why"]
    halted_s = max(d["bar_s"] for d in events(tmp_path, "decision") if d["state"] == "ACTIVE")
    assert max(e["bar_s"] for e in events(tmp_path, "intents")) <= halted_s + 300
