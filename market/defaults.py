"""Values that command lines name and the library uses; light to import, so that --help answers at once."""

from __future__ import annotations

STAMPS = ("open", "close")  # which time of a bar a file's timestamps may be
DEFAULT_MAX_FILL_BARS = 3
# Far beyond any coin in any currency; products and quotients of what is inside stay finite.
LEAST_PRICE, MOST_PRICE, MOST_VOLUME = 1e-100, 1e100, 1e100
MIN_SEGMENT_BARS = 32  # a shorter run holds no lookback and no episode
# The slowest column is made of Wilder's average of Wilder's average (ADX). On 18 coins' 5-minute bars of 2024 the bars
# before the warm-up move a value by at most 1.5 % of a column's spread after 128 bars, 0.13 % after 192 and 0.001 %
# after 256 (300 starts); tests/market/test_features.py holds 0.1 %.
WARMUP_BARS = 256
# Of the programs. Equal weight of the default market, with and without the signal, ends within 3 % of where it began
# and falls by 32 % at most. Of seeds 0 to 39 others end between 0.56 and 1.73 times, and where all coins halve,
# whoever holds them breaks --max-drawdown. Chosen by equal weight alone, before any agent was trained on it.
DEMONSTRATION_SEED = 8
PAPER_URL = "https://paper-api.alpaca.markets"
LIVE_URL = "https://api.alpaca.markets"
KEY_VARIABLES = (("APCA_API_KEY_ID", "APCA_API_SECRET_KEY"), ("ALPACA_API_KEY", "ALPACA_API_SECRET"))
FEATURE_SET_NAMES = ("default", "host")  # of `market.features.FEATURE_SETS`
# Flag of a trader -> default and meaning; shares are of the account's value.
TRADING_LIMITS: dict[str, tuple[float, str]] = {
    "max-order-weight": (1.01, "largest buy"),
    "max-position-weight": (1.01, "largest position after a buy"),
    "max-bar-turnover": (2.02, "most that is bought and sold at one bar"),
    "max-day-turnover": (50.0, "most that is bought and sold in a day, UTC"),
    "max-price-move": (0.2, "largest move of a close since the bar before; a coin beyond it is not traded at that bar"),
    "max-rejects": (10, "orders in a row that are refused; then the trader only sells"),
    "max-drawdown": (0.25, "largest fall from the account's peak; then the trader halts"),
    "max-drift": (0.05, "largest distance from the simulator's account; then the trader only sells"),
}
# Of a replay's `--faults`; `paper_trading.replay_venue.FaultyBroker` says what each does.
TRADING_FAULTS = ("timeout", "lost-answer", "429", "partial", "reject", "balance")
