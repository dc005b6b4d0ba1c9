"""Numbers only: splits, metrics, benchmarks, overfitting statistics.

NumPy in, NumPy out; no files, no study, no text for users. It imports nothing of ours.
"""
