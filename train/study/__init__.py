"""One trial of a study: splits, search space, identity, objective and progress.

The package imports `train` (one run), `store`, `validation` and `records`. It runs one trial at a time and does not
import workers, reports or deployments.
"""
