"""Runs a study: request, preparation, session, workers and their processes.

The folder imports `study` and `store`, but no module that reads results. `train.finish` imports both kinds.
"""
