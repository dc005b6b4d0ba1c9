"""Terminal dashboard of a running study: its database, its workers and its log.

The dashboard only reads. It imports `study`, `store` and `records`; only programs import it.
"""
