"""Look-ahead analysis of environments and of a policy's trades; the analysis of bars and features is in `market`.

The package imports `study` and `market`; only programs import it.
"""
