"""Where a study is kept. Its database: address, lock, retries, heartbeats, dead workers. And its artifact store.

Imported by whoever opens a study. It knows Optuna, SQLAlchemy and boto3, and nothing about training.
"""
