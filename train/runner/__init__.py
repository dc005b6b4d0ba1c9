"""Runs a study: request, preparation, session, workers and their processes.

The folder imports `study` and `store`, and no module that reads results. `train.finish` combines both.
"""
