"""The database of a study: address, lock, retries, heartbeats, trials whose worker died.

Imported by whoever opens a study. It knows Optuna and SQLAlchemy, and nothing about training.
"""
