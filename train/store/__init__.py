"""Storage of a study: database address, lock, retries, heartbeats, dead workers, and the artifact store.

The folder uses Optuna, SQLAlchemy and boto3, and does not depend on training.
"""
