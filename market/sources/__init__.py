"""Where bars come from: the exchanges' servers, a cache on disk, and how to talk to them.

Imports `market.bars` and the ground floor of `market`; only programs import it.
"""
