"""Runs a study: the request, its preparation, the session, workers and their processes.

It imports `study` and `store`, and nothing that reads results back: `train.finish` joins the two.
"""
