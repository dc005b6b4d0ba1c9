"""Numerical functions: splits, metrics, benchmarks and overfitting statistics.

They take and return NumPy arrays and use no files and no studies. The package imports only `records` and `market`.
"""
