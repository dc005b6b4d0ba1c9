"""Sources of bars: exchange servers, a cache on disk, and HTTP transport.

Imports `market.bars` and the base modules of `market`. Only programs import this package.
"""
