"""One trial of a study: folds, search space, identity, objective, splits, progress.

Imports `train` (one run), `store`, `validation` and `records`. It runs trials one at a time and knows no worker,
no page and no deployment.
"""
