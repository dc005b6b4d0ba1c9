"""The terminal dashboard: what a running study's database, workers and log say.

Reads only. It imports `study`, `store` and `records`; only programs import it.
"""
