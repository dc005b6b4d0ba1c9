"""Terminal dashboard of a running study: its database, its workers and its log.

The dashboard is read-only. It imports `study`, `store` and `records`. Only programs import it.
"""
