"""Bars to arrays: candles, features, datasets, venue rules, and a synthetic sample market."""
