"""Numerical functions: splits, metrics, benchmarks and overfitting statistics.

They take and return NumPy arrays and use neither files nor studies. The package imports only `records` and `market`.
"""
