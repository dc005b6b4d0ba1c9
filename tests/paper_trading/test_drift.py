"""Each cause of a drift alone, by hand: the others are 0, and all of them sum to the difference of both accounts."""

from __future__ import annotations

from dataclasses import asdict
from math import inf

import numpy as np
import pytest

from paper_trading.drift import LEAST_RETURNS, NO_ORDER, Causes, track_record
from paper_trading.story import Reader, Story
from tests.support.made_journal import MadeTrader, Sent

FEE, SLIP = 0.0025, 0.0005
# A cost in a cause changes later orders' room, not the sums: what a smaller price saves in fees is left to the path.
CENTS = 1e-9


def story_of(trader: MadeTrader) -> Story:
    reader = Reader(trader.folder / "journal.jsonl")
    story = reader.refresh()
    assert reader.damage == ""
    return story


def assert_only(story: Story, **expected: float) -> None:
    found = asdict(story.drift.causes)
    wanted = asdict(Causes(**expected))
    assert found == pytest.approx(wanted, abs=CENTS)
    d = story.decision
    assert story.drift.causes.total == pytest.approx(d.equity - d.sim_equity, abs=CENTS)


def buy_of(tmp_path, sim=0.1, after=100_000.0, **sent) -> Story:
    """Buy 0.1 BTC at 100,000 in both accounts, then a bar at `after`."""
    trader = MadeTrader(tmp_path / "replay")
    trader.bar([100_000.0])
    trader.bar([100_000.0], {"BTC": sim}, [Sent("BTC", 0.1, **sent)])
    trader.bar([after])
    return story_of(trader)


def test_equal_accounts_have_no_drift(tmp_path):
    story = buy_of(tmp_path, after=110_000.0)
    assert_only(story)
    assert story.ratio == pytest.approx(0.0)


def test_a_venue_that_takes_no_fee_is_a_gain_of_the_fee(tmp_path):
    # 0.1 coins at 100,050 cost 10,005 USD, of which 0.25 %
    assert_only(buy_of(tmp_path, fee_rate=0.0), fee=25.0125)


def test_without_a_mid_spread_and_delay_are_one_figure(tmp_path):
    # 10 bp of 10,005 USD worse; the fee of 10.005 USD is charged at the fill's price and expected there, so it is path
    story = buy_of(tmp_path, worse=0.001)
    assert_only(story, spread_and_delay=-10.005, path=-10.005 * FEE)
    assert story.drift.n_without_mid == 1


def test_with_a_mid_at_the_close_all_of_it_is_spread(tmp_path):
    assert_only(buy_of(tmp_path, worse=0.001, mid=1.0), spread=-10.005, path=-10.005 * FEE)


def test_with_a_mid_as_far_away_as_the_fill_all_of_it_is_delay(tmp_path):
    assert_only(buy_of(tmp_path, worse=0.001, mid=1.001), delay=-10.005, path=-10.005 * FEE)


def test_a_rejected_order_misses_the_move_and_saves_its_costs(tmp_path):
    # not bought: 0.1 * 10,000 USD of gain missed; saved 0.1 * 50 of slippage and 25.0125 of fee
    story = buy_of(tmp_path, after=110_000.0, status="rejected")
    assert_only(story, missed=-1000.0 + 5.0 + 25.0125)
    assert story.drift.n_missed == {"rejected": 1}
    assert story.rejects_in_row == 1


def test_a_partial_fill_misses_what_did_not_fill(tmp_path):
    story = buy_of(tmp_path, after=110_000.0, status="partial", filled=0.75)
    assert_only(story, missed=0.25 * (-1000.0 + 5.0 + 25.0125))


def test_a_missed_bar_is_the_simulators_fill_without_an_order(tmp_path):
    trader = MadeTrader(tmp_path / "replay")
    trader.bar([100_000.0])
    trader.bar([100_000.0], {"BTC": 0.1}, skip="the bar came 75 s after its close, more than 60 s")
    trader.bar([90_000.0])
    story = story_of(trader)
    assert_only(story, missed=1000.0 + 5.0 + 25.0125)
    assert story.drift.n_missed == {NO_ORDER: 1}
    assert +story.skipped == {"the bar came N s after its close, more than N s": 1}


def test_a_refused_order_is_a_missed_one(tmp_path):
    trader = MadeTrader(tmp_path / "replay")
    trader.bar([100_000.0])
    trader.refuse("BTC", "beyond --max-order-weight")
    trader.bar([100_000.0], {"BTC": 0.1})
    trader.bar([90_000.0])
    story = story_of(trader)
    assert_only(story, missed=1000.0 + 5.0 + 25.0125)
    assert (story.drift.n_missed, story.rejects_in_row) == ({"refused": 1}, 1)


def test_an_order_that_the_simulator_did_not_need_saves_nothing(tmp_path):
    trader = MadeTrader(tmp_path / "replay")
    trader.bar([100_000.0])
    trader.bar([100_000.0], {}, [Sent("BTC", 0.1, status="rejected")])
    trader.bar([110_000.0])
    assert_only(story_of(trader))


def test_adopted_coins_are_a_difference_from_the_start(tmp_path):
    trader = MadeTrader(tmp_path / "replay")
    trader.qty[0] = 0.1
    trader.bar([100_000.0])
    trader.bar([110_000.0])
    assert_only(story_of(trader), path=11_000.0)


def test_coins_bought_later_are_missed_no_longer(tmp_path):
    trader = MadeTrader(tmp_path / "replay")
    trader.bar([100_000.0])
    trader.bar([100_000.0], {"BTC": 0.1}, [Sent("BTC", 0.1, status="rejected")])
    trader.bar([110_000.0], {}, [Sent("BTC", 0.1)])
    trader.bar([150_000.0])
    # then both hold the same; the trader's order cost 0.1 * 55 and a fee of 0.25 % of 11,005.5
    assert_only(story_of(trader), missed=-1000.0 + 5.0 + 25.0125 - 5.5 - 11_005.5 * FEE)


def test_coins_that_the_simulator_sells_again_are_missed_no_longer(tmp_path):
    trader = MadeTrader(tmp_path / "replay")
    trader.bar([100_000.0])
    trader.bar([100_000.0], {"BTC": 0.1}, [Sent("BTC", 0.1, status="partial", filled=0.5)])
    trader.bar([100_000.0], {"BTC": -0.1}, [Sent("BTC", -0.05)])  # all that each has
    trader.bar([150_000.0])
    # of half the coins the costs of both ways are saved: 0.05 * (50 + 100,050 * 0.25 % + 50 + 99,950 * 0.25 %)
    assert_only(story_of(trader), missed=0.05 * (100.0 + 200_000.0 * FEE))


def test_rounding_is_held_coins_that_were_not_sized(tmp_path):
    # sized 0.1, sent 0.09: 0.01 coins miss 100 USD; what they would have cost (a tenth of 5 + 25.0125) is path
    trader = MadeTrader(tmp_path / "replay")
    trader.bar([100_000.0])
    trader.bar([100_000.0], {"BTC": 0.1}, [Sent("BTC", 0.09, sized=0.1)])
    trader.bar([110_000.0])
    assert_only(story_of(trader), rounding=-100.0, path=3.00125)


def test_a_sale_counts_the_other_way_round(tmp_path):
    trader = MadeTrader(tmp_path / "replay")
    trader.bar([100_000.0])
    trader.bar([100_000.0], {"BTC": 0.1}, [Sent("BTC", 0.1)])
    trader.bar([100_000.0], {"BTC": -0.1}, [Sent("BTC", -0.1, worse=0.001, mid=1.0)])
    # fills 0.1 % of 9,995 USD lower
    assert_only(story_of(trader), spread=-9.995, path=9.995 * FEE)


def test_an_unknown_order_is_counted_when_its_end_is_known(tmp_path):
    trader = MadeTrader(tmp_path / "replay")
    trader.bar([100_000.0])
    trader.bar([100_000.0], {"BTC": 0.1}, [Sent("BTC", 0.1, status="unknown")])
    assert [order.status for order in story_of(trader).unfinished] == ["unknown"]
    assert_only(story_of(trader), path=30.0125)  # nobody knows yet why the account differs
    trader.journal.append("order", id=f"barwise-{0:032x}", ticker="BTC", side="buy", status="not_arrived",
                          filled_qty="0", price=None, reason="", mid=None, took_s=9.0)  # fmt: skip
    trader.bar([100_000.0])
    story = story_of(trader)
    assert (story.unfinished, story.drift.n_missed) == ([], {"not_arrived": 1})


def test_an_end_that_is_told_twice_is_counted_once(tmp_path):
    trader = MadeTrader(tmp_path / "replay")
    trader.bar([100_000.0])
    trader.bar([100_000.0], {"BTC": 0.1}, [Sent("BTC", 0.1)])
    trader.journal.append("order", id=f"barwise-{0:032x}", ticker="BTC", side="buy", status="filled", filled_qty="0.1",
                          price="100050", reason="", mid=None, took_s=9.0)  # fmt: skip
    trader.bar([100_000.0])
    assert story_of(trader).drift.n_fills == 1


def test_a_fee_that_no_look_at_the_account_told_stays_unknown(tmp_path):
    trader = MadeTrader(tmp_path / "replay")
    trader.bar([100_000.0])
    trader.bar([100_000.0], {"BTC": 0.1}, [Sent("BTC", 0.1, fee_rate=0.0)], account=False)
    story = story_of(trader)
    assert (story.orders[0].fee, story.drift.n_without_fee) == (None, 1)
    assert_only(story, path=25.0125)


# -------------------------------------------------------------------------------------------------------- track record
def test_a_short_record_says_nothing():
    record = track_record([1.0, 1.1, 1.2])
    assert (record.confidence, record.more_bars) == (None, None)
    assert record.why_unknown == f"2 of at least {LEAST_RETURNS} bars"


def test_a_record_by_hand():
    # returns 0.03, -0.01 in turn: mean 0.01, n - 1 deviation 0.02 * sqrt(200 / 199), skew 0, kurtosis 1: the deviation
    # of the ratio is 1, so the confidence is N(ratio * sqrt(199)) and the length 1 + (1.645 / ratio)^2
    equity = np.cumprod([1.0, *[1.03, 0.99] * 100])
    record = track_record(equity.tolist())
    ratio = 0.5 / np.sqrt(200 / 199)
    assert record.confidence == pytest.approx(1.0, abs=1e-9)
    assert record.more_bars == 0.0
    assert 1 + (1.6449 / ratio) ** 2 < 200


def test_a_loser_needs_no_end_of_bars():
    equity = np.cumprod([1.0, *[0.98, 1.01] * 100])
    assert track_record(equity.tolist()).more_bars == inf


def test_an_excess_of_nothing_is_unknown():
    equity = np.cumprod([1.0, *[0.98, 1.01] * 100]).tolist()
    assert track_record(equity, equity).why_unknown == "the returns do not vary"
