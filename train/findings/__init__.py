"""Analysis of stored studies: trials, returns, overfitting, hold-out, backtests and retraining with new seeds.

The package imports `study` and the packages below it. Reports and deployments use it; the runner does not.
"""
