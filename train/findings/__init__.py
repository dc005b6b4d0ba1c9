"""A study read back: stored trials, returns, overfitting, hold-out, backtests, other seeds.

Imports `study` and below. Reports and deployments build on it; the runner does not know it.
"""
