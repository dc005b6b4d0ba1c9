"""Look-ahead analysis: of bars and their features, of the environment, of a policy's trades.

Imports `study` and `market`; only programs import it.
"""
