"""Bars to arrays: candles, features, datasets, venues; used by training and live trading alike."""
