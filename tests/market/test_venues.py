"""Order rules and fees: by name, checked, kept in a file, and the same decision as the simulator's."""

import json
from dataclasses import replace

import numpy as np
import pytest

from environment_Alpaca import CryptoEnvAlpaca
from environment_Alpaca_vectorized import INCREMENT_SLACK as SIMULATOR_SLACK
from market.errors import VenueError
from market.names import DEFAULT_TICKERS
from market.sample import COINS
from market.venues import (
    ALPACA,
    INCREMENT_SLACK,
    LARGEST_FILE_BYTES,
    FeeTier,
    OrderRule,
    Venue,
    changes,
    load_venue,
    save_venue,
)

NAN, INFINITY = float("nan"), float("inf")


# ---------------------------------------------------------------------------------------------- by name


def test_order_rules_are_joined_by_name_whatever_the_column_order():
    forward = ALPACA.order_rules(["BTC", "ETH/USD", "LTCUSDT"])
    backward = ALPACA.order_rules(["LTC", "ETH", "BTC/USDT"])
    assert forward.min_order_qty.tolist() == backward.min_order_qty[::-1].tolist() == [1.7e-05, 0.000398, 0.0154]
    assert forward.min_order_notional == 10.0


@pytest.mark.parametrize("ticker", ["BTC", "btc", "BTC/USD", "BTC/USDT", "BTC-USDC", "BTCUSD", "BTCUSDT"])
def test_every_name_of_a_coin_in_dollars_finds_its_rule(ticker):
    assert ALPACA.rule(ticker) == OrderRule(1.7e-05)


def test_an_unlisted_coin_is_bound_by_the_notional_alone_and_named():
    assert ALPACA.rule("NOSUCHCOIN") == OrderRule(0.0, 1e-9, 10.0)
    assert ALPACA.unlisted(["BTC", "NOSUCHCOIN", "ETHUSD", "BTC/EUR"]) == ("NOSUCHCOIN", "BTC/EUR")


def test_ten_dollars_are_no_rule_in_another_currency():
    assert ALPACA.rule("BTC/EUR") == OrderRule(0.0, 1e-9, 0.0)
    assert ALPACA.order_rules(["BTC/EUR", "ETH/EUR"]).min_order_notional == 0.0
    own = replace(ALPACA, rules={"ETH/BTC": OrderRule(0.1, 0.01, 1e-4), **ALPACA.rules})
    assert own.rule("ETH/BTC") == own.rule("eth-btc") == OrderRule(0.1, 0.01, 1e-4)
    assert own.rule("ETH") == ALPACA.rule("ETH")


def test_a_coin_whose_name_ends_with_dollars_has_a_rule_of_its_own():
    both = replace(ALPACA, rules={"CRV": OrderRule(2.0), "CRVUSD/USD": OrderRule(3.0), "PYUSD": OrderRule(4.0)})
    assert [both.rule(name).min_order_qty for name in ("CRV/USD", "CRVUSD/USD", "PYUSD")] == [2.0, 3.0, 4.0]
    assert list(both.only(["CRVUSD/USD"]).rules) == ["CRVUSD/USD"]
    assert both.unlisted(["PYUSD/USD", "PY"]) == ("PY",)
    with pytest.raises(VenueError, match="CRVUSD could be CRV or CRVUSD/USD; write it with a separator"):
        both.rule("CRVUSD")
    assert both.only(["CRVUSD/USD"]).rule("CRVUSD") == OrderRule(3.0)
    # AR's rule is not ARB's.
    assert replace(ALPACA, rules={"AR": OrderRule(5.0)}).rule("ARBUSD") == ALPACA.default_rule


def test_the_built_in_table_has_the_coins_that_the_scripts_take_by_default():
    assert ALPACA.unlisted(DEFAULT_TICKERS) == ()
    assert ALPACA.unlisted(sorted(COINS)) == ()


def test_only_keeps_the_entries_of_the_coins():
    few = ALPACA.only(["ETHUSD", "NOSUCHCOIN"])
    assert list(few.rules) == ["ETH"]
    assert replace(few, rules=ALPACA.rules) == ALPACA


# ---------------------------------------------------------------------------------------------- fees


@pytest.mark.parametrize(
    ("volume", "maker_bp", "taker_bp"),
    [
        (0, 15, 25),
        (99_999.99, 15, 25),
        (100_000, 12, 22),
        (500_000, 10, 20),
        (1_000_000, 8, 18),
        (9_999_999, 8, 18),
        (10_000_000, 5, 15),
        (25_000_000, 2, 13),
        (50_000_000, 2, 12),
        (100_000_000, 0, 10),
        (1e12, 0, 10),
    ],
)
def test_the_fee_is_that_of_the_tier_the_volume_has_reached(volume, maker_bp, taker_bp):
    assert ALPACA.fee_rate(volume) == ALPACA.fee_rate(volume, "taker") == taker_bp / 10_000
    assert ALPACA.fee_rate(volume, "maker") == maker_bp / 10_000


@pytest.mark.parametrize("volume", [-1, NAN, INFINITY, "1000", None, True])
def test_a_volume_that_is_none_is_refused(volume):
    with pytest.raises(VenueError, match="volume_30d must be a"):
        ALPACA.fee_rate(volume)
    with pytest.raises(VenueError, match="liquidity must be taker or maker; received 'both'"):
        ALPACA.fee_rate(0, "both")


# ---------------------------------------------------------------------------------------------- checks


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OrderRule(-1.0), "min_order_qty must be a finite number of at least 0; received -1.0"),
        (lambda: OrderRule(NAN), "min_order_qty must be a finite"),
        (lambda: OrderRule(10**400), "min_order_qty is too large"),
        (lambda: OrderRule(1.0, INFINITY), "qty_increment must be a finite"),
        (lambda: OrderRule(1.0, 1.0, "10"), "min_order_notional must be a number; received '10'"),
        (lambda: OrderRule(True), "min_order_qty must be a number; received 'True'"),
        (lambda: OrderRule(1.0, price_increment=-0.1), "price_increment must be a finite"),
        (lambda: FeeTier(0, -0.001, 0.002), "maker_rate must be a finite"),
        (lambda: FeeTier(0, 0.0015, 25), "taker_rate must be a fraction of notional .0.0025 is 0.25 %.; received 25"),
        (lambda: FeeTier(NAN, 0.0, 0.0), "min_volume_30d must be a finite"),
        (lambda: replace(ALPACA, name=""), "name must be one line"),
        (lambda: replace(ALPACA, name=7), "name must be one line"),
        (lambda: replace(ALPACA, source="two\nlines"), "source must be one line"),
        (lambda: replace(ALPACA, as_of="yesterday"), "as_of must be a date such as 2024-08-31; received 'yesterday'"),
        (lambda: replace(ALPACA, as_of="20240831"), "as_of must be a date"),
        (lambda: replace(ALPACA, fees_as_of=None), "fees_as_of must be a date"),
        (lambda: replace(ALPACA, fee_tiers=()), "must begin with the tier of volume 0"),
        (lambda: replace(ALPACA, fee_tiers=ALPACA.fee_tiers[1:]), "must begin with the tier of volume 0"),
        (lambda: replace(ALPACA, fee_tiers=ALPACA.fee_tiers[:1] * 2), "must be sorted by volume, each once"),
        (lambda: replace(ALPACA, fee_tiers=(*ALPACA.fee_tiers[:1], *ALPACA.fee_tiers[:0:-1])), "sorted by volume"),
        (lambda: replace(ALPACA, rules={"BTC/USD": OrderRule(1)}), "rules: 'BTC/USD' must be a coin name"),
        (lambda: replace(ALPACA, rules={"btc": OrderRule(1)}), "rules: 'btc' must be a coin name"),
        (lambda: replace(ALPACA, rules={"BTC": 1.0}), "rules: 'BTC' must be a coin name"),
    ],
)
def test_a_table_that_could_be_misread_is_refused(make, message):
    with pytest.raises(VenueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------------- the file


def test_a_table_comes_back_from_its_file(tmp_path):
    venue = replace(ALPACA, rules={"ETH/BTC": OrderRule(1, 0.5, 0, 1e-6), **ALPACA.rules})
    for _ in range(2):
        save_venue(venue, tmp_path / "a folder" / "v.json")
    assert load_venue(tmp_path / "a folder" / "v.json") == venue
    assert [entry.name for entry in (tmp_path / "a folder").iterdir()] == ["v.json"]
    assert Venue.from_json(venue.to_json()) == venue


def changed(*path, value=None, drop=False):
    content = json.loads(json.dumps(ALPACA.to_json()))
    place = content
    for name in path[:-1]:
        place = place[name]
    if drop:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return json.dumps(content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not valid JSON"),
        ("garbage", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("1" * 5_000, "not valid JSON"),
        (json.dumps(ALPACA.to_json())[:-9], "not valid JSON"),
        ("[]", "not a table of venue rules of format 1"),
        (changed("format", value=2), "not a table of venue rules of format 1"),
        (changed("as_of", drop=True), "venue: field as_of is missing"),
        (changed("note", value="mine"), "venue: field note is unknown"),
        (changed("rules", value=[]), "venue: field rules: expected object, got array"),
        (changed("fee_tiers", value={}), "venue: field fee_tiers: expected array, got object"),
        (changed("fee_tiers", value="abc"), "venue: field fee_tiers: expected array, got str"),
        (changed("rules", "BTC", value=0.1), "BTC: expected object, got float"),
        (changed("rules", "BTC", "min_order_qty", value="0.1"), "BTC: field min_order_qty: expected float, got str"),
        (changed("rules", "BTC", "min_order_qty", value=NAN), "BTC: min_order_qty must be a finite"),
        (changed("rules", "BTC", "min_order_qty", drop=True), "BTC: field min_order_qty is missing"),
        (changed("rules", "BTC", "min_qty", value=1), "BTC: field min_qty is unknown"),
        (changed("default_rule", value=None), "venue: field default_rule: expected object, got null"),
        (
            changed("fee_tiers", 3, "taker_rate", value=18),
            r"venue: field fee_tiers\[3\]: taker_rate must be a fraction",
        ),
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path, content, message):
    (tmp_path / "v.json").write_text(content)
    with pytest.raises(VenueError, match=message) as caught:
        load_venue(tmp_path / "v.json")
    assert str(caught.value).startswith(str(tmp_path / "v.json"))
    assert "\n" not in str(caught.value)


def test_what_is_no_file_or_too_large_is_refused(tmp_path):
    with pytest.raises(VenueError, match="cannot be read"):
        load_venue(tmp_path)
    with pytest.raises(VenueError, match=r"no\.json: cannot be read"):
        load_venue(tmp_path / "no.json")
    (tmp_path / "big").write_bytes(b" " * (LARGEST_FILE_BYTES + 1))
    with pytest.raises(VenueError, match="larger than"):
        load_venue(tmp_path / "big")


def test_changes_name_coin_and_numbers():
    rules = {"AAVE": OrderRule(1.0), "BTC": OrderRule(1e-5, 1e-8), "ETH": OrderRule(1.0)}
    old = replace(ALPACA, rules=rules)
    new = replace(ALPACA, rules={"BTC": OrderRule(2e-5, 1e-8, 10, 0.5), "ETH": OrderRule(1.0), "SOL": OrderRule(0.01)})
    assert changes(old, new) == [
        "AAVE: no longer listed",
        "BTC: min_order_qty 1e-05 -> 2e-05, price_increment none -> 0.5",
        "SOL: new, min_order_qty 0.01, qty_increment 1e-09, min_order_notional 10, price_increment none",
    ]
    assert changes(old, replace(old, as_of="2025-01-01")) == []


# ---------------------------------------------------------------------------------------------- one decision


COARSE = replace(ALPACA, rules={"BTC": OrderRule(0.3, 0.125), "ETH": OrderRule(0.0, 0.0, 10.0)})


def test_quantities_are_cut_with_the_simulators_own_slack():
    assert INCREMENT_SLACK == SIMULATOR_SLACK
    assert COARSE.whole_increments("BTC", 0.374) == 0.25
    assert COARSE.whole_increments("BTC", 0.375) == 0.375
    assert ALPACA.whole_increments("BTC", 3e-9) == pytest.approx(3e-9, rel=1e-12)
    assert COARSE.whole_increments("ETH", 0.374) == 0.374


@pytest.mark.parametrize(
    ("ticker", "qty", "price", "closes", "reason"),
    [
        ("BTC", 0.4, 100.0, False, None),
        ("BTC", 0.374, 100.0, False, "BTC: 0.374 coins must be above 0.3, in steps of 0.125 (alpaca of 2024-08-31)"),
        ("BTC", 0.4, 26.0, False, "BTC: 9.75 is below the minimum order of 10"),
        ("BTC", 0.01, 26.0, True, None),
        ("ETH", 1.0, 10.0, False, None),
        ("BTC", 0.0, 100.0, True, "must be positive and finite; received 0 coins"),
        ("BTC", NAN, 100.0, False, "must be positive and finite; received nan coins"),
        ("BTC", INFINITY, 100.0, False, "must be positive and finite; received inf coins"),
        ("BTC", -1.0, 100.0, True, "must be positive and finite; received -1 coins"),
        ("BTC", 1.0, 0.0, True, "the price must be positive and finite; received 0"),
        ("BTC", 1.0, NAN, False, "the price must be positive and finite; received nan"),
    ],
)
def test_an_order_that_the_venue_would_refuse_gets_a_reason(ticker, qty, price, closes, reason):
    found = COARSE.check_order(ticker, qty, price, closes_position=closes)
    assert found == reason or (reason and found and reason in found)


VENUES = {
    "built in": ALPACA,
    "coarse": replace(ALPACA, rules={"BTC": OrderRule(0.3, 0.125), "ETH": OrderRule(0.05, 0.03), "PEPE": OrderRule(5)}),
    "notional alone": replace(ALPACA, rules={}, default_rule=OrderRule(0.0, 0.0, 25.0)),
}


@pytest.mark.parametrize("name", VENUES)
def test_an_order_is_checked_as_the_scalar_environment_decides(name):
    """Random orders around the minimum, bought and sold: what the environment fills is what the check lets through."""
    venue, tickers = VENUES[name], ("BTC", "ETH", "PEPE")
    rng = np.random.default_rng(5)
    price = np.array([40.0, 90.0, 3.0]) * np.exp(rng.normal(0.0, 0.02, (4_000, 3)).cumsum(axis=0) * 0.1)
    rules = venue.order_rules(tickers)
    config = {
        "price_array": price, "tech_array": np.zeros((4_000, 1)), "tickers": tickers,
        "min_order_qty": rules.min_order_qty, "qty_increment": rules.qty_increment,
    }  # fmt: skip
    params = {"rules": "standard", "lookback": 1, "min_order_notional": rules.min_order_notional, "norm_action": 1.0}
    env = CryptoEnvAlpaca(config, params, initial_capital=10_000.0, start="first")
    env.reset()
    seen = {"bought": 0, "dropped": 0, "sold": 0, "kept": 0, "closed": 0}
    while not env.done:
        held, cash = env.stocks, env.cash
        now = price[env.time + 1].tolist()
        equity = cash + sum(q * x for q, x in zip(held.tolist(), now, strict=True))  # to the last digit
        # 0 to 50 USD an order, so that many are too small, and sometimes all of a position.
        action = (rng.uniform(-50.0, 50.0, 3) / equity).astype(np.float32)
        action[rng.random(3) < 0.05] = -0.2
        asked = [float(a) * equity / (x * params["norm_action"]) for a, x in zip(action, now, strict=True)]
        env.step(action)
        if cash < 500.0:
            continue  # cash might cut a buy
        for i, ticker in enumerate(tickers):
            check(venue, ticker, asked[i], now[i], held[i], env.stocks[i] - held[i], seen)
    assert all(n > 50 for n in seen.values()), seen


def check(venue, ticker, asked, price, held, moved, seen):
    closes = asked < 0 and -asked >= held
    if asked < 0 and held == 0:
        assert moved == 0
        return
    fault = venue.check_order(ticker, abs(asked), price, closes_position=closes)
    if fault is not None:
        assert moved == 0, fault
        seen["dropped" if asked > 0 else "kept"] += 1
    elif closes:
        assert moved == -held
        seen["closed"] += 1
    else:
        expected = np.sign(asked) * venue.whole_increments(ticker, abs(asked))
        # A buy is cut twice, as asked and as the cash allows, which can cost one more step of 1e-9 coins.
        assert moved == pytest.approx(expected, rel=1e-9, abs=1.5e-9)
        seen["bought" if asked > 0 else "sold"] += 1
