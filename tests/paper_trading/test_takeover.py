"""A new deployment is taken over at a bar's edge: positions stay, and the journal says from which to which."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from market.sample import synthetic_dataset
from paper_trading.stages import Request
from paper_trading.trader_program import ENDED, Program
from paper_trading.verify import verify
from tests.paper_trading.test_replay import events, set_out
from tests.support.alpaca_stand_in import StandIn
from tests.support.trading_world import TradingWorld, make_deployment
from train.study.interruption import Interruption


@pytest.fixture(scope="module")
def server():
    with StandIn() as server:
        yield server


class SwappingProgram(Program):
    """Leads `current` elsewhere after so many bars, as `auto_replace_best_5m.py` does."""

    ticks = 0

    def __init__(self, request: Request, interruption: Interruption, swaps: dict[int, str]) -> None:
        super().__init__(request, interruption)
        self.swaps = swaps

    def _tick(self) -> None:
        super()._tick()
        self.ticks += 1
        if self.ticks in self.swaps:
            link = self.request.deployments / "current"
            link.unlink()
            link.symlink_to(self.swaps[self.ticks])


def run(root: Path, request: Request, swaps: dict[int, str]) -> int:
    with Interruption() as interruption:
        return SwappingProgram(request, interruption, swaps).run()


def test_a_replay_takes_the_new_deployment_over_with_its_positions(tmp_path):
    dataset = synthetic_dataset(n_bars=500, tickers=("BTC", "ETH"))
    old, request = set_out(tmp_path, dataset, 200, 500, seed=3)
    new = make_deployment(
        request.deployments / "new", dataset.tickers, lookback=5, seed=4, head="band", synthetic=True,
        holdout={**vars(old.facts.holdout)}, data_sha256=dataset.sha256,
        order_rules={name: vars(rule) for name, rule in old.facts.order_rules.items()},
    )  # fmt: skip
    other = ("BTC",)
    make_deployment(request.deployments / "other", other, seed=4, synthetic=True)
    assert run(tmp_path, request, {100: "new", 200: "other"}) == ENDED
    taken, refused = events(tmp_path, "deployment")
    assert (taken["from"], taken["to"], taken["bar_s"]) == ("made", "new", int(dataset.time[300]))
    assert (refused["from"], refused["refused"]) == ("new", "other")
    assert "needs 1 tickers (BTC); received 2" in refused["why"]
    decisions = {d["bar_s"]: d for d in events(tmp_path, "decision")}
    at = [int(t) for t in dataset.time[299:302]]
    assert decisions[at[0]]["lo"] is None
    assert decisions[at[1]]["lo"] is not None
    # What the old policy decided is still executed at the edge; nothing else moves the coins.
    orders = [o for e in events(tmp_path, "intents") if e["bar_s"] == at[1] for o in e["orders"]]
    moved = [after - before for before, after in zip(decisions[at[0]]["qty"], decisions[at[1]]["qty"], strict=True)]
    for ticker, change in zip(dataset.tickers, moved, strict=True):
        sent = sum(float(o["qty"]) * (1 if o["side"] == "buy" else -1) for o in orders if o["ticker"] == ticker)
        assert change == pytest.approx(sent, abs=1e-12)
    assert len(decisions) == 300
    account = decisions[at[1]]["checkpoint"]["account"]
    state = decisions[at[1]]
    with torch.no_grad():
        assert state["equity"] == pytest.approx(state["cash"] + sum(q * float(dataset.price[300][i]) for i, q in
                                                                    enumerate(state["qty"])))  # fmt: skip
    assert account["peak"] >= decisions[at[0]]["equity"]
    assert new.name == "new"


def test_a_live_trader_takes_over_and_its_journal_still_verifies(tmp_path, server):
    world = TradingWorld(tmp_path, server, n_bars=40)
    trader = world.trader()
    world.play(trader, 10)
    held = trader.account.account.qty
    world.renewals.append(make_deployment(tmp_path / "new", world.tickers, lookback=7, seed=9))
    world.play(trader, 1)
    assert trader.deployment.name == "new"
    assert [q for q in held if q > 0]
    world.play(trader, 10)
    world.check_books()
    done = verify(world.journal_path, tmp_path)
    assert done.decisions == 21
