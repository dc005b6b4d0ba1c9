"""Storage of a study: database address, lock, retries, heartbeats, dead workers and artifact store.

The package uses Optuna, SQLAlchemy and boto3, and does not depend on training.
"""
