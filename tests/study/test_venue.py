"""What the venue asks of a study: the same fee and smallest notional in every environment, and in its identity."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from environment_Alpaca_vectorized import RULES
from market.dataset import make_dataset
from market.venues import ALPACA, FeeTier, OrderRule
from train.env_factory import resolved_rules
from train.study.folds import fold_data
from train.study.identity import study_identity
from train.study.search_space import build_space
from train.study.split_plan import SplitPlan
from train.study.venue import venue_env, venue_terms

PLAN = SplitPlan("standard", 3, 2)
DEAR = replace(
    ALPACA,
    name="dear",
    as_of="2025-02-03",
    rules={"BTC": OrderRule(0.5, 0.25, 40.0), "LTC": OrderRule(0.0, 0.0, 60.0)},
    fee_tiers=(FeeTier(0, 0.004, 0.006), FeeTier(1000, 0.002, 0.003)),
)


@pytest.fixture(scope="module")
def dear(market):
    """The market, traded at a venue of its own."""
    names = ("price", "tech", "time", "tickers", "feature_names", "bar_seconds", "segments", "source", "synthetic")
    return make_dataset(**{name: getattr(market, name) for name in names}, venue=DEAR)


def test_unsaid_volume_is_the_highest_taker_fee_which_is_the_standard_rules_own(market):
    assert venue_env(market, None) == venue_env(market, 0.0) == {"fee_rate": 0.0025, "min_order_notional": 10.0}
    assert {name: RULES["standard"][name] for name in ("fee_rate", "min_order_notional")} == venue_env(market, None)
    assert venue_env(market, 1e6)["fee_rate"] == 0.0018


def test_fee_and_notional_are_those_of_the_data_sets_venue(dear):
    assert venue_env(dear, None) == {"fee_rate": 0.006, "min_order_notional": 60.0}
    assert venue_env(dear.with_tickers(["BTC"]), 1000.0) == {"fee_rate": 0.003, "min_order_notional": 40.0}
    resolved = resolved_rules({"rules": "standard", "lookback": 1} | venue_env(dear, None))
    assert (resolved["buy_fee_rate"], resolved["sell_fee_rate"]) == (0.006, 0.006)


@pytest.mark.parametrize("rules", ["cappuccino", "finrl_crypto"])
def test_a_hosts_rules_keep_their_fee_unless_the_volume_is_said(dear, rules):
    assert venue_env(dear, None, rules) == {}
    assert venue_env(dear, 0.0, rules) == {"fee_rate": 0.006}
    assert venue_env(dear, 1000.0, rules) == {"fee_rate": 0.003}


def test_every_split_of_a_trial_is_run_under_the_venue(lab, dear):
    lab.folded = fold_data(dear, PLAN)
    lab.run(1)
    assert len(lab.runner.calls) == 6
    for settings, _, _, origin in lab.runner.calls:
        assert (settings.env["fee_rate"], settings.env["min_order_notional"]) == (0.006, 60.0)
        assert origin.venue == venue_terms(dear, None)
    written = json.loads((lab.folder / "results" / "trial_0" / "settings.json").read_text())
    assert written["venue"] == vars(venue_terms(dear, None))
    assert written["venue"]["name"] == "dear"
    assert (written["env_resolved"]["sell_fee_rate"], written["env_resolved"]["min_order_notional"]) == (0.006, 60.0)


def test_another_venue_or_volume_is_another_study(market, dear):
    def identity(dataset, volume_30d):
        return study_identity([fold_data(dataset, PLAN)], PLAN, build_space(), n_envs=4, seed=0, volume_30d=volume_30d)

    plain = identity(market, None)
    assert plain == identity(market, 0.0)
    assert next(iter(plain)) == "venue"
    for other in (identity(market, 1.0), identity(market, 1e6), identity(dear, None)):
        assert other["venue"] != plain["venue"]
    assert identity(market, 1e6)["simulator rules"]["buy_fee_rate"] == 0.0018
    assert identity(dear, None)["simulator rules"]["min_order_notional"] == 60.0
    assert identity(dear, None)["order rules"]["BTC"] == {"min_order_qty": 0.5, "qty_increment": 0.25}
