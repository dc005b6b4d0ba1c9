"""Splits, metrics and reports on equity curves; third-party libraries only."""
