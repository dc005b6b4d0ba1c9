"""Look-ahead analysis of an environment and of a policy's trades; that of bars and features is in `market`.

Imports `study` and `market`; only programs import it.
"""
