"""Default values shared by command lines and library code. Imports no heavy package, so `--help` is fast."""

from __future__ import annotations

STAMPS = ("open", "close")  # time of the bar to which a file's timestamps may refer
DEFAULT_MAX_FILL_BARS = 3
# Far beyond any coin in any currency. Products and quotients of values in this range stay finite.
LEAST_PRICE, MOST_PRICE, MOST_VOLUME = 1e-100, 1e100, 1e100
MIN_SEGMENT_BARS = 32  # a shorter run has no room for a lookback and an episode
# The slowest column is ADX, a Wilder average of a Wilder average. On 5-minute bars of 18 coins in 2024, the bars
# before the warm-up change a value by at most 1.5 % of its column's spread after 128 bars, 0.13 % after 192 and 0.001 %
# after 256 (300 starts). tests/market/test_features.py requires 0.1 %.
WARMUP_BARS = 256
# Default seed of the programs. On its market, with and without the signal, the equal-weight portfolio ends within 3 %
# of its initial value, and its drawdown is at most 32 %. With seeds 0 to 39, it ends at 0.56 to 1.73 times its initial
# value. If all coins halve, an account that holds them exceeds --max-drawdown. The seed was chosen by the equal-weight
# portfolio, before any agent was trained.
DEMONSTRATION_SEED = 8
PAPER_URL = "https://paper-api.alpaca.markets"
LIVE_URL = "https://api.alpaca.markets"
KEY_VARIABLES = (("APCA_API_KEY_ID", "APCA_API_SECRET_KEY"), ("ALPACA_API_KEY", "ALPACA_API_SECRET"))
FEATURE_SET_NAMES = ("default", "host")  # keys of `market.features.FEATURE_SETS`
# Flag of the paper trader -> default and help text; fractions of account value.
TRADING_LIMITS: dict[str, tuple[float, str]] = {
    "max-order-weight": (1.01, "largest buy"),
    "max-position-weight": (1.01, "largest position after a buy"),
    "max-bar-turnover": (2.02, "largest turnover at one bar"),
    "max-day-turnover": (50.0, "largest turnover in one UTC day"),
    "max-price-move": (0.2, "largest move of a close from the previous bar; coins that move more are not traded"),
    "max-rejects": (10, "consecutive rejected orders after which the trader only sells"),
    "max-drawdown": (0.25, "drawdown at which the trader halts"),
    "max-drift": (0.05, "difference from the simulated account at which the trader only sells"),
}
# Values of a replay's `--faults`; see `paper_trading.replay_venue.FaultyBroker`.
TRADING_FAULTS = ("timeout", "lost-answer", "429", "partial", "reject", "balance")
