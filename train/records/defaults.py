"""Defaults of command-line settings. The module imports nothing, so that --help is fast."""

from __future__ import annotations

AGENTS = ("ppo", "band")  # keys of `train.study.search_tables.TABLES`
PRUNERS = ("wilcoxon", "none")
DEFAULT_AGENT = "band"  # for new studies
# An eligible trial satisfies both bounds on every split. The sampler receives the violations.
MAX_DRAWDOWN = 0.5  # fraction of the account's highest equity
MIN_TRADES = 10  # fewer trades are not conclusive, regardless of the return
LEAST_CONFIDENCE = 0.95  # a deflated Sharpe ratio below this is not evidence of skill
RANDOM_DRAWS = 100  # number of accounts with random orders
LEAST_TRIALS = 10  # ranks of fewer trials are too coarse for a probability
N_BLOCKS = 16
# Deployment.
ALPHA = 0.05  # error probability shared by all tests on the same hold-out
HOLDOUT_DRAWDOWN = 0.25  # largest drawdown on the hold-out, as a fraction
MIN_IMPROVEMENT = 0.1  # required gain in annual Sharpe ratio over the deployed policy
COST_FACTORS = (0.0, 1.0, 2.0, 4.0)
