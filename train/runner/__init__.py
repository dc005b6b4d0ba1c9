"""Execution of a study: request, preparation, session, workers and their processes.

The package imports `study` and `store`, but no module that reads results. `train.finish` combines both.
"""
