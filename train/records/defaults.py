"""One default per setting that a command line names; light to import, so that --help answers at once."""

from __future__ import annotations

AGENTS = ("ppo", "band")  # of `train.study.search_tables.TABLES`
PRUNERS = ("wilcoxon", "none")
DEFAULT_AGENT = "band"  # of a new study
# The best trial keeps both on every split; the sampler is told by how much a trial does not.
MAX_DRAWDOWN = 0.5  # fraction of the account's highest equity
MIN_TRADES = 10  # fewer say little of a policy, whatever they earned
LEAST_CONFIDENCE = 0.95  # a deflated Sharpe below this is no evidence of skill
RANDOM_DRAWS = 100  # accounts with random orders
LEAST_TRIALS = 10  # ranks among fewer are too coarse for a probability
N_BLOCKS = 16
# Of a deployment.
ALPHA = 0.05  # error that all tests of the same held-out bars share
HOLDOUT_DRAWDOWN = 0.25  # largest on the held-out bars, as a fraction
MIN_IMPROVEMENT = 0.1  # of the annual Sharpe ratio, above the deployed policy
COST_FACTORS = (0.0, 1.0, 2.0, 4.0)
